# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""From images to an autoencoder, and to denoisers of its latents that diffusers loads and heads read."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from PIL import Image

from diffuseseg_diffusers import AutoDiffuseSegPipeline, fit_segmentation_head
from diffuseseg_diffusers.datasets.unlabeled import UnlabeledImages, load_unlabeled
from diffuseseg_diffusers.diffusion.latents import encode_images, load_autoencoder

from ..conftest import QUICK, draw, drawn_dataset, run


RUN = ("--train_batch_size", "4", "--mixed_precision", "no", "--dataloader_num_workers", "0", "--lr_warmup_steps", "2")
SMALL = ("--latent_channels", "2", "--downsample", "2", "--base_channels", "8", "--learning_rate", "5e-3")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        Image.fromarray(draw((16, 16), i)[0]).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def autoencoder(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("vae") / "out"
    given = ("--train_data_dir", images, "--resolution", "16", *SMALL, *RUN, "--max_train_steps", "40")
    run("diffuseseg", "train-autoencoder", *given, "--output_dir", out, fresh=True, OMP_NUM_THREADS="1")
    return out


def test_the_autoencoder_is_diffusers_own_with_latents_of_deviation_one(autoencoder, images):
    vae = AutoencoderKL.from_pretrained(autoencoder, use_safetensors=True)
    dataset, column = load_unlabeled(data_dir=str(images))
    pixels, _ = UnlabeledImages(dataset, column, (16, 16), 1).load()
    latents = encode_images(vae, pixels)
    assert latents.shape == (24, 2, 8, 8) and 0.8 < latents.std() < 1.2
    with torch.no_grad():
        expected = vae.encode(pixels.float() / 127.5 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert torch.allclose(latents, expected, atol=1e-5)
    both = encode_images(vae, pixels, mirrored=True)
    assert torch.equal(both[:24], latents) and torch.allclose(both[24:], encode_images(vae, pixels.flip(-1)), atol=1e-5)
    found = json.loads((autoencoder / "training_state.json").read_text())
    assert found["reconstruction"]["psnr"] > 12 and found["step"] == 40
    assert list((autoencoder / "samples").glob("step-*.png"))


def test_a_run_that_was_cut_off_resumes_with_the_same_bits(images, tmp_path):
    own = shutil.copytree(images, tmp_path / "images")
    given = ("--train_data_dir", own, "--resolution", "16", *SMALL, *RUN, "--num_samples", "0")
    for name, steps in (("whole", ("6",)), ("parts", ("3", "6"))):
        for limit in steps:
            run("diffuseseg", "train-autoencoder", *given, "--max_train_steps", limit, "--output_dir", tmp_path / name)
    one, other = (AutoencoderKL.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    wrong = run("diffuseseg", "train-autoencoder", *given, "--max_train_steps", "9", "--kl_weight", "1", *(
        "--output_dir", tmp_path / "whole"), expect=1)  # fmt: skip
    assert "kl_weight 1e-06 (now 1.0)" in wrong.stderr
    Image.fromarray(draw((16, 16), 99)[0]).save(own / "03.png")
    given = (*given, "--max_train_steps", "9", "--output_dir", tmp_path / "whole")
    assert "the contents of --train_data_dir differ" in run("diffuseseg", "train-autoencoder", *given, expect=1).stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_denoisers_of_latents_are_plain_pipelines_that_draw_resume_and_carry_heads(kind, autoencoder, images, tmp_path):
    model = {"unet": {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4},
             "dit": {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3}}[kind]  # fmt: skip
    if kind == "unet":
        model |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    (tmp_path / "model.json").write_text(json.dumps(model))
    given = ("--train_data_dir", images, "--resolution", "16", "--vae", autoencoder, "--denoiser", kind, *RUN)
    given += ("--model_config", tmp_path / "model.json", "--use_ema", "--random_flip", "--num_samples", "2")
    given += ("--num_inference_steps", "2")
    for name, steps in (("whole", ("6",)), ("parts", ("3", "6"))):
        for limit in steps:
            run("diffuseseg", "train-ddpm", *given, "--max_train_steps", limit, "--output_dir", tmp_path / name)
    component = {"unet": "unet", "dit": "transformer"}[kind]
    pipes = [DiffusionPipeline.from_pretrained(tmp_path / name, use_safetensors=True) for name in ("whole", "parts")]
    one, other = (getattr(pipe, component).state_dict() for pipe in pipes)
    assert all(torch.equal(v, other[k]) for k, v in one.items())
    call = {"unet": {"batch_size": 2}, "dit": {"class_labels": [1000] * 2, "guidance_scale": 1.0}}[kind]
    assert pipes[0](**call, num_inference_steps=2, output_type="np").images.shape == (2, 16, 16, 1)
    assert len(list((tmp_path / "whole" / "samples").glob("*.png"))) == 1
    pipe = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "whole")
    pipe.segmentation_head = fit_segmentation_head(pipe, drawn_dataset(3), recipe=QUICK, num_members=2)
    assert pipe.segment([drawn_dataset(3)[0].image], output_type="np").masks[0].shape == (16, 16)


def test_what_does_not_fit_is_a_sentence(autoencoder, images, tmp_path):
    given = ("--train_data_dir", images, *RUN, "--max_train_steps", "2", "--output_dir", tmp_path / "none")
    for command, more, message in (
        ("train-ddpm", ("--vae", autoencoder, "--resolution", "15"), "multiples of 2, got 15 × 15; the nearest is"),
        ("train-ddpm", ("--denoiser", "dit"), "A transformer denoises latents; give --vae"),
        ("train-ddpm", ("--vae", tmp_path), "holds no autoencoder"),
        ("train-ddpm", ("--vae", autoencoder, "--denoiser", "dit", "--resolution", "16", "24"), "takes squares"),
        ("train-ddpm", ("--vae", autoencoder, "--pretrained", tmp_path), "leave --pretrained out"),
        ("train-autoencoder", ("--resolution", "15"), "--resolution must be a multiple of --downsample 4"),
    ):
        said = run("diffuseseg", command, *given, *more, expect=1)
        assert message in said.stderr and "Traceback" not in said.stderr and not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load_autoencoder(str(tmp_path))
