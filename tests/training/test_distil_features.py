# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A denoiser's features in one clean pass, for every family, as any model is used."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline
from PIL import Image

from diffuseseg_diffusers import AutoDiffuseSegPipeline, fit_segmentation_head, load_pipeline
from diffuseseg_diffusers.features.noise import clean_scheduler, noise_schedule, sees_no_noise

from ..conftest import QUICK, draw, drawn_dataset, make_pipeline, run
from ..tiny_pipelines import FAMILIES


RUN = ("--train_batch_size", "4", "--mixed_precision", "no", "--dataloader_num_workers", "0", "--lr_warmup_steps", "2")
FASTER = ("--learning_rate", "1e-3", "--blocks", "1", "2")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(40):
        Image.fromarray(draw((16, 16), i, channels=3)[0]).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "ddpm"
    pipe = make_pipeline(in_channels=3, out_channels=3)
    DDPMPipeline(pipe.unet, pipe.scheduler).save_pretrained(folder)
    return folder


def distil(model, images, out, *more, **kwargs):
    given = ("--model", model, "--unlabeled_dataset_name", images, *RUN, *FASTER, "--output_dir", out)
    return run("diffuseseg", "distil-features", *given, *more, OMP_NUM_THREADS="1", **kwargs)


@pytest.fixture(scope="module")
def distilled(ddpm, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "out"
    said = distil(ddpm, images, out, "--max_train_steps", "60", "--noise", "fresh", fresh=True).stdout
    assert "Squared error on held-out images" in said and "60 steps" in said
    assert f"Next: `diffuseseg fit --model {out} --dataset_name DATA --output_dir OUT`." in said
    assert "Distilled are blocks 1 2 at timesteps 10 600, fresh noise, 16 × 16 pixels." in said
    return out


def test_clean_images_are_distilled_too_and_leave_less_unexplained(distilled, ddpm, images, tmp_path):
    steps = ("--max_train_steps", "60", "--learning_rate", "3e-4")
    said = distil(ddpm, images, tmp_path / "out", *steps).stdout
    assert "Distilled are blocks 1 2 at timesteps 0 50, clean images, 16 × 16 pixels." in said
    distil(ddpm, images, tmp_path / "out", *steps, "--timesteps", "100", "500", "--overwrite")
    found = [json.loads((folder / "training_state.json").read_text()) for folder in (distilled, tmp_path / "out")]
    assert better(tmp_path / "out") and sum(found[1]["errors"]) < sum(found[0]["errors"])


def better(folder) -> bool:
    """Whether less is left unexplained than by the best linear maps of the copy as it began."""
    found = json.loads((folder / "training_state.json").read_text())
    before, after = (np.mean(found[name]) for name in ("errors_before", "errors"))
    return after < before


def test_the_schedule_of_a_distilled_denoiser_adds_no_noise():
    schedule = noise_schedule(clean_scheduler())
    images = torch.randn(2, 1, 4, 4)
    assert (schedule.lowest, schedule.highest) == (0, 0)
    assert torch.equal(schedule.add_noise(images, torch.randn(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)), images)


def test_what_is_distilled_is_nearer_to_its_teacher_and_is_used_like_any_model(distilled, ddpm, images, tmp_path):
    assert better(distilled)
    found = json.loads((distilled / "training_state.json").read_text())
    assert len(found["errors"]) == 2 * 2  # two timesteps, two blocks
    pipe = DiffusionPipeline.from_pretrained(distilled, use_safetensors=True)
    assert sees_no_noise(pipe.scheduler)
    own = load_pipeline(distilled)
    own.segmentation_head = fit_segmentation_head(own, drawn_dataset(3, channels=3), recipe=QUICK, num_members=2)
    assert list(own.segmentation_head.config.timesteps) == [0]
    own.save_pretrained(tmp_path / "fitted")
    again = load_pipeline(tmp_path / "fitted")
    picture = drawn_dataset(1, channels=3, seed=9)[0].image
    one, other = (p.segment(picture, output_type="np").masks for p in (own, again))
    assert np.array_equal(one, other)


def test_the_command_line_fits_and_segments_with_it(distilled, images, tmp_path):
    for place in ("data/train/images", "data/train/masks"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(draw((16, 16), i, channels=3)["masks" in place]).save(tmp_path / place / f"{i}.png")
    fitting = ("--model", distilled, "--dataset_name", tmp_path / "data")
    for given in (("--recipe", "default"), ("--recipe", "best"), ("--blocks", "1", "3"), ("--blocks", "auto")):
        said = run("diffuseseg", "fit", *fitting, *given, "--output_dir", tmp_path / "none", expect=1)
        assert "was distilled at blocks 1 2, and" in said.stderr and not (tmp_path / "none").exists()
    fitting += ("--recipe", "default", "--blocks", "1", "2")
    run("diffuseseg", "fit", *fitting, "--output_dir", tmp_path / "model")
    run("diffuseseg", "segment", images, "--model", tmp_path / "model", "--output_dir", tmp_path / "masks")
    assert len(list((tmp_path / "masks").rglob("*.png"))) >= 40
    for given, message in (
        (("--noise", "shared"), "sees no noise; leave --noise shared out"),
        (("--noise_levels", "0.1"), "This model sees no noise; leave `noise_levels` out"),
        (("--timesteps", "200"), "sees no noise and knows timestep 0 alone, got 200; leave them out"),
    ):
        said = run("diffuseseg", "fit", *fitting, *given, "--output_dir", tmp_path / "none", expect=1)
        assert message in said.stderr and not (tmp_path / "none").exists()


def test_the_weights_that_are_saved_are_others_and_its_files_are_replaced(distilled, ddpm, images, tmp_path):
    before, after = (DDPMPipeline.from_pretrained(place).unet.state_dict() for place in (ddpm, distilled))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    FAMILIES["Stable Diffusion"][0]().save_pretrained(tmp_path / "base")
    how = ("--max_train_steps", "2", "--resolution", "16", "--gradient_accumulation_steps", "2")
    for seed in ("0", "1"):
        distil(tmp_path / "base", images, tmp_path / "out", *how, "--seed", seed, "--overwrite")
    assert (tmp_path / "out" / "text_encoder").is_dir()
    for name in ("text_encoder/model_mine.safetensors", "text_encoder/vocab.json", "scheduler/tokenizer.json"):
        (tmp_path / "out" / name).write_text("mine")
        said = distil(tmp_path / "base", images, tmp_path / "out", *how, "--seed", "2", "--overwrite", expect=1)
        assert name in said.stderr and (tmp_path / "out" / name).read_text() == "mine"
        (tmp_path / "out" / name).unlink()


def test_it_does_not_generate_and_is_not_distilled_again(distilled, images, tmp_path):
    with pytest.raises(ValueError, match="segments, and cannot generate"):
        load_pipeline(distilled)(batch_size=1, num_inference_steps=1)
    said = distil(distilled, images, tmp_path / "twice", expect=1)
    assert "was distilled already; give the model that it was distilled from" in said.stderr
    assert not (tmp_path / "twice").exists()


def test_a_run_that_was_cut_off_resumes_with_the_same_bits(ddpm, images, tmp_path):
    own = shutil.copytree(images, tmp_path / "images")
    constant = ("--random_flip", "--use_ema", "--validation_steps", "2", "--gradient_checkpointing")
    constant += ("--lr_scheduler", "constant")  # others depend on the number of steps
    for name, steps in (("whole", ("6",)), ("parts", ("3", "6"))):
        for limit in steps:
            distil(ddpm, own, tmp_path / name, *constant, "--max_train_steps", limit)
    one, other = (DDPMPipeline.from_pretrained(tmp_path / name).unet.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    records = [json.loads((tmp_path / name / "training_state.json").read_text()) for name in ("whole", "parts")]
    assert records[0]["errors"] == records[1]["errors"] and records[0]["errors_before"] == records[1]["errors_before"]
    Image.fromarray(draw((16, 16), 99, channels=3)[0]).save(own / "03.png")
    said = distil(ddpm, own, tmp_path / "whole", *constant, "--max_train_steps", "9", expect=1)
    assert "the contents of --dataset_name differ" in said.stderr


QUICKLY = ("consistency", "SDXL", "DiT", "SD3")  # DiT with adapters


@pytest.mark.parametrize(
    "family", [one if one in QUICKLY else pytest.param(one, marks=pytest.mark.slow) for one in FAMILIES]
)
def test_every_family_is_distilled_saved_and_loaded(family, images, tmp_path):
    make, _ = FAMILIES[family]
    base = make()
    base.save_pretrained(tmp_path / "base")
    side = 32 if family == "Sana" else 16  # Flux and PixArt are made for large images
    # Linear maps explain random transformers nearly in full: with noise, or in large steps, the gain would not show.
    steps = ("--max_train_steps", "30", "--resolution", str(side), "--noise", "none", "--learning_rate", "3e-5")
    steps += ("--timesteps", *(("5", "30") if family == "consistency" else ("10", "600")))
    if list(FAMILIES).index(family) % 2:
        steps += ("--rank", "8", "--learning_rate", "1e-3")
    distil(tmp_path / "base", images, tmp_path / "out", *steps)
    assert better(tmp_path / "out")
    pipe = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "out")
    dataset = drawn_dataset(3, channels=3)
    reads = dict(blocks=[1, 2], size=(side, side))
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2, **reads)
    pipe.save_pretrained(tmp_path / "head")
    again = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "head")
    one, other = (p.segment(dataset[0].image, output_type="np").masks for p in (pipe, again))
    assert np.array_equal(one, other)


def test_what_does_not_fit_is_a_sentence(ddpm, images, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(images / "00.png", few)
    for given, message in (
        ((ddpm, few), "No images can be held out to measure on"),
        ((ddpm, images, "--rank", "2", "--use_ema"), "leave --use_ema or --rank out"),
        ((ddpm, images, "--compile"), "leave --compile out"),
        ((ddpm, images, "--input_channels", "0"), "leave them out"),
        ((ddpm, images, "--resolution", "17"), "the nearest is 16 × 16"),
        ((ddpm, images, "--blocks", "77"), "Block 77 does not exist"),
        (("general", images, "--random_flip"), "`fit` reads general at the size of the pictures or tiles"),
        ((ddpm, images, "--timesteps", "25"), "Clean images at timestep 25 are read in one pass already"),
        ((ddpm, images, "--prompt", "a face"), "takes no prompt"),
        ((tmp_path / "none", images), "There is no folder"),
    ):
        said = distil(given[0], given[1], tmp_path / "out", *given[2:], expect=1)
        assert message in said.stderr and "Traceback" not in said.stderr and not (tmp_path / "out").exists()


def test_adapters_are_trained_alone_and_merged_at_the_end(distilled, ddpm, images, tmp_path):
    out = tmp_path / "out"
    for limit in ("30", "60"):  # resumed once
        distil(ddpm, images, out, "--max_train_steps", limit, "--rank", "4", "--lr_scheduler", "constant")
    assert better(out)
    more = ("--max_train_steps", "60", "--lr_scheduler", "constant")
    for other, message in (
        ((), "rank is 4 there and None here"),
        (("--rank", "4", "--timesteps", "10", "500"), "teacher is"),
    ):
        said = distil(ddpm, images, out, *more, *other, expect=1)
        assert "is of another model: " in said.stderr and message in said.stderr
    distil(ddpm, images, tmp_path / "again", "--max_train_steps", "60", "--rank", "4", "--lr_scheduler", "constant")
    files = [folder / "unet" / "diffusion_pytorch_model.safetensors" for folder in (out, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    whole, own = (DDPMPipeline.from_pretrained(folder).unet.state_dict() for folder in (distilled, out))
    assert whole.keys() == own.keys()
    start = DDPMPipeline.from_pretrained(ddpm).unet.state_dict()
    changed = {name for name in start if not torch.equal(start[name], own[name])}
    assert any("conv" in name for name in changed) and any("to_q" in name for name in changed)
    assert not any("norm" in name or name.endswith("bias") for name in changed)
    low = own["up_blocks.0.resnets.0.conv1.weight"] - start["up_blocks.0.resnets.0.conv1.weight"]
    assert torch.linalg.matrix_rank(low.flatten(1), rtol=1e-3) <= 4
