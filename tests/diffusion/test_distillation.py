# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from diffuseseg_diffusers import AutoDiffuseSegPipeline
from diffuseseg_diffusers.diffusion.distillation import (
    CleanPass,
    StandardizedMap,
    freeze_unread,
    with_clean_copy,
)
from diffuseseg_diffusers.diffusion.objective import to_model_range

from ..conftest import make_pipeline
from ..tiny_pipelines import sdxl


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_clean_pass(images, **how):
    pipe = make_pipeline()
    return pipe, CleanPass(with_clean_copy(pipe), pipe.features([1, 2], [50, 150], **how), images)


def test_errors_are_in_units_of_the_variance_and_zero_where_a_linear_map_explains_all(images):
    _, clean = make_clean_pass(images, clean=True)
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(1))
    y = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2)) + 3
    found, target = (z.T.reshape(1, 6, 40, 50) for z in (x, y))
    assert float(StandardizedMap(x, y)(found, target)) < 1e-4
    assert abs(float(StandardizedMap(torch.zeros_like(x), y)(0 * found, target)) - 1) < 1e-4
    assert len(clean.maps) == 2 * 2  # timesteps and blocks


def test_the_denoiser_itself_comes_nearer_to_its_teacher_and_only_what_is_read_learns(images):
    """The maps stay as they begin."""
    pipe, clean = make_clean_pass(images, clean=True)
    before = {name: p.clone() for name, p in pipe.unet.named_parameters()}
    freeze_unread(clean)
    learning = {name for name, p in clean.denoiser.named_parameters() if p.requires_grad}
    assert any(name.startswith("up_blocks.0") for name in learning)
    assert not any(name.startswith(("conv_out", "conv_norm_out", "up_blocks.1.resnets.1")) for name in learning)
    optimizer = torch.optim.Adam([p for p in clean.denoiser.parameters() if p.requires_grad], lr=2e-4)
    accelerator = Accelerator(cpu=True)
    start = sum(clean.measure(clean.student, images, accelerator))
    for step in range(60):
        given = to_model_range(images[step % 5 * 8 :][:8], torch.device("cpu"))
        loss = clean(given, clean.targets(given, range(8 * step, 8 * step + 8))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(clean.measure(clean.student, images, accelerator)) < 0.9 * start
    assert all(torch.equal(p, before[name]) for name, p in pipe.unet.named_parameters()), "the teacher stays"


def test_targets_of_the_mirror_image_are_mirrored_back_and_depend_on_the_seed_of_each_image(images):
    _, clean = make_clean_pass(images, clean=True)
    given = to_model_range(images, torch.device("cpu"))
    for one, other in zip(clean.targets(given, range(40), mirrored=True), clean.targets(given.flip(-1), range(40))):
        torch.testing.assert_close(one, other.flip(-1))
    _, noisy = make_clean_pass(images, share_noise=False)
    whole, part = noisy.targets(given, range(40))[0], noisy.targets(given[30:], range(30, 40))[0]
    torch.testing.assert_close(whole[30:], part, atol=1e-5, rtol=1e-4)


def test_what_is_learned_with_mirror_images_is_the_mean_of_both(images):
    pipe, plain = make_clean_pass(images, clean=True)
    mean = CleanPass(with_clean_copy(pipe), plain.teacher, images, mirror=True)
    given, seeds = to_model_range(images[:4], torch.device("cpu")), range(4)
    pairs = zip(
        mean.mean_targets(given, seeds), plain.teacher(given).activations, plain.teacher(given.flip(-1)).activations
    )
    for found, one, other in pairs:
        torch.testing.assert_close(found, (one + other.flip(-1)) / 2, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(found, one, atol=1e-3)
    assert all(torch.equal(x, y) for x, y in zip(plain.mean_targets(given, seeds), plain.targets(given, seeds)))


def test_nothing_but_the_copy_and_the_maps_gets_gradients_and_settings_of_the_pipeline_stay():
    base = sdxl()
    base.register_to_config(force_zeros_for_empty_prompt=False)
    pipe = AutoDiffuseSegPipeline.from_pipe(base)
    made = with_clean_copy(pipe)
    assert made.config.force_zeros_for_empty_prompt is False
    teacher = pipe.features([1, 2], [50, 150], share_noise=False)
    images = torch.randint(0, 256, (4, 3, *teacher.size), dtype=torch.uint8)
    clean = CleanPass(made, teacher, images)
    clean(
        to_model_range(images, torch.device("cpu")), clean.targets(torch.zeros(4, 3, *teacher.size), range(4))
    ).sum().backward()
    parts = [part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]
    assert not any(p.grad is not None for part in parts for p in part.parameters())
    assert any(p.grad is not None for p in clean.denoiser.parameters())


def test_a_distilled_model_is_no_start_for_a_ddpm_nor_for_another_distillation(images, tmp_path):
    from diffuseseg_diffusers import DistilFeaturesConfig, UserError
    from diffuseseg_diffusers.diffusion.distillation import teacher_features

    pipe = make_pipeline()
    pipe.scheduler = DDPMScheduler(trained_betas=[0.0], num_train_timesteps=1)
    config = DistilFeaturesConfig(model="MODEL", dataset_name="DATA", output_dir=tmp_path)
    with pytest.raises(UserError, match="MODEL was distilled already"):
        teacher_features(config, pipe)
