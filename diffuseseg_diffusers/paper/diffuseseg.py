# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of DiffuseSeg (github.com/harish-jhr/DiffuseSeg): a U-Net with its `config.yaml`, and pixel MLPs."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from diffusers import DDPMScheduler

from ..features.noise import PAPER_TIMESTEPS
from ..features.pixel_unet import up_block_outputs
from ..heads.ensemble import PixelClassifierEnsemble
from ..jobs.errors import UserError
from .diffuseseg_unet import LAST, DiffuseSegUNet2DModel


# Names of modules, theirs and ours; attention's queries, keys and values are one tensor there.
RENAMED = (
    (r"^downs\.(\d+)", r"down_blocks.\1"),
    (r"^mids\.(\d+)", r"mid_blocks.\1"),
    (r"^ups\.(\d+)", r"up_blocks.\1"),
    (r"resnet_conv_first\.(\d+)\.0", r"resnets.\1.norm1"),
    (r"resnet_conv_first\.(\d+)\.2", r"resnets.\1.conv1"),
    (r"resnet_conv_second\.(\d+)\.0", r"resnets.\1.norm2"),
    (r"resnet_conv_second\.(\d+)\.2", r"resnets.\1.conv2"),
    (r"t_emb_layers\.(\d+)\.1", r"resnets.\1.time_emb_proj"),
    (r"residual_input_conv\.(\d+)", r"resnets.\1.conv_shortcut"),
    (r"attention_norms\.(\d+)", r"attentions.\1.group_norm"),
    (r"out_proj", "to_out.0"),
    (r"down_sample_conv", "after"),
    (r"up_sample_conv", "before"),
    (r"^t_proj\.0", "time_embedding.linear_1"),
    (r"^t_proj\.2", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
)


def read_config(path: Path) -> tuple[dict, dict]:
    """Arguments of [`DiffuseSegUNet2DModel`] and of its `DDPMScheduler` that a `config.yaml` states.

    Raises:
        UserError: The file cannot be read, or lacks an entry; names it.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        model, noise = content["model_params"], content["diffusion_params"]
        down = model["down_channels"]
        unet = {
            "sample_size": model["im_size"],
            "in_channels": model["im_channels"],
            "out_channels": model["im_channels"],
            "down_channels": down,
            "mid_channels": model["mid_channels"],
            "down_sample": model["down_sample"],
            "time_embedding_dim": model["time_emb_dim"],
            "down_layers": model["num_down_layers"],
            "mid_layers": model["num_mid_layers"],
            "layers_per_block": model["num_up_layers"] - 1,
            "block_out_channels": [LAST, *down[: len(down) - 2]],
        }
        return unet, {
            "num_train_timesteps": noise["num_timesteps"],
            "beta_start": noise["beta_start"],
            "beta_end": noise["beta_end"],
            "variance_type": "fixed_small",
            "clip_sample": False,
        }
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config of DiffuseSeg: it lacks {error}.") from error


def convert_unet(
    state: Mapping[str, torch.Tensor], config: Path, dtype: torch.dtype = torch.float32
) -> tuple[DiffuseSegUNet2DModel, DDPMScheduler]:
    """Makes a U-Net and its scheduler of a DiffuseSeg state dict; every tensor is used exactly once.

    Args:
        state (mapping), config (`Path`): The checkpoint, see [`read_checkpoint`], and its `config.yaml`.
        dtype (`torch.dtype`, defaults to float32): Of the U-Net.

    Raises:
        UserError: A tensor is missing, left over, or has another shape than the config states; names the first.
    """
    arguments, noise = read_config(config)
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        ours = name.removeprefix("module.")
        for theirs, new in RENAMED:
            ours = re.sub(theirs, new, ours)
        if ".in_proj_" in ours:
            for part, third in zip(("to_q", "to_k", "to_v"), tensor.chunk(3)):
                converted[ours.replace("in_proj_", f"{part}.")] = third
        else:
            converted[ours] = tensor
    with torch.device("meta"):
        unet = DiffuseSegUNet2DModel(**arguments)
    wanted = {name: tensor.shape for name, tensor in unet.state_dict().items()}
    for name in [*wanted, *converted]:
        found = converted[name].shape if name in converted else None
        if found != wanted.get(name):
            here = f"has the shape {list(found)}" if found is not None else "is missing"
            there = f"{list(wanted[name])} by {config.name}" if name in wanted else "is unknown there"
            raise UserError(f"The checkpoint contradicts {config.name}: {name} {here} and {there}.")
    unet.load_state_dict({name: tensor.to(dtype).clone() for name, tensor in converted.items()}, assign=True)
    return unet.requires_grad_(False).eval(), DDPMScheduler(**noise)


def convert_members(
    members: Sequence[Mapping[str, torch.Tensor]], unet: DiffuseSegUNet2DModel
) -> PixelClassifierEnsemble:
    """Makes a segmentation head of DiffuseSeg's MLPs: Linear, BatchNorm, ReLU, twice, and Linear.

    The statistics of the batch norms become part of the layers before them, so that the head, whose batch norms follow
    the activations, computes the same.

    Args:
        members (sequence of mapping): State dict of each MLP.
        unet ([`DiffuseSegUNet2DModel`]): Whose up-blocks they read, at timesteps 50, 150 and 250.

    Raises:
        UserError: A state dict is of another kind of network, or does not fit the U-Net.
    """
    blocks = up_block_outputs(unet)
    channels = list(unet.config.block_out_channels[::-1])
    for i, member in enumerate(members):
        width = member["fc1.weight"].shape[1] if "fc1.weight" in member and "fc_out.bias" in member else 0
        if width != len(PAPER_TIMESTEPS) * sum(channels):
            raise UserError(
                f"MLP {i + 1} takes {width} features, but the U-Net gives {len(PAPER_TIMESTEPS) * sum(channels)}: the "
                f"outputs of its up-blocks at timesteps {', '.join(map(str, PAPER_TIMESTEPS))}."
            )
    head = PixelClassifierEnsemble(
        num_classes=len(members[0]["fc_out.bias"]),
        block_channels=channels,
        blocks=list(blocks),
        timesteps=list(PAPER_TIMESTEPS),
        num_members=len(members),
        hidden_sizes=[len(members[0]["fc1.bias"]), len(members[0]["fc2.bias"])],
        image_size=[unet.config.sample_size] * 2,
        in_channels=unet.config.in_channels,
    )
    head.load_state_dict(PixelClassifierEnsemble.stack_members([_folded(member) for member in members]))
    return head.eval()


def _folded(member: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An MLP with its batch norms folded into the layers before them, under the published names."""
    eps = torch.nn.BatchNorm1d(1).eps
    state = {"layers.6.weight": member["fc_out.weight"], "layers.6.bias": member["fc_out.bias"]}
    for i in (1, 2):
        scale = member[f"bn{i}.weight"] / (member[f"bn{i}.running_var"] + eps).sqrt()
        shift = (member[f"fc{i}.bias"] - member[f"bn{i}.running_mean"]) * scale + member[f"bn{i}.bias"]
        linear, norm = f"layers.{3 * i - 3}", f"layers.{3 * i - 1}"
        state |= {f"{linear}.weight": member[f"fc{i}.weight"] * scale[:, None], f"{linear}.bias": shift}
        ones = torch.ones_like(shift)
        state |= {f"{norm}.weight": ones, f"{norm}.bias": 0 * ones}
        state |= {f"{norm}.running_mean": 0 * ones, f"{norm}.running_var": ones - eps}
    return state
