# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pushing pipelines and datasets, their cards, datasets from a Hub, and what goes wrong on the way."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from datasets import Image as ImageFeature
from datasets import load_dataset
from diffusers import DDPMPipeline, DDPMScheduler
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, load_labeled_images
from diffuseseg_diffusers.commands import write_json
from diffuseseg_diffusers.hub import hub_refusals, push_folder, push_pipeline
from diffuseseg_diffusers.unlabeled_data import load_unlabeled

from .conftest import ROOT, TOKENS, dataset_of, draw, make_head, make_pipeline, make_unet, run
from .hub_server import validate_card


PIPELINE_FILES = {
    ".gitattributes",
    "README.md",
    "model_index.json",
    "pipeline_diffuseseg.py",
    "scheduler/scheduler_config.json",
    "segmentation_head/config.json",
    "segmentation_head/diffusion_pytorch_model.safetensors",
    "segmentation_head/pixel_classifier_ensemble.py",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}
ONLINE = {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
METRICS = {
    "mean_iou": 0.5,
    "per_class_iou": {"sky": 0.75, "disc": 0.25, "bar": None},
    "pixel_accuracy": 0.875,
    "num_images": 4,
    "seconds_per_image": 0.1,
    "dataset": {"name": "alice/pictures", "on_hub": True, "config": "labeled", "split": "test"},
}


def fitted(seed: int = 0) -> DiffuseSegPipeline:
    pipe = make_pipeline(seed=seed)
    pipe.segmentation_head = make_head(pipe, seed=seed, label_names=["sky", "disc", "bar"])
    return pipe


def saved(folder, seed: int = 0):
    fitted(seed).save_pretrained(folder)
    return folder


def write_pictures(folder, count: int = 6, split: str = "train"):
    """A dataset of drawn pictures with masks, as Parquet."""
    images, masks = zip(*[draw((16, 16), i) for i in range(count)])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset_of(images, masks).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    write_json(folder / "id2label.json", {"0": "sky", "1": "disc", "2": "bar"})
    return folder


# Pipelines


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


def test_the_methods_of_the_pipeline_push_too(hub, tmp_path):
    pipe = fitted()
    pipe.push_to_hub("alice/method", private=True, commit_message="By method", num_samples=0)
    assert hub.history("models", "alice/method")[0] == "By method"
    pipe.save_pretrained(tmp_path / "saved-and-pushed", push_to_hub=True)
    assert set(hub.files("models", "alice/saved-and-pushed")) == PIPELINE_FILES | {"samples.png"}
    again = DiffuseSegPipeline.from_pretrained("alice/method", cache_dir=tmp_path / "cache")
    again.push_to_hub("alice/method", num_samples=0)  # nothing has changed
    assert len(hub.history("models", "alice/method")) == 2


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
def test_a_push_that_breaks_off_leaves_nothing_half_and_goes_on_where_it_was(hub, tmp_path, where):
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


def test_a_push_killed_halfway_and_repeated_leaves_one_whole_repository(hub, tmp_path):
    folder = saved(tmp_path / "model", seed=71)  # other weights than the Hub has already
    command = [sys.executable, "-m", "diffuseseg_diffusers.cli", "push", str(folder), "alice/killed"]
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
    with pytest.raises(ValueError, match="forbids|may see"):
        push_folder(saved(tmp_path / "bob", seed=9), "alice/waited", num_samples=0)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="hf auth login"):
        push_folder(folder, "alice/waited", num_samples=0)


def test_what_is_not_whole_is_not_pushed(hub, tmp_path):
    with pytest.raises(ValueError, match="There is no folder"):
        push_folder(tmp_path / "nowhere", "alice/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pipeline .* and no dataset"):
        push_folder(tmp_path / "empty", "alice/nothing")
    folder = saved(tmp_path / "model")
    weights = folder / "segmentation_head" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a whole safetensors"):
        push_folder(folder, "alice/nothing", num_samples=0)
    weights.unlink()
    with pytest.raises(ValueError, match="segmentation_head .* safetensors"):
        push_folder(folder, "alice/nothing", num_samples=0)
    assert not (hub.root / "models" / "alice" / "nothing" / "commits").exists() or set(
        hub.files("models", "alice/nothing")
    ) == {".gitattributes"}


# Cards


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


# Datasets


def test_a_dataset_is_pushed_with_its_card_and_comes_back(hub, tmp_path):
    folder = write_pictures(tmp_path / "pictures")
    push_folder(folder, "alice/pictures", license="cc0-1.0")
    files = hub.files("datasets", "alice/pictures")
    assert {"README.md", "samples.png", "id2label.json", "data/train-00000-of-00001.parquet"} < set(files)
    text = files["README.md"].decode()
    assert validate_card(text, "dataset") == []
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "cc0-1.0" and data["task_categories"] == ["image-segmentation"]
    assert "| default | train | 6 | 16 × 16 | image, mask |" in text
    masks = np.stack([draw((16, 16), i)[1] for i in range(6)])
    assert f"| 1 | disc | `#e69f00` | {100 * (masks == 1).mean():.2f} % |" in text
    loaded = load_labeled_images("alice/pictures", cache_dir=tmp_path / "cache")
    assert loaded.label_names == ["sky", "disc", "bar"]
    assert (np.stack([loaded[i].mask for i in range(6)]) == masks).all()
    assert DatasetCard(text).data.to_dict()["size_categories"] == ["n<1K"]


def test_folders_of_images_and_masks_go_as_parquet(hub, tmp_path):
    for split, seeds in (("train", range(3)), ("test", range(3, 5))):
        for kind in ("images", "masks"):
            (tmp_path / "mine" / split / kind).mkdir(parents=True)
        for i in seeds:
            image, mask = draw((12, 20), i)
            Image.fromarray(image).save(tmp_path / "mine" / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "mine" / split / "masks" / f"{i}.png")
    push_folder(tmp_path / "mine", "alice/mine")
    assert sorted(n for n in hub.files("datasets", "alice/mine") if n.startswith("data")) == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    for split, seeds in (("train", range(3)), ("test", range(3, 5))):
        loaded = load_labeled_images("alice/mine", split=split, cache_dir=tmp_path / "cache")
        assert [loaded[i].mask.tolist() for i in range(len(loaded))] == [draw((12, 20), i)[1].tolist() for i in seeds]
        assert np.asarray(loaded[0].image).tolist() == draw((12, 20), seeds[0])[0].tolist()
    features = load_dataset("alice/mine", split="test", cache_dir=tmp_path / "cache").features
    assert all(isinstance(features[column], ImageFeature) for column in ("image", "mask"))


def test_datasets_that_cannot_be_had_are_a_sentence(hub, tmp_path, monkeypatch):
    push_folder(write_pictures(tmp_path / "secret"), "alice/secret", private=True)
    push_folder(write_pictures(tmp_path / "gated"), "alice/gated")
    hub.write(hub.repo("datasets", "alice/gated") / "settings.json", {"private": False, "gated": True})
    assert len(load_labeled_images("alice/secret", cache_dir=tmp_path / "cache")) == 6
    monkeypatch.setenv("HF_TOKEN", TOKENS["bob"])
    with pytest.raises(ValueError, match="alice/secret cannot be loaded: the Hub has none .*HF_TOKEN"):
        load_labeled_images("alice/secret", cache_dir=tmp_path / "bob")
    with pytest.raises(ValueError, match="alice/gated cannot be loaded: .*gated"):
        load_unlabeled("alice/gated", cache_dir=str(tmp_path / "bob"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match="does not take the token"):
        load_labeled_images("alice/secret", cache_dir=tmp_path / "nobody")


# Commands, as a user types them


def test_train_fit_evaluate_push_and_segment_with_names_on_the_hub(hub, tmp_path):
    push_folder(write_pictures(tmp_path / "pictures", count=8), "alice/work", private=True)
    tiny = dict(make_unet().config) | {"sample_size": 16}
    write_json(tmp_path / "tiny.json", {k: v for k, v in tiny.items() if not k.startswith("_")})
    result = run(
        *("diffuseseg", "train-ddpm", "--dataset_name", "alice/work", "--streaming", "--model_config"),
        *(tmp_path / "tiny.json", "--resolution", "16", "--train_batch_size", "2", "--max_train_steps", "2"),
        *("--num_validation_images", "2", "--num_samples", "0", "--push_to_hub", "--hub_model_id", "alice/work-ddpm"),
        *("--hub_private_repo", "--output_dir", tmp_path / "ddpm"),
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
    write_pictures(tmp_path / "pictures")
    monkeypatch.setenv("HF_TOKEN", TOKENS["bob"])
    result = run(
        *("diffuseseg", "train-ddpm", "--dataset_name", tmp_path / "pictures", "--max_train_steps", "2"),
        *("--push_to_hub", "--hub_model_id", "alice/not-bobs", "--output_dir", tmp_path / "out"),
        expect=1,
        **ONLINE,
    )
    assert "alice/not-bobs cannot be pushed to" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_no_token_is_ever_shown_or_written(hub, tmp_path, monkeypatch):
    token = TOKENS["alice"]
    folder = saved(tmp_path / "model")
    home = {"HF_HOME": str(tmp_path / "home"), "HF_DEBUG": "1", "DIFFUSERS_VERBOSITY": "debug", **ONLINE}
    said = []
    said.append(run("diffuseseg", "push", folder, "alice/hushed", "--private", "--num_samples", "0", **home))
    Image.fromarray(draw((16, 16), 3)[0]).save(tmp_path / "picture.png")
    segment = ("diffuseseg", "segment", tmp_path / "picture.png", "--model", "alice/hushed", "--output_dir")
    said.append(run(*segment, tmp_path / "masks", **home))
    hub.fail("POST", "/commit/", status=401)
    (folder / "samples.png").write_bytes((tmp_path / "picture.png").read_bytes())
    said.append(run("diffuseseg", "push", folder, "alice/hushed", expect=1, **home))
    monkeypatch.setenv("HF_TOKEN", token + "x")
    said.append(run(*segment, tmp_path / "other", expect=1, **{**home, "HF_HOME": str(tmp_path / "other-home")}))
    pipe = DiffuseSegPipeline.from_pretrained("alice/hushed", token=token, cache_dir=tmp_path / "cache")
    pipe.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError) as error, hub_refusals("It cannot be"):
        push_pipeline(pipe, "bob/hushed", token=token, num_samples=0)
    assert token not in f"{error.value} {error.value.__cause__!r}"
    for result in said:
        assert token not in result.stdout + result.stderr
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
    for content in hub.files("models", "alice/hushed").values():
        assert token.encode() not in content


def test_the_templates_are_part_of_the_installed_package():
    code = "from importlib import resources; f = resources.files('diffuseseg_diffusers.hub_cards')\n"
    code += "print(*sorted(p.name for p in f.iterdir() if p.suffix == '.md'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert result.stdout.split() == ["dataset_card.md", "model_card.md", "student_card.md"], result.stderr
