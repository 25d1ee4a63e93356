# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pushing pipelines, what goes wrong on the way, and the commands around it."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from huggingface_hub import ModelCard
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, UserError
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.hub.push import push_folder, push_pipeline
from diffuseseg_diffusers.jobs.files import write_json

from ..conftest import QUICK, ROOT, TOKENS, draw, make_unet, run
from .common import ONLINE, PIPELINE_FILES, fitted, saved, saved_student, write_images


def test_a_push_is_one_commit_of_what_is_needed_and_no_more(hub, tmp_path):
    pipe = fitted()
    pipe.unet.register_to_config(_name_or_path="/home/alice/patients/unet")
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    for name in ("notes.txt", "training_state.json", "checkpoint-000010/model.safetensors", "logs/events"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    url = push_folder(folder, "alice/one-commit", private=True, commit_message="First", num_samples=2)
    files = hub.files("models", "alice/one-commit")
    assert set(files) == PIPELINE_FILES | {"samples.png"}
    assert hub.history("models", "alice/one-commit") == ["First", "initial commit"]
    assert url.startswith(hub.url) and hub.settings("models", "alice/one-commit")["private"]
    assert hub.asked("POST", "validate-yaml")
    assert not any(b"patients" in content or str(tmp_path).encode() in content for content in files.values())


def test_the_method_of_diffusers_pushes_what_loads_and_names_no_folder_of_this_machine(hub, tmp_path):
    pipe = fitted()
    pipe.unet.register_to_config(_name_or_path="/home/alice/patients/unet")
    pipe.segmentation_head.register_to_config(_name_or_path="/home/alice/patients/head")
    pipe.register_to_config(_name_or_path="/home/alice/patients")
    pipe.push_to_hub("alice/method", private=True, commit_message="By method")
    assert hub.history("models", "alice/method")[0] == "By method"
    pipe.save_pretrained(tmp_path / "saved-and-pushed", push_to_hub=True)
    assert set(hub.files("models", "alice/saved-and-pushed")) == PIPELINE_FILES
    for name in ("alice/method", "alice/saved-and-pushed"):
        assert not any(b"patients" in content for content in hub.files("models", name).values()), name
        again = DiffuseSegPipeline.from_pretrained(name, cache_dir=tmp_path / "cache")
        assert again.label_names == pipe.label_names
        assert all(torch.equal(a, b) for a, b in zip(again.unet.parameters(), pipe.unet.parameters()))


def test_a_pipeline_that_was_loaded_is_pushed_again_only_if_it_changed(hub, tmp_path):
    push_pipeline(fitted(), "alice/again", private=True, commit_message="First", num_samples=0)
    again = DiffuseSegPipeline.from_pretrained("alice/again", cache_dir=tmp_path / "cache")
    push_pipeline(again, "alice/again", num_samples=0)
    assert hub.history("models", "alice/again") == ["First", "initial commit"]


def test_a_plain_ddpm_is_pushed_as_it_is(hub, tmp_path):
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    push_folder(tmp_path / "ddpm", "alice/plain", num_samples=4)
    files = hub.files("models", "alice/plain")
    assert not any(name.endswith(".py") for name in files)
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "unconditional-image-generation"
    assert "DDPMPipeline.from_pretrained" in card and "## Classes" not in card
    DDPMPipeline.from_pretrained("alice/plain", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("where", ["upload", "commit"])
def test_a_push_that_breaks_off_leaves_nothing_half_and_is_resumed(hub, tmp_path, where):
    name = f"alice/broken-off-{where}"
    push_folder(saved(tmp_path / "old"), name, num_samples=0)
    before = hub.files("models", name)
    new = saved(tmp_path / "new", seed=73 + len(where))  # other weights than the Hub has already
    hub.requests.clear()
    if where == "upload":  # the second of two large files
        hub.fail("PUT", "/lfs/upload/", status=200)  # said to be there, and is not: the check after it fails
    else:
        hub.fail("POST", "/commit/", status=500)
    with pytest.raises(ValueError, match="cannot be pushed"):
        push_folder(new, name, num_samples=0)
    assert hub.files("models", name) == before
    assert len(hub.history("models", name)) == 2
    hub.requests.clear()
    push_folder(new, name, num_samples=0)
    assert len(hub.asked("PUT", "/lfs/upload/")) == (0 if where == "commit" else 1)
    files = hub.files("models", name)
    assert set(files) == PIPELINE_FILES and len(hub.history("models", name)) == 3
    for part in ("unet", "segmentation_head"):
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        assert files[weights] == (new / weights).read_bytes() != before[weights]


@pytest.mark.slow
def test_a_push_killed_halfway_and_repeated_leaves_one_whole_repository(hub, tmp_path):
    folder = saved(tmp_path / "model", seed=71)  # other weights than the Hub has already
    command = [sys.executable, "-m", "diffuseseg_diffusers", "push", str(folder), "alice/killed"]
    command += ["--num_samples", "0"]
    started = []
    hub.fail("PUT", "/lfs/upload/", call=lambda: started[0].send_signal(signal.SIGKILL), cut=True)
    with open(tmp_path / "log", "w") as log:
        started.append(
            subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **ONLINE}, text=True)
        )
    assert started[0].wait(timeout=120) == -signal.SIGKILL
    assert set(hub.files("models", "alice/killed")) == {".gitattributes"}
    hub.requests.clear()
    result = run("diffuseseg", "push", folder, "alice/killed", "--num_samples", "0", **ONLINE)
    assert "Pushed: " in result.stdout
    assert set(hub.files("models", "alice/killed")) == PIPELINE_FILES
    assert len(hub.history("models", "alice/killed")) == 2
    DiffuseSegPipeline.from_pretrained("alice/killed", cache_dir=tmp_path / "cache")


def test_errors_that_pass_are_waited_out_and_others_are_a_sentence(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    folder = saved(tmp_path / "model", seed=72)
    hub.fail("POST", "/preupload/", status=500, times=2)
    hub.fail("PUT", "/lfs/upload/", status=429, headers={"Retry-After": "1"})
    hub.fail("PUT", "/lfs/upload/", cut=True)
    push_folder(folder, "alice/waited", num_samples=0)
    assert set(hub.files("models", "alice/waited")) == PIPELINE_FILES
    assert not any(f.times for f in hub.failures)
    for status, sentence in ((401, "token"), (404, "error 404"), (429, "a few minutes"), (403, "forbids")):
        hub.failures.clear()
        hub.fail("POST", "/commit/", status=status, times=9)
        with pytest.raises(ValueError, match=f"cannot be pushed to alice/waited: .*{sentence}"):
            push_folder(saved(tmp_path / str(status), seed=status), "alice/waited", num_samples=0)
    hub.failures.clear()
    monkeypatch.setenv("HF_TOKEN", TOKENS["bob"])
    with pytest.raises(ValueError, match="the token is of bob, who is not alice"):
        push_folder(saved(tmp_path / "bob", seed=9), "alice/waited", num_samples=0)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="hf auth login"):
        push_folder(folder, "alice/waited", num_samples=0)


def test_what_is_not_whole_is_refused_before_the_first_request(hub, tmp_path):
    folder = saved(tmp_path / "model")
    weights = folder / "segmentation_head" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(UserError, match="There is no folder"):
        push_folder(tmp_path / "nowhere", "alice/nothing")
    content = weights.read_bytes()
    weights.write_bytes(content[:-50])
    with pytest.raises(UserError, match="not a whole safetensors"):
        push_folder(folder, "alice/nothing")
    weights.unlink()
    with pytest.raises(UserError, match="segmentation_head .* safetensors"):
        push_folder(folder, "alice/nothing")
    student = saved_student(tmp_path / "student")
    (student / "model.safetensors").write_bytes((student / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(UserError, match="student cannot be loaded"):
        push_folder(student, "alice/nothing")
    (student / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="is incomplete: preprocessor_config.json is missing"):
        push_folder(student, "alice/nothing")
    assert hub.requests == [] and not hub.has("models", "alice/nothing")


def test_a_refused_push_leaves_no_empty_repository(hub, tmp_path, monkeypatch):
    folder = saved(tmp_path / "model")
    # Before it is made: a name that is none, a token of others, one that may only read, a card that is not valid.
    for name in ("alice/not a name", "alice/two/slashes"):
        with pytest.raises(UserError, match="cannot be pushed to .*Repo id must"):
            push_folder(folder, name, num_samples=0)
    assert hub.requests == []
    with pytest.raises(UserError, match="does not take the card .*license: my own is not an identifier"):
        push_folder(folder, "alice/refused", num_samples=0, license="my own")
    monkeypatch.setitem(hub.roles, "alice", "read")
    with pytest.raises(UserError, match="the token of alice may only read"):
        push_folder(folder, "alice/refused", num_samples=0)
    monkeypatch.delitem(hub.roles, "alice")
    monkeypatch.setenv("HF_TOKEN", TOKENS["bob"])
    with pytest.raises(UserError, match="the token is of bob, who is not alice"):
        push_folder(folder, "alice/refused", num_samples=0)
    monkeypatch.setenv("HF_TOKEN", TOKENS["alice"])
    assert not hub.asked("POST", "/repos/create")
    # After it is made: the commit is refused.
    hub.fail("POST", "/commit/", status=403)
    with pytest.raises(UserError, match="forbids .* The new repository was removed again"):
        push_folder(folder, "alice/refused", num_samples=0)
    assert hub.asked("POST", "/repos/create") and not hub.has("models", "alice/refused")
    # The token may not remove it: that is said.
    hub.fail("POST", "/commit/", status=403)
    hub.fail("DELETE", "/repos/delete", status=403)
    with pytest.raises(UserError, match="alice/refused is empty and could not be removed .*remove it on its page"):
        push_folder(folder, "alice/refused", num_samples=0)
    assert set(hub.files("models", "alice/refused")) == {".gitattributes"}


def test_a_repository_that_was_there_or_got_files_is_never_removed(hub, tmp_path):
    folder = saved(tmp_path / "model")
    hub.create("models", "alice/there")
    hub.fail("POST", "/commit/", status=403)
    with pytest.raises(UserError, match="forbids"):
        push_folder(folder, "alice/there", num_samples=0)
    assert hub.has("models", "alice/there")
    # Somebody else writes to it before the commit is refused.
    hub.fail(
        *("POST", "/commit/"),
        status=403,
        call=lambda: hub.commit("models", "alice/shared", "main", "by another", {"notes.txt": b"mine"}),
    )
    with pytest.raises(UserError, match="alice/shared is new, and not empty"):
        push_folder(folder, "alice/shared", num_samples=0)
    assert hub.files("models", "alice/shared")["notes.txt"] == b"mine"
    # An error that passes: the next push resumes there.
    hub.fail("POST", "/commit/", status=503)
    with pytest.raises(UserError, match="error 503.* alice/busy was made and is still empty; the next push resumes"):
        push_folder(folder, "alice/busy", num_samples=0)
    push_folder(folder, "alice/busy", num_samples=0)
    assert set(hub.files("models", "alice/busy")) == PIPELINE_FILES
    assert not hub.asked("DELETE", "")


@pytest.mark.slow
def test_train_fit_evaluate_push_and_segment_with_names_on_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "default", QUICK)
    push_folder(write_images(tmp_path / "pictures", count=8), "alice/work", private=True)
    tiny = dict(make_unet().config) | {"sample_size": 16}
    write_json(tmp_path / "tiny.json", {k: v for k, v in tiny.items() if not k.startswith("_")})
    result = run(
        *("diffuseseg", "train-ddpm", "--dataset_name", "alice/work", "--streaming", "--dataloader_num_workers", "0"),
        *("--model_config", tmp_path / "tiny.json", "--resolution", "16", "--train_batch_size", "2"),
        *("--max_train_steps", "2", "--num_validation_images", "2", "--num_samples", "0", "--hub_private_repo"),
        *("--push_to_hub", "--hub_model_id", "alice/work-ddpm", "--output_dir", tmp_path / "ddpm"),
        **ONLINE,
    )
    assert "Pushed: " in result.stdout
    card = hub.files("models", "alice/work-ddpm")["README.md"].decode()
    assert "2 steps, 4 images" in card and "datasets/alice/work)" in card
    assert hub.settings("models", "alice/work-ddpm")["private"]
    result = run(
        *("diffuseseg", "fit", "--model", "alice/work-ddpm", "--dataset_name", "alice/work", "--num_members", "2"),
        *("--validation_fraction", "0.25", "--push_to_hub", "--hub_model_id", "alice/work-head"),
        *("--output_dir", tmp_path / "head"),
        **ONLINE,
    )
    card = ModelCard(hub.files("models", "alice/work-head")["README.md"].decode())
    assert card.data.base_model == "alice/work-ddpm" and card.data.datasets == ["alice/work"]
    assert {"Mean IoU", "IoU of disc"} <= {r.metric_name for r in card.data.eval_results}
    Image.fromarray(draw((20, 24), 3)[0]).save(tmp_path / "picture.png")
    run(
        *("diffuseseg", "segment", tmp_path / "picture.png", "--model", "alice/work-head"),
        *("--output_dir", tmp_path / "masks"),
        **ONLINE,
    )
    with Image.open(tmp_path / "masks" / "picture_mask.png") as mask:
        assert mask.size == (24, 20)
    run(
        *("diffuseseg", "evaluate", "--model", "alice/work-head", "--dataset_name", "alice/work", "--split", "train"),
        *("--output_dir", tmp_path / "eval"),
        **ONLINE,
    )
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["dataset"]["name"] == "alice/work"
    run(
        *("diffuseseg", "push", tmp_path / "head", "alice/work-head", "--evaluation", tmp_path / "eval"),
        *("--num_samples", "0", "--license", "mit", "--commit_message", "With results"),
        **ONLINE,
    )
    assert hub.history("models", "alice/work-head")[0] == "With results"


def test_a_token_or_name_that_does_not_work_shows_before_the_training(hub, tmp_path, monkeypatch):
    write_images(tmp_path / "pictures")
    monkeypatch.setenv("HF_TOKEN", TOKENS["bob"])
    result = run(
        *("diffuseseg", "train-ddpm", "--dataset_name", tmp_path / "pictures", "--max_train_steps", "2"),
        *("--push_to_hub", "--hub_model_id", "alice/not-bobs", "--output_dir", tmp_path / "out"),
        expect=1,
        **ONLINE,
    )
    assert "cannot be pushed to alice/not-bobs: the token is of bob" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists() and not hub.asked("POST", "/repos/create")


HUSHED = """
import os, sys
from diffuseseg_diffusers.cli import main
for command in sys.argv[1:]:
    if command.startswith("HF_TOKEN="):
        os.environ["HF_TOKEN"] = command.removeprefix("HF_TOKEN=")
        continue
    try:
        main(command.split("|"))
    except SystemExit as end:
        print("ended with", end.code)
"""


@pytest.mark.slow
def test_no_token_is_ever_shown_or_written(hub, tmp_path, monkeypatch):
    token, wrong = TOKENS["alice"], "hf_WrongSecretToken"
    folder, image = saved(tmp_path / "model"), tmp_path / "image.png"
    Image.fromarray(draw((16, 16), 3)[0]).save(image)
    hub.fail("POST", "/commit/", status=401)
    commands = [
        f"push|{folder}|alice/hushed|--private|--num_samples|0",
        f"push|{folder}|alice/hushed|--private|--num_samples|0",
        f"HF_TOKEN={wrong}",
        f"segment|{image}|--model|alice/hushed|--output_dir|{tmp_path / 'refused'}",
        f"HF_TOKEN={token}",
        f"segment|{image}|--model|alice/hushed|--output_dir|{tmp_path / 'masks'}",
    ]
    debug = {"HF_HOME": str(tmp_path / "home"), "HF_DEBUG": "1", "DIFFUSERS_VERBOSITY": "debug", **ONLINE}
    result = run("python", "-c", HUSHED, *commands, **debug)
    said = result.stdout + result.stderr
    assert [line for line in said.splitlines() if line.startswith("ended with")] == [
        f"ended with {i}" for i in (1, 0, 1, 0)
    ]
    pipe = DiffuseSegPipeline.from_pretrained("alice/hushed", token=token, cache_dir=tmp_path / "cache")
    pipe.save_pretrained(tmp_path / "again")
    with pytest.raises(UserError) as error:
        push_pipeline(pipe, "bob/hushed", token=token, num_samples=0)
    said += f"{error.value} {error.value.__cause__!r}"
    for secret in (token, wrong):
        assert secret not in said
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
        for content in hub.files("models", "alice/hushed").values():
            assert secret.encode() not in content
