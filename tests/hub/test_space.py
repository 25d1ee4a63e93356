# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The Space with the labelling page: what is uploaded, and that it runs."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.hub import space
from diffuseseg_diffusers.hub.space import package_files, pinned_requirements, push_labeling_space

from ..conftest import TOKENS, draw, make_pipeline, run


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "deep/b c.png")):
        Image.fromarray(draw((20, 24), seed)[0]).save(folder / name)
    (folder / "diary.txt").write_text("private")
    return folder


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.slow
def test_a_space_runs_the_same_page(hub, pictures, tmp_path, monkeypatch):
    """Pushed by the command, downloaded again, and started as its Dockerfile does, without the installed package."""
    port = free_port()
    monkeypatch.setattr(space, "PORT", port)
    make_pipeline().save_pretrained(tmp_path / "model")
    pushed = run(
        *("diffuseseg", "app", "--model", tmp_path / "model", "--images", pictures),
        *("--classes", "sky", "big moon", "--push_space", "alice/labels"),
    )
    assert f"Pushed: {hub.url}/spaces/alice/labels/commit/" in pushed.stdout
    assert hub.settings("spaces", "alice/labels")["private"]
    files = hub.files("spaces", "alice/labels")
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (card["sdk"], card["app_port"], card["title"]) == ("docker", port, "labels")
    assert {"images/a.png", "images/deep/b c.png", "model/model_index.json"} <= set(files)
    assert not any(b"private" == content for content in files.values())
    # Sources may say "home"; what is made for the Space must not name this machine.
    made = [n for n in files if not n.startswith("diffuseseg_diffusers/")]
    assert not any(str(tmp_path).encode() in files[name] for name in made)
    assert 'CMD ["python", "app.py"]' in files["Dockerfile"].decode()
    assert re.search(r"^fastapi==[\d.]+$", files["requirements.txt"].decode(), re.MULTILINE)

    for name, content in files.items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with open(tmp_path / "space" / "diffuseseg_diffusers" / "labeling" / "static" / "index.html", "a") as file:
        file.write("<!-- of the Space -->")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "space", env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        for line in process.stdout:
            if line.startswith("Label at"):
                break
        for _ in range(100):
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/").read().decode()
                state = urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state").read().decode()
                break
            except OSError:
                time.sleep(0.1)
        assert "<title>DiffuseSeg" in page and '"name":"deep/b c.png"' in state and '"big moon"' in state
        assert page.endswith("<!-- of the Space -->")  # it is the package of the Space that runs
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_model_of_the_hub_goes_by_its_name(hub, pictures):
    push_labeling_space("alice/by-name", "google/ddpm-church-256", pictures, private=False, revision="abc")
    files = hub.files("spaces", "alice/by-name")
    assert not any(name.startswith("model/") for name in files)
    app = files["app.py"].decode()
    assert '"--model", "google/ddpm-church-256"' in app and '"--revision", "abc"' in app and '"--no_token"' in app
    assert yaml.safe_load(files["README.md"].decode().split("---")[1])["models"] == ["google/ddpm-church-256"]
    assert not hub.settings("spaces", "alice/by-name")["private"] and "HF_TOKEN" in files["README.md"].decode()


def test_a_stack_is_uploaded_once_for_all_its_planes(hub, pictures):
    stack = pictures / "deep" / "stack.tif"
    tifffile.imwrite(stack, np.zeros((3, 8, 9), np.uint8), imagej=True, metadata={"axes": "ZYX"})
    push_labeling_space("alice/stacks", "google/ddpm-church-256", pictures)
    files = hub.files("spaces", "alice/stacks")
    sent = {name for name in files if name.startswith("images/")}
    assert sent == {"images/a.png", "images/deep/b c.png", "images/deep/stack.tif"}
    assert files["images/deep/stack.tif"] == stack.read_bytes()


def test_what_cannot_be_labelled_is_said_before_anything_is_made(hub, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="The Space alice/no cannot be made: broken.png"):
        push_labeling_space("alice/no", "google/ddpm-church-256", pictures)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There are no pictures"):
        push_labeling_space("alice/no", "google/ddpm-church-256", tmp_path / "empty")
    assert not hub.has("spaces", "alice/no")


def test_names_and_tokens_that_do_not_fit_are_refused(hub, pictures, monkeypatch):
    with pytest.raises(UserError, match="who is not bob"):
        push_labeling_space("bob/no", "google/ddpm-church-256", pictures)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="The Space alice/no cannot be made"):
        push_labeling_space("alice/no", "google/ddpm-church-256", pictures)
    url = push_labeling_space("alice/given", "google/ddpm-church-256", pictures, token=TOKENS["alice"])
    assert "/spaces/alice/given/" in url


def test_a_dataset_is_no_model(hub, pictures):
    with pytest.raises(UserError, match="holds a dataset; give the folder of a diffusion model"):
        push_labeling_space("alice/no", str(pictures), pictures)


def test_the_package_is_whole_and_its_needs_are_pinned():
    files = package_files()
    for name in ("tasks/app.py", "labeling/static/app.js", "training/train_ddpm.py", "hub_cards/space_card.md"):
        assert f"diffuseseg_diffusers/{name}" in files
    assert not any("__pycache__" in name for name in files)
    pinned = pinned_requirements()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    assert {"torch", "diffusers", "fastapi", "uvicorn", "datasets"} <= {line.split("==")[0] for line in pinned}
