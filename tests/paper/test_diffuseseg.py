# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of github.com/harish-jhr/DiffuseSeg, of which a plain reading is here."""

import math

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import DDPMPipeline

from diffuseseg_diffusers import DecoderFeatureExtractor
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper.diffuseseg import convert_members, convert_unet
from diffuseseg_diffusers.pipelines.loading import load_pipeline

from ..conftest import draw, run


DOWN, MID, TIME = [16, 32, 48], [48, 48, 32], 24
CONFIG = {
    "model_params": {
        **{"im_channels": 3, "im_size": 16, "down_channels": DOWN, "mid_channels": MID, "down_sample": [True, True]},
        **{"time_emb_dim": TIME, "num_down_layers": 2, "num_mid_layers": 1, "num_up_layers": 2, "num_heads": 4},
    },
    "diffusion_params": {"num_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02},
}


def random_state() -> dict[str, torch.Tensor]:
    """Random weights under the names of DiffuseSeg's `Unet`."""
    torch.manual_seed(0)
    state = {}

    def layer(name, *shape):
        state[f"{name}.weight"] = torch.randn(*shape) / math.sqrt(math.prod(shape[1:]) or 1)
        state[f"{name}.bias"] = torch.randn(shape[0] if "up_sample" not in name else shape[1]) / 10

    def norm(name, channels):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels) / 10

    def level(name, inside, out, layers, attentions):
        for j in range(layers):
            first = inside if j == 0 else out
            norm(f"{name}.resnet_conv_first.{j}.0", first)
            layer(f"{name}.resnet_conv_first.{j}.2", out, first, 3, 3)
            layer(f"{name}.t_emb_layers.{j}.1", out, TIME)
            norm(f"{name}.resnet_conv_second.{j}.0", out)
            layer(f"{name}.resnet_conv_second.{j}.2", out, out, 3, 3)
            layer(f"{name}.residual_input_conv.{j}", out, first, 1, 1)
        for j in range(attentions):
            norm(f"{name}.attention_norms.{j}", out)
            state[f"{name}.attentions.{j}.in_proj_weight"] = torch.randn(3 * out, out) / math.sqrt(out)
            state[f"{name}.attentions.{j}.in_proj_bias"] = torch.randn(3 * out) / 10
            layer(f"{name}.attentions.{j}.out_proj", out, out)

    layer("t_proj.0", TIME, TIME)
    layer("t_proj.2", TIME, TIME)
    layer("conv_in", DOWN[0], 3, 3, 3)
    for i in range(2):
        level(f"downs.{i}", DOWN[i], DOWN[i + 1], 2, 2)
        layer(f"downs.{i}.down_sample_conv", DOWN[i + 1], DOWN[i + 1], 4, 4)
        level(f"mids.{i}", MID[i], MID[i + 1], 2, 1)
        level(f"ups.{i}", 2 * DOWN[1 - i], DOWN[0] if i == 0 else 16, 2, 2)
        layer(f"ups.{i}.up_sample_conv", DOWN[1 - i], DOWN[1 - i], 4, 4)
    norm("norm_out", 16)
    layer("conv_out", 3, 16, 3, 3)
    return state


def plain(state, x, t) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The network, function by function: the predicted noise, and the outputs of the up-blocks."""

    def linear(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name, x, **how):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)

    def norm(name, x):
        return F.group_norm(x, 8, state[f"{name}.weight"], state[f"{name}.bias"])

    def resnet(name, j, x):
        h = conv(f"{name}.resnet_conv_first.{j}.2", F.silu(norm(f"{name}.resnet_conv_first.{j}.0", x)), padding=1)
        h = h + linear(f"{name}.t_emb_layers.{j}.1", F.silu(temb))[:, :, None, None]
        h = conv(f"{name}.resnet_conv_second.{j}.2", F.silu(norm(f"{name}.resnet_conv_second.{j}.0", h)), padding=1)
        return h + conv(f"{name}.residual_input_conv.{j}", x)

    def attention(name, j, x):
        n, c, height, width = x.shape
        flat = norm(f"{name}.attention_norms.{j}", x.reshape(n, c, -1)).permute(2, 0, 1)  # [P,N,C]
        own = f"{name}.attentions.{j}"
        mixed, _ = F.multi_head_attention_forward(
            *(flat, flat, flat, c, 4, state[f"{own}.in_proj_weight"], state[f"{own}.in_proj_bias"], None, None),
            *(False, 0.0, state[f"{own}.out_proj.weight"], state[f"{own}.out_proj.bias"]),
            training=False,
        )
        return x + mixed.permute(1, 2, 0).reshape(n, c, height, width)

    factor = 10000 ** (torch.arange(TIME // 2) / (TIME // 2))
    angles = t[:, None] / factor
    temb = linear("t_proj.2", F.silu(linear("t_proj.0", torch.cat([angles.sin(), angles.cos()], -1))))
    x, skips, outputs = conv("conv_in", x, padding=1), [], []
    for i in range(2):
        skips.append(x)
        for j in range(2):
            x = attention(f"downs.{i}", j, resnet(f"downs.{i}", j, x))
        x = conv(f"downs.{i}.down_sample_conv", x, stride=2, padding=1)
    for i in range(2):
        x = attention(f"mids.{i}", 0, resnet(f"mids.{i}", 0, x))
        x = resnet(f"mids.{i}", 1, x)
    for i in range(2):
        name = f"ups.{i}.up_sample_conv"
        x = F.conv_transpose2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
        x = torch.cat([x, skips.pop()], 1)
        for j in range(2):
            x = attention(f"ups.{i}", j, resnet(f"ups.{i}", j, x))
        outputs.append(x)
    return conv("conv_out", F.silu(norm("norm_out", x)), padding=1), outputs


class PixelMLP(torch.nn.Module):
    def __init__(self, width: int, classes: int):
        super().__init__()
        self.fc1, self.bn1 = torch.nn.Linear(width, 128), torch.nn.BatchNorm1d(128)
        self.fc2, self.bn2 = torch.nn.Linear(128, 32), torch.nn.BatchNorm1d(32)
        self.fc_out = torch.nn.Linear(32, classes)

    def forward(self, x):
        return self.fc_out(F.relu(self.bn2(self.fc2(F.relu(self.bn1(self.fc1(x)))))))


def random_members(width: int) -> list[PixelMLP]:
    torch.manual_seed(1)
    members = [PixelMLP(width, 5).eval() for _ in range(3)]
    for member in members:
        for norm in (member.bn1, member.bn2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(norm.weight, -1, 1)
            torch.nn.init.normal_(norm.bias)
    return members


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def test_noise_and_activations_are_those_of_the_published_network(config):
    state = random_state()
    unet, scheduler = convert_unet(state, config)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 700])
    noise, outputs = plain(state, x, t)
    torch.testing.assert_close(unet(x, t).sample, noise, atol=1e-4, rtol=1e-4)
    extractor = DecoderFeatureExtractor(unet, scheduler, timesteps=[50])
    assert extractor.blocks == (1, 3)  # the outputs of both up-blocks
    features = extractor(x)
    noisy = scheduler.add_noise(x, extractor.draw_noise(x, None), torch.tensor([50]))
    for found, expected, info in zip(
        features.activations, plain(state, noisy, torch.tensor([50, 50]))[1], features.info
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (info.channels, info.height) == (expected.shape[1], expected.shape[2])


def test_mlps_become_a_head_that_computes_the_same(config):
    unet, _ = convert_unet(random_state(), config)
    members = random_members(3 * (16 + 16))
    head = convert_members([member.state_dict() for member in members], unet)
    pixels = torch.randn(96, 50)  # [D,P]
    with torch.no_grad():
        found = head.classify(pixels.expand(3, -1, -1))
        expected = torch.stack([member(pixels.T).T for member in members])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_command_saves_a_pipeline_that_generates_segments_and_can_be_fitted(config, tmp_path):
    torch.save(random_state(), tmp_path / "DDPM.pth")
    files = [tmp_path / f"mlp_{i}_best.pt" for i in range(3)]
    for file, member in zip(files, random_members(96)):
        torch.save(member.state_dict(), file)
    given = ("diffuseseg", "convert", tmp_path / "DDPM.pth", "--model_config", config)
    run(*given, "--output_dir", tmp_path / "plain")
    run(*given, "--members", *files, "--output_dir", tmp_path / "whole")
    pipe = DDPMPipeline.from_pretrained(tmp_path / "plain")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    whole = load_pipeline(str(tmp_path / "whole"), device="cpu", dtype="float32")
    assert whole.segment(draw((16, 16), 0, channels=3)[0], output_type="np").masks[0].shape == (16, 16)
    assert whole.segmentation_head.config.timesteps == [50, 150, 250]


def test_what_does_not_fit_is_named(config, tmp_path):
    state = random_state()
    unet, _ = convert_unet(state, config)
    state["more"] = state.pop("conv_out.bias")
    with pytest.raises(UserError, match=r"conv_out.bias is missing and \[3\] by config.yaml"):
        convert_unet(state, config)
    with pytest.raises(UserError, match="MLP 1 takes 7 features, but the U-Net gives 96"):
        convert_members([PixelMLP(7, 5).state_dict()], unet)
    (tmp_path / "other.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="is not a config of DiffuseSeg: it lacks 'model_params'"):
        convert_unet(random_state(), tmp_path / "other.yaml")
