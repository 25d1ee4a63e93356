# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import io
import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from PIL import Image

from diffuseseg_diffusers.factory.sampling import (
    check_generates_masks,
    doubt_samples,
    generate_batch,
    scheduler_for,
)
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.seeds import mixed_seed
from diffuseseg_diffusers.pipelines.backbone import BackbonePipeline

from ..conftest import make_head, make_pipeline


def pipeline(share_noise=True, **config):
    pipe = make_pipeline(**config)
    pipe.segmentation_head = make_head(pipe, share_noise=share_noise)
    pipe.scheduler = scheduler_for("ddim", pipe.scheduler)
    return pipe


def opened(cell: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def test_a_sample_depends_on_the_seed_and_its_index_alone():
    pipe = pipeline()
    first = generate_batch(pipe, 0, 4, seed=7, num_inference_steps=3)
    second = generate_batch(pipe, 1, 4, seed=7, num_inference_steps=3)
    assert generate_batch(pipe, 1, 4, seed=7, num_inference_steps=3).equals(second)
    assert first["index"].to_pylist() + second["index"].to_pylist() == list(range(8))
    assert second["seed"].to_pylist() == [mixed_seed(7, i) for i in range(4, 8)]
    whole = generate_batch(pipe, 0, 8, seed=7, num_inference_steps=3)
    for a, b in zip(whole["image"].to_pylist(), [*first["image"].to_pylist(), *second["image"].to_pylist()]):
        assert np.abs(opened(a).astype(int) - opened(b)).max() <= 1  # another batch size changes rounding
    generator = torch.Generator().manual_seed(second["seed"][2].as_py())
    alone = pipe(generator=generator, num_inference_steps=3).images[0]
    assert np.abs(np.asarray(alone).astype(int) - opened(second["image"][2].as_py())).max() <= 1
    other = generate_batch(pipe, 0, 4, seed=8, num_inference_steps=3)
    assert opened(other["image"][0].as_py()).tolist() != opened(first["image"][0].as_py()).tolist()


def test_heads_fitted_with_fresh_noise_give_masks_that_are_functions_of_seed_and_index():
    pipe = pipeline(share_noise=False)
    batch = generate_batch(pipe, 1, 4, seed=7, num_inference_steps=2)
    assert generate_batch(pipe, 1, 4, seed=7, num_inference_steps=2).equals(batch)
    # In another place of a batch, and in a batch of another size, rounding may differ, the noise must not.
    whole = generate_batch(pipe, 0, 8, seed=7, num_inference_steps=2).slice(4)
    seeds = batch["seed"].to_pylist()[::-1]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    turned = pipe(4, generators, 2, output_type="np")
    for i in range(4):
        mask = opened(batch["mask"][i].as_py())
        assert (mask == opened(whole["mask"][i].as_py())).mean() > 0.97
        assert (mask == turned.masks[3 - i]).mean() > 0.97
    np.testing.assert_allclose(whole["uncertainty"].to_numpy(), batch["uncertainty"].to_numpy(), atol=1e-3)
    shared = generate_batch(pipeline(), 1, 4, seed=7, num_inference_steps=2)
    assert not np.allclose(shared["uncertainty"].to_numpy(), batch["uncertainty"].to_numpy(), atol=1e-3)


def test_a_batch_holds_masks_their_pixels_and_scores():
    table = generate_batch(pipeline(), 0, 3, seed=0, num_inference_steps=2)
    for row in table.to_pylist():
        mask = opened(row["mask"])
        assert mask.shape == (16, 16) and np.bincount(mask.ravel(), minlength=3).tolist() == row["pixels"]
        assert 0 <= row["uncertainty"] <= np.log(4)
    jpeg = generate_batch(pipeline(in_channels=3, out_channels=3), 0, 1, 0, 2, image_format="jpeg")
    assert Image.open(io.BytesIO(jpeg["image"][0].as_py()["bytes"])).format == "JPEG"
    assert Image.open(io.BytesIO(jpeg["mask"][0].as_py()["bytes"])).format == "PNG"


def test_masks_while_sampling_read_the_activations_of_the_steps_nearest_to_the_heads_timesteps():
    pipe = pipeline()
    noise = torch.Generator().manual_seed(1)
    seen = {}

    def watch(pipe, i, t, given):
        seen[t] = given["latents"]
        return {}

    passes = []
    handle = pipe.unet.register_forward_hook(lambda *_: passes.append(1))
    got = pipe(2, noise, 20, masks_while_sampling=True, output_type="pt", callback_on_step_end=watch)
    handle.remove()
    assert len(passes) == 20  # and none for the masks
    # Plainly: the samples before the steps at 51 and 151, through the U-Net at these timesteps.
    timesteps = pipe.scheduler.timesteps.tolist()
    nearest = [min(timesteps, key=lambda t: abs(t - wanted)) for wanted in pipe.segmentation_head.config.timesteps]
    extractor = pipe.head_extractor()
    activations = []
    with torch.no_grad(), extractor.reading() as tapped:
        for t in nearest:
            pipe.unet(seen[timesteps[timesteps.index(t) - 1]], t)
            activations += [tapped[block] for block in extractor.blocks]
    expected = pipe.segmentation_head.predict(activations)
    assert torch.equal(torch.stack(list(got.masks)), expected.labels)
    torch.testing.assert_close(got.uncertainty, expected.uncertainty)
    usual = pipe(2, torch.Generator().manual_seed(1), 20, output_type="pt")
    assert torch.equal(usual.images, got.images) and not torch.equal(usual.uncertainty, got.uncertainty)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler scales samples"):
        pipe(num_inference_steps=2, masks_while_sampling=True)


def test_samplers_keep_the_noise_schedule():
    scheduler = make_pipeline().scheduler
    assert scheduler_for("ddpm", scheduler) is scheduler
    assert isinstance(scheduler_for("ddim", scheduler), DDIMScheduler)
    solver = scheduler_for("dpmsolver++", scheduler)
    assert isinstance(solver, DPMSolverMultistepScheduler) and solver.config.algorithm_type == "dpmsolver++"
    assert torch.equal(solver.alphas_cumprod, scheduler.alphas_cumprod)


def test_models_that_give_no_masks_are_told(tmp_path):
    with pytest.raises(UserError, match="mine has no segmentation head"):
        check_generates_masks(make_pipeline(), "mine")
    with pytest.raises(UserError, match="generates none"):
        check_generates_masks(BackbonePipeline(None, None), "mine")


def test_samples_of_a_denoiser_that_saw_few_images_are_doubted(tmp_path):
    assert doubt_samples(str(tmp_path)) == "" == doubt_samples("user/model")
    for seen, doubted in ((2112, True), (170_944, False)):
        (tmp_path / "training_state.json").write_text(json.dumps({"images_seen": seen, "seconds": 66.0}))
        assert ("trained on 2,112 images in 1.1 minutes" in doubt_samples(str(tmp_path))) == doubted
