# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""U-Nets by image size, and from configs.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020).
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from diffusers import UNet2DModel

from ..features.pixel_unet import check_image_size
from ..jobs.errors import UserError
from ..jobs.hub_errors import explain_hub_error
from ..pipelines.general import find_model


PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@dataclass(frozen=True)
class Preset:
    """A U-Net for images up to some size: `base_channels` times a multiplier for each level, and where it attends."""

    base_channels: int
    multipliers: tuple[int, ...]
    attention_levels: tuple[int, ...]


# Of 32 and 256 pixels, Ho et al.'s (appendix B); between them, the same pattern with what one GPU trains in a day.
PRESETS = {
    32: Preset(128, (1, 2, 2, 2), (1,)),
    64: Preset(64, (1, 2, 3, 4), (3,)),
    128: Preset(96, (1, 1, 2, 3, 4), (3, 4)),
    256: Preset(128, (1, 1, 2, 2, 4, 4), (4,)),
}


def side_or_sides(size: tuple[int, int]) -> int | list[int]:
    """A size as configs of diffusers hold it."""
    return size[0] if size[0] == size[1] else list(size)


def preset_config(size: tuple[int, int], channels: int, base_channels: int | None = None) -> dict:
    """Arguments of [`UNet2DModel`] that suit a height and width, with group norms that divide its channels.

    The smallest preset that covers the longer side is taken; `base_channels` replaces its width of the finest level.
    """
    preset = PRESETS[next((s for s in PRESETS if max(size) <= s), max(PRESETS))]
    base = base_channels or preset.base_channels
    widths = [base * m for m in preset.multipliers]
    attends = [level in preset.attention_levels for level in range(len(widths))]
    # A group of one channel forgets its mean, and with it what the channel says: four at least.
    groups = max(g for g in range(1, 33) if base % g == 0 and (base >= 4 * g or g == 1))
    return {
        "sample_size": side_or_sides(size),
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "norm_num_groups": groups,
        "attention_head_dim": math.gcd(base, 64),
    }


def read_model_config(name: str) -> dict:
    """Arguments of [`UNet2DModel`] from a JSON or YAML file, a folder, or a repository on the Hub.

    Raises:
        UserError: There is no such file or repository, or it holds something else.
    """
    name = find_model(name)
    path = Path(name)
    if path.is_file():
        config = _read_config_file(path)
    else:
        for subfolder in ("unet", None):  # of a pipeline, or of a model
            try:
                config = UNet2DModel.load_config(name, subfolder=subfolder)
                break
            except OSError as error:
                reason = explain_hub_error(error) or str(error).splitlines()[0]
        else:
            raise UserError(f"{name} is no file, and neither a folder nor a Hub repository with a U-Net: {reason}")
    if not isinstance(config, dict):
        raise UserError(f"{name} must hold the arguments of UNet2DModel by name, found {type(config).__name__}.")
    return {k: v for k, v in config.items() if not k.startswith("_")}


def _read_config_file(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            config = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is neither JSON nor YAML: {' '.join(str(error).split())}.") from error
    # To PyYAML, 1e-5 without a point is a word.
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
            config[key] = float(value)
    return config


def make_unet(config: dict) -> UNet2DModel:
    """A U-Net with fresh weights.

    Raises:
        UserError: The config does not make one, or one that cannot take its own `sample_size` (the nearest sizes
            that work are named).
    """
    widths, groups = config.get("block_out_channels", (224, 448, 672, 896)), config.get("norm_num_groups", 32)
    wrong = [w for w in widths if groups and w % groups] if isinstance(widths, (list, tuple)) else []
    if wrong:
        works = [g for g in range(1, 65) if all(w % g == 0 for w in widths)]
        what = f"{wrong[0]} channels do not divide into {groups} groups of the normalisation"
        fits = f"with block_out_channels {list(widths)} are {', '.join(map(str, works))}"
        raise UserError(f"{what}; norm_num_groups that work {fits}.")
    try:
        unet = UNet2DModel(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"UNet2DModel does not take this config: {error}.") from error
    check_trainable(unet)
    return unet


def check_trainable(unet: UNet2DModel) -> None:
    """Raises [`UserError`] if the U-Net is none that predicts one image from one, or if its size does not suit it."""
    config = unet.config
    if config.out_channels != config.in_channels or unet.class_embedding is not None:
        raise UserError(
            f"The U-Net must take and give as many channels and no class, found {config.in_channels} channels in, "
            f"{config.out_channels} out, class embedding {config.class_embed_type or config.num_class_embeds}; learned "
            f"variances and class conditioning are not trained here."
        )
    size = config.sample_size
    check_image_size(unet, *((size, size) if isinstance(size, int) else size))
