# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.diffusion.objective import (
    denoising_loss,
    denoising_losses,
    draw_step,
    min_snr_weights,
    predicted_noise,
    sample_images,
)
from diffuseseg_diffusers.diffusion.run import averaged_copy
from diffuseseg_diffusers.diffusion.unets import PREDICTION_TYPES

from ..conftest import make_unet


CPU = torch.device("cpu")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), position=st.integers(0, 10**9), total=st.integers(1, 64))
def test_draws_depend_on_seed_and_position_and_are_shared_out_by_rows(seed, position, total):
    noise, timesteps, flips = draw_step(seed, position, total, slice(0, total), (1, 2, 2), 1000, CPU)
    parts = [draw_step(seed, position, total, slice(i, i + 1), (1, 2, 2), 1000, CPU) for i in range(total)]
    assert torch.equal(torch.cat([p[0] for p in parts]), noise)
    assert torch.equal(torch.cat([p[1] for p in parts]), timesteps)
    assert torch.equal(torch.cat([p[2] for p in parts]), flips)
    # one timestep from each of `total` equal parts
    assert sorted((timesteps.double() * total / 1000 + 1e-9).long().tolist()) == pytest.approx(range(total), abs=1)
    other = draw_step(seed, position + 1, total, slice(0, total), (1, 2, 2), 1000, CPU)[0]
    assert not torch.equal(other, noise)


def test_timesteps_are_uniform_and_noise_is_normal():
    drawn = [draw_step(0, i, 8, slice(0, 8), (1, 4, 4), 1000, CPU) for i in range(2000)]
    counts = torch.cat([d[1] for d in drawn]).bincount(minlength=1000).view(10, 100).sum(1) / 16000
    assert (counts - 0.1).abs().max() < 0.01
    noise = torch.cat([d[0] for d in drawn])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs(torch.cat([d[2] for d in drawn]).float().mean() - 0.5) < 0.02


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_the_loss_is_zero_for_the_right_answer_of_each_kind(kind):
    scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="squaredcos_cap_v2")
    torch.manual_seed(0)
    images, noise = torch.rand(6, 1, 4, 4) * 2 - 1, torch.randn(6, 1, 4, 4)
    timesteps = torch.tensor([0, 10, 100, 500, 900, 998])
    alpha = scheduler.alphas_cumprod[timesteps][:, None, None, None]
    right = {
        "epsilon": noise,
        "sample": images,
        "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * images,
    }[kind]
    for gamma in (None, 5.0):
        assert denoising_loss(scheduler, right, images, noise, timesteps, gamma) < 1e-10
    noisy = scheduler.add_noise(images, noise, timesteps)
    torch.testing.assert_close(predicted_noise(scheduler, right, noisy, timesteps), noise, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_min_snr_weights_are_those_of_the_paper(kind):
    """Hang et al., section 3.4: weighting the error of the image by min(SNR, γ), whatever is predicted."""
    scheduler = DDPMScheduler(prediction_type=kind)
    torch.manual_seed(0)
    images, noise = torch.rand(5, 1, 2, 2, dtype=torch.float64) * 2 - 1, torch.randn(5, 1, 2, 2, dtype=torch.float64)
    output = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    timesteps = torch.tensor([50, 200, 400, 600, 800])
    alpha = scheduler.alphas_cumprod.double()[timesteps][:, None, None, None]
    noisy = alpha.sqrt() * images + (1 - alpha).sqrt() * noise
    image = {
        "epsilon": (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt(),
        "sample": output,
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * output,
    }[kind]
    target = {"epsilon": noise, "sample": images, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * images}
    snr = (alpha / (1 - alpha)).flatten()
    expected = snr.clamp(max=5) * (image - images).square().mean((1, 2, 3))
    got = min_snr_weights(scheduler, timesteps, 5.0) * (output - target[kind]).square().mean((1, 2, 3))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_held_out_losses_do_not_depend_on_the_batch_size_and_see_every_range(capsys):
    unet, scheduler = make_unet(), DDPMScheduler()
    pixels = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    losses = denoising_losses(unet, scheduler, pixels, batch_size=10)
    torch.testing.assert_close(denoising_losses(unet, scheduler, pixels, batch_size=1000), losses, rtol=1e-4, atol=1e-5)
    assert losses.shape == (10,) and not torch.equal(denoising_losses(unet, scheduler, pixels, seed=1), losses)
    assert denoising_losses(unet, scheduler, pixels[:0]).isnan().all() and not capsys.readouterr().err
    assert torch.equal(denoising_losses(unet, scheduler, pixels, batch_size=10, progress=True), losses)
    assert "Measuring" in capsys.readouterr().err  # which takes minutes with a large model on a CPU
    seen = []
    original = UNet2DModel.forward
    try:
        UNet2DModel.forward = lambda self, x, t, **k: (seen.append(t), original(self, x, t, **k))[1]
        denoising_losses(unet, scheduler, pixels)
    finally:
        UNet2DModel.forward = original
    assert (torch.cat(seen).view(-1, 10) // 100 == torch.arange(10)).all()


def test_samples_depend_on_the_seed_alone():
    unet, scheduler = make_unet(sample_size=(16, 24)), DDPMScheduler(prediction_type="v_prediction")
    images = sample_images(unet, scheduler, 2, 3, seed=0)
    assert [i.size for i in images] == [(24, 16)] * 2 and images[0].mode == "L"
    assert images[0].tobytes() == sample_images(unet, scheduler, 2, 3, seed=0)[0].tobytes()
    assert images[0].tobytes() != sample_images(unet, scheduler, 2, 3, seed=1)[0].tobytes()


def test_the_copy_to_look_at_leaves_the_model_alone():
    unet = make_unet().train()
    copy = averaged_copy(unet, None)
    assert not copy.training and unet.training and all(p.requires_grad for p in unet.parameters())
    for a, b in zip(copy.parameters(), unet.parameters()):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
