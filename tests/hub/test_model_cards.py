# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The cards of pipelines and students: what is known, and nothing else."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler
from huggingface_hub import ModelCard
from PIL import Image
from transformers import pipeline

from diffuseseg_diffusers import Decisions, load_pipeline
from diffuseseg_diffusers.hub.files import STUDENT_RECORD
from diffuseseg_diffusers.hub.model_cards import student_card
from diffuseseg_diffusers.hub.push import push_folder
from diffuseseg_diffusers.jobs.files import read_json, write_json

from ..conftest import ROOT, draw, make_unet
from ..hub_server import validate_card
from .common import saved, saved_student, write_images


RULE = "argmax((p * (1 + iou) - iou) / union)"
METRICS = {
    "mean_iou": 0.5,
    "per_class_iou": {"sky": 0.75, "disc": 0.25, "bar": None},
    "pixel_accuracy": 0.875,
    "num_images": 4,
    "seconds_per_image": 0.1,
    "dataset": {"name": "alice/pictures", "on_hub": True, "config": "labeled", "split": "test"},
}


def test_a_card_says_what_is_known_and_is_valid(hub, tmp_path):
    folder = saved(tmp_path / "model")
    training = {
        "step": 1000,
        "images_seen": 16000,
        "seconds": 600.0,
        "mixed_precision": "bf16",
        "hardware": "A machine, 2 threads",
        "num_processes": 2,
        "dataset": {"name": "alice/unlabelled", "on_hub": True, "config": None, "split": "train"},
    }
    fitting = {
        "model_on_hub": "bob/ddpm",
        "dataset": {"name": "patients", "on_hub": False, "config": None, "split": "train"},
        "num_images": 20,
        "recipe": "fast",
        "dtype": "float32",
        "seed": 0,
        "seconds": 4.6,
        "hardware": "Another machine",
        "num_processes": 1,
    }
    write_json(folder / "training_state.json", training)
    write_json(folder / "head_training.json", fitting)
    (tmp_path / "analysis").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "analysis" / "blocks-timesteps.png")
    more = {"evaluations": [METRICS], "analysis": tmp_path / "analysis"}
    push_folder(folder, "alice/card", license="mit", num_samples=2, **more)
    files = hub.files("models", "alice/card")
    text = files["README.md"].decode()
    assert validate_card(text, "model") == []
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "mit" and data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "image-segmentation" and "diffuseseg" in data["tags"]
    assert data["datasets"] == ["alice/unlabelled", "alice/pictures"] and data["base_model"] == "bob/ddpm"
    results = ModelCard(text).data.eval_results
    assert {r.metric_name: r.metric_value for r in results} == {
        "Mean IoU": 0.5,
        "Pixel accuracy": 0.875,
        "IoU of sky": 0.75,
        "IoU of disc": 0.25,
    }
    assert {(r.dataset_type, r.dataset_config, r.dataset_split) for r in results} == {
        ("alice/pictures", "labeled", "test")
    }
    for said in (
        "| 1 | disc | `#e69f00` |",
        "| bar | absent |",
        "16,000 images in 10 minutes",
        "A machine, 2 threads, 2 processes",
        "20 of patients (not on the Hub)",
        'DiffuseSegPipeline.from_pretrained("alice/card")',
        'DiffusionPipeline.from_pretrained("alice/card", trust_remote_code=True)',
        "](samples.png)",
        "![blocks timesteps](analysis/blocks-timesteps.png)",
        "@inproceedings{baranchuk2022labelefficient",
    ):
        assert said in text, said
    with Image.open(io.BytesIO(files["samples.png"])) as page:
        assert len(page.convert("L").getcolors(2**16)) > 10
    assert "analysis/blocks-timesteps.png" in files
    with pytest.raises(ValueError, match="There are no figures in"):
        push_folder(folder, "alice/card", analysis=folder)


def test_what_was_not_measured_is_absent(hub, tmp_path):
    push_folder(saved(tmp_path / "model"), "alice/unmeasured", num_samples=0)
    text = hub.files("models", "alice/unmeasured")["README.md"].decode()
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "unknown"
    assert not {"model-index", "metrics", "datasets", "base_model"} & set(data)
    for word in ("## Results", "None", "hardware", "labelled images |", "samples.png", "training of the U-Net"):
        assert word not in text, word
    assert "was not measured" in text


def test_a_readme_of_the_users_own_is_kept(hub, tmp_path):
    folder = saved(tmp_path / "model")
    own = "---\nlicense: cc-by-4.0\nlanguage: en\ntags: [mine]\n---\nNuclei of mice, stained.\n"
    (folder / "README.md").write_text(own)
    push_folder(folder, "alice/own", num_samples=0)
    text = hub.files("models", "alice/own")["README.md"].decode()
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "cc-by-4.0" and data["language"] == "en" and data["tags"] == ["mine"]
    assert "Nuclei of mice, stained." in text and "## Classes" in text
    (folder / "README.md").write_text(text)  # as a download of the repository has it
    push_folder(folder, "alice/own", num_samples=0)
    assert hub.files("models", "alice/own")["README.md"].decode().count("## Classes") == 1


def test_the_templates_are_part_of_the_installed_package():
    code = "from importlib import resources; f = resources.files('diffuseseg_diffusers.hub_cards')\n"
    code += "print(*sorted(p.name for p in f.iterdir() if p.suffix == '.md'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    kinds = ("dataset", "head", "model", "segmenter", "space", "student")
    cards = ["base.md", *(f"{kind}_card.md" for kind in kinds)]
    assert result.stdout.split() == cards, result.stderr


def test_cards_say_how_to_install_what_can_be_installed(hub, tmp_path):
    push_folder(saved(tmp_path / "model"), "alice/install", num_samples=0)
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    push_folder(tmp_path / "ddpm", "alice/install-ddpm", num_samples=0)
    push_folder(write_images(tmp_path / "images"), "alice/install-data")
    names = [("models", "alice/install"), ("models", "alice/install-ddpm"), ("datasets", "alice/install-data")]
    cards = [hub.files(*name)["README.md"].decode() for name in names]
    for card in cards:
        assert "(`pip install '.[train]'` in a clone of DiffuseSeg for Diffusers)" in card
    assert "Without it (`pip install diffusers transformers accelerate`)" in cards[0]
    # Nobody owns the package's name, so nothing tells people to install what may one day have it.
    for folder in ("diffuseseg_diffusers", "hub_cards", "training", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".md", ".ipynb"):
                text = path.read_text(encoding="utf-8")
                assert "pip install diffuseseg" not in text, path
    assert "pip install diffuseseg" not in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_card_of_a_student_with_decisions_says_that_other_libraries_ignore_them_and_gives_the_rule(tmp_path):
    folder = saved_student(tmp_path / "student")
    assert RULE not in student_card(folder, repo_id="alice/student").text
    student = load_pipeline(folder, device="cpu", dtype="float32")
    picture = draw((32, 32), 3)[0]
    likeliest = student.segment(picture, output_type="np", return_probabilities=True)
    rarest = int(likeliest.probabilities[0].mean((1, 2)).argmin())
    student.decisions = Decisions(*([x if i == rarest else y for i in range(3)] for x, y in ((0.1, 0.9), (0.01, 0.9))))
    student.save_pretrained(folder)
    write_json(folder / STUDENT_RECORD, {**read_json(folder / STUDENT_RECORD), "decisions": student.decisions.config})
    text = student_card(folder, repo_id="alice/student").text
    assert RULE in text and "each pixel gets its likeliest class" in text and 'load_pipeline("alice/student")' in text
    # The rule, and what transformers' own client does.
    ours = student.segment(picture, output_type="np").masks[0]
    p, decisions = likeliest.probabilities[0], read_json(folder / "config.json")["decisions"]
    iou, union = (np.array(decisions[name], np.float32)[:, None, None] for name in ("iou", "union"))
    assert np.array_equal(((p * (1 + iou) - iou) / union).argmax(0), ours)
    client = pipeline("image-segmentation", model=str(folder), device=torch.device("cpu"))
    theirs = np.full_like(ours, 255)
    for found in client(Image.fromarray(picture).convert("RGB")):
        theirs[np.asarray(found["mask"]) > 0] = client.model.config.label2id[found["label"]]
    assert np.array_equal(theirs, likeliest.masks[0]) and not np.array_equal(theirs, ours)
