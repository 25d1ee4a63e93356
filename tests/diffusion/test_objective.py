# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.diffusion.checkpoints import read_log
from diffuseseg_diffusers.diffusion.objective import (
    averaged_unet,
    denoising_loss,
    denoising_losses,
    draw_step,
    min_snr_weights,
    predicted_noise,
    sample_images,
)
from diffuseseg_diffusers.diffusion.unets import PREDICTION_TYPES, PRESETS, make_unet, preset_config, read_model_config

from ..conftest import make_unet as make_test_unet


CPU = torch.device("cpu")


@settings(deadline=None, max_examples=40)
@given(size=st.sampled_from(list(PRESETS)), base_channels=st.integers(4, 160), channels=st.sampled_from([1, 3]))
def test_presets_have_groups_and_heads_that_divide(size, base_channels, channels):
    config = preset_config((size, size), channels, base_channels)
    for width in config["block_out_channels"]:
        assert width % config["norm_num_groups"] == 0 and width % config["attention_head_dim"] == 0
    assert config["norm_num_groups"] == 1 or base_channels >= 4 * config["norm_num_groups"]
    with torch.device("meta"):
        unet = make_unet(config)
    assert unet.config.in_channels == unet.config.out_channels == channels


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 128), (128, 128), (256, 256)])
def test_presets_run(size):
    unet = make_unet(preset_config(size, 1, 8)).eval()
    x = torch.zeros(1, 1, *size)
    with torch.no_grad():
        assert unet(x, 5).sample.shape == x.shape


def test_the_presets_for_32_and_256_pixels_are_those_of_the_paper():
    with torch.device("meta"):
        sizes = {s: sum(p.numel() for p in make_unet(preset_config((s, s), 3)).parameters()) for s in (32, 256)}
    assert sizes[32] == pytest.approx(35.7e6, rel=0.02) and sizes[256] == pytest.approx(113.7e6, rel=0.02)


def test_configs_that_make_no_unet_are_told():
    with pytest.raises(ValueError, match="multiples of 8, got 60 × 64; the nearest is 64 × 64"):
        make_unet(preset_config((60, 64), 1, 8))
    with pytest.raises(ValueError, match="20 channels do not divide into 8 groups.*1, 2, 4"):
        make_unet({**preset_config((16, 16), 1, 16), "block_out_channels": [20, 40, 40, 40], "norm_num_groups": 8})
    with pytest.raises(ValueError, match="does not take this config"):
        make_unet({"layers": 3})
    with pytest.raises(ValueError, match="3 channels in, 6 out"):
        make_unet({**preset_config((32, 32), 3, 8), "out_channels": 6})


def test_model_configs_are_read_from_files_and_folders(tmp_path):
    (tmp_path / "a.yaml").write_text("block_out_channels: [8, 16]\nnorm_num_groups: 4\nnorm_eps: 1e-5\n")
    (tmp_path / "a.json").write_text(
        '{"block_out_channels": [8, 16], "norm_num_groups": 4, "norm_eps": 1e-05, "_class_name": "x"}'
    )
    expected = {"block_out_channels": [8, 16], "norm_num_groups": 4, "norm_eps": 1e-5}
    assert read_model_config(tmp_path / "a.yaml") == read_model_config(tmp_path / "a.json") == expected
    unet = make_test_unet()
    unet.save_pretrained(tmp_path / "unet")
    for folder in (tmp_path, tmp_path / "unet"):
        assert tuple(read_model_config(folder)["block_out_channels"]) == unet.config.block_out_channels
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="found list"):
        read_model_config(tmp_path / "list.json")
    with pytest.raises(ValueError, match="neither a folder nor a Hub repository"):
        read_model_config(tmp_path / "nothing" / "here")


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
        assert denoising_loss(lambda *a, **k: (right,), scheduler, images, noise, timesteps, gamma) < 1e-10
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


def test_held_out_losses_do_not_depend_on_the_batch_size_and_see_every_range():
    unet, scheduler = make_test_unet(), DDPMScheduler()
    pixels = torch.randint(0, 256, (5, 1, 16, 16), dtype=torch.uint8)
    losses = denoising_losses(unet, scheduler, pixels, batch_size=10)
    torch.testing.assert_close(denoising_losses(unet, scheduler, pixels, batch_size=1000), losses, rtol=1e-4, atol=1e-5)
    assert losses.shape == (10,) and not torch.equal(denoising_losses(unet, scheduler, pixels, seed=1), losses)
    assert denoising_losses(unet, scheduler, pixels[:0]).isnan().all()
    seen = []
    original = UNet2DModel.forward
    try:
        UNet2DModel.forward = lambda self, x, t, **k: (seen.append(t), original(self, x, t, **k))[1]
        denoising_losses(unet, scheduler, pixels)
    finally:
        UNet2DModel.forward = original
    assert (torch.cat(seen).view(-1, 10) // 100 == torch.arange(10)).all()


def test_samples_depend_on_the_seed_alone():
    unet, scheduler = make_test_unet(sample_size=(16, 24)), DDPMScheduler(prediction_type="v_prediction")
    images = sample_images(unet, scheduler, 2, 3, seed=0)
    assert [i.size for i in images] == [(24, 16)] * 2 and images[0].mode == "L"
    assert images[0].tobytes() == sample_images(unet, scheduler, 2, 3, seed=0)[0].tobytes()
    assert images[0].tobytes() != sample_images(unet, scheduler, 2, 3, seed=1)[0].tobytes()


def test_the_copy_to_look_at_leaves_the_model_alone():
    unet = make_test_unet().train()
    copy = averaged_unet(unet, None)
    assert not copy.training and unet.training and all(p.requires_grad for p in unet.parameters())
    for a, b in zip(copy.parameters(), unet.parameters()):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()


def test_logs_end_at_the_checkpoint_and_at_half_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n')
    assert [e["step"] for e in read_log(path, 20)] == [10, 20]
    path.write_text('{"step": 10}\n{"st')
    assert [e["step"] for e in read_log(path, 20)] == [10]
    assert read_log(tmp_path / "none", 5) == []
