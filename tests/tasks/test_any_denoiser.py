# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The commands on pipelines of diffusers as users have them."""

import json

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi, ModelCard
from PIL import Image

from diffuseseg_diffusers import load_pipeline

from ..conftest import draw, run
from ..tiny_pipelines import sd3, stable_diffusion


MAKE = {"stable-diffusion": stable_diffusion, "sd3": sd3}
SHORT = ("--recipe", "fast", "--num_members", "2", "--resolution", "16", "24")


@pytest.fixture
def labelled(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(4):
        image, mask = draw((32, 48), i, 3)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{i}.png")
    (tmp_path / "data" / "id2label.json").write_text(json.dumps(["sky", "disc", "bar"]))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["stable-diffusion", pytest.param("sd3", marks=pytest.mark.slow)])
def test_taps_fit_segment_and_generate(name, labelled, tmp_path):
    base, head, out = tmp_path / "base", tmp_path / "head", tmp_path / "out"
    MAKE[name]().save_pretrained(base)
    listed = run("diffuseseg", "taps", base, "--resolution", "16", "24", fresh=name == "sd3").stdout
    assert "share of a pass" in listed and ("attn (its input)" in listed) == (name == "sd3")
    given = ("--model", base, "--dataset_name", labelled, *SHORT, "--prompt", "a face", "--noise_levels", "0.2", "1")
    run("diffuseseg", "fit", *given, "--output_dir", head)
    assert sorted(p.name for p in head.iterdir() if p.name[0] != ".") == [
        "head_training.json",
        "model_index.json",
        "segmentation_head",
    ]
    run("diffuseseg", "segment", labelled / "images", "--model", head, "--output_dir", out / "masks")
    mask = np.asarray(Image.open(out / "masks" / "0_mask.png"))
    pipe = load_pipeline(head, device="cpu")
    assert np.array_equal(mask, pipe.segment([labelled / "images" / "0.png"], output_type="np").masks[0])
    (tmp_path / "prompts.txt").write_text("a face\n\na house\n")
    sampled = ("--num_samples", "4", "--batch_size", "2", "--num_inference_steps", "2", "--resolution", "16", "24")
    prompts = ("--prompts_file", tmp_path / "prompts.txt", "--drop_uncertain", "0")
    run("diffuseseg", "generate", "--model", head, *sampled, *prompts, "--output_dir", out / "data")
    rows = load_dataset(str(out / "data"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["prompt"] == ["a face", "a house"] * 2 and rows[0]["image"].size == (24, 16) == rows[0]["mask"].size
    found = pipe.segment([rows[1]["image"]], output_type="np").masks[0]
    assert (np.asarray(rows[1]["mask"]) == found).mean() > 0.9  # of eight bits, and so almost the same
    before = [(r["image"].tobytes(), r["mask"].tobytes()) for r in rows]
    (out / "data" / "generation.json").unlink()
    run("diffuseseg", "generate", "--model", head, *sampled, *prompts, "--output_dir", out / "again")
    again = load_dataset(str(out / "again"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [(r["image"].tobytes(), r["mask"].tobytes()) for r in again] == before
    (tmp_path / "prompts.txt").write_text("a face\na garden\n")
    given = ("--model", head, *sampled, *prompts, "--output_dir", out / "again")
    assert "the contents of --prompts_file differ" in run("diffuseseg", "generate", *given, expect=1).stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKE)
def test_a_head_is_pushed_without_its_base_and_comes_back_with_it(name, hub, labelled, tmp_path):
    base = f"alice/{name}"
    MAKE[name]().save_pretrained(tmp_path / "base")
    HfApi().create_repo(base)
    HfApi().upload_folder(repo_id=base, folder_path=tmp_path / "base")
    given = ("--model", base, "--dataset_name", labelled, *SHORT, "--cache_dir", tmp_path / "cache")
    run("diffuseseg", "fit", *given, "--output_dir", tmp_path / "head")
    said = run("diffuseseg", "push", tmp_path / "head", f"alice/{name}-head", fresh=True, HF_HUB_OFFLINE="0")
    assert "Pushed:" in said.stdout
    files = HfApi().list_repo_files(f"alice/{name}-head")
    assert sorted(set(files) - {".gitattributes"}) == [
        "README.md",
        "model_index.json",
        "segmentation_head/config.json",
        "segmentation_head/diffusion_pytorch_model.safetensors",
    ]
    card = ModelCard.load(f"alice/{name}-head")
    assert card.data.base_model == base and f"A segmentation head on [{base}]" in card.text
    config = json.loads((tmp_path / "head" / "segmentation_head" / "config.json").read_text())
    assert config["base"]["model"] == base and config["base"]["revision"] == HfApi().model_info(base).sha
    pushed = load_pipeline(f"alice/{name}-head", device="cpu", cache_dir=tmp_path / "other")
    own = load_pipeline(tmp_path / "head", device="cpu", cache_dir=tmp_path / "cache")
    masks = [p.segment([labelled / "images" / "0.png"], output_type="np").masks[0] for p in (pushed, own)]
    assert np.array_equal(*masks)


def test_a_head_on_a_local_base_is_not_pushed_and_options_that_do_not_fit_are_refused(labelled, tmp_path, hub):
    stable_diffusion().save_pretrained(tmp_path / "base")
    given = ("--model", tmp_path / "base", "--dataset_name", labelled, *SHORT)
    run("diffuseseg", "fit", *given, "--output_dir", tmp_path / "head")
    said = run("diffuseseg", "push", tmp_path / "head", "alice/head", expect=1).stderr
    assert "which nobody else can fetch; push the base to the Hub" in said
    for wrong, message in (
        (("--resolution", "17", "24"), "multiples of 2, got 17 × 24"),
        (("--blocks", "up_blocks.7"), "no module 'up_blocks.7'"),
        (("--noise_levels", "0"), "--noise_levels must be above 0"),
        (("--max_bytes", "100"), "more than --max_bytes 100"),
    ):
        refused = run("diffuseseg", "fit", *given, *wrong, "--output_dir", tmp_path / "none", expect=1)
        assert message in refused.stderr and "Traceback" not in refused.stderr
    sampled = ("--num_samples", "2", "--output_dir", tmp_path / "none")
    for wrong, message in (
        ((), "generates from prompts; give --prompt or --prompts_file"),
        (("--prompts_file", tmp_path / "nowhere"), "cannot be read"),
    ):
        refused = run("diffuseseg", "generate", "--model", tmp_path / "head", *wrong, *sampled, expect=1)
        assert message in refused.stderr and "Traceback" not in refused.stderr
