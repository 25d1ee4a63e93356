# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The models that come with the package, by name: `general`, and its untrained twin.

The general denoiser was trained on drawn pictures of no particular subject, see `datasets/drawn_pictures.py`; the twin
is the same network with weights from a seed, the floor that a trained one is measured against.
"""

import importlib.metadata
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.utils import logging

from ..heads.recipes import Recipe, find_recipe
from ..jobs.errors import UserError
from ..jobs.install import NAME
from .identity import weights_digest


logger = logging.get_logger(__name__)
# Beside what it was trained on, which is not imported: segmenting needs no `datasets`.
SHIPPED_MODEL = str(Path(__file__).parents[1] / "datasets" / "general_ddpm")
GENERAL, UNTRAINED = "general", "untrained"
# At which heads read it best without noise and with it, by cross-validation on three kinds of pictures.
GENERAL_TIMESTEPS, NOISY_TIMESTEPS = (200,), (100,)


def comes_with_package(name: str | os.PathLike) -> bool:
    """Whether a name is that of a model of the package; a local folder of the same name wins."""
    return os.fspath(name) in (GENERAL, UNTRAINED) and not os.path.isdir(name)


def default_model() -> tuple[str, str]:
    """The model that is taken where none is named, and a line that says so.

    Raises:
        UserError: A local folder of that name would win.
    """
    if not comes_with_package(GENERAL):
        raise UserError(
            f"No --model was given, and the local folder {GENERAL} hides the model of that name that comes with the "
            f"package; give --model, or start elsewhere."
        )
    return GENERAL, "No --model was given: the general denoiser that comes with the package is used."


def find_model(name: str | os.PathLike) -> str:
    """The folder of a model of the package; any other name as it is."""
    return SHIPPED_MODEL if comes_with_package(name) else os.fspath(name)


def suited_recipe(recipe: str, name: str | os.PathLike) -> Recipe:
    """A recipe for heads on a model: the default one reads the models of the package at timesteps of their own."""
    found = find_recipe(recipe)
    if recipe == "default" and comes_with_package(name):
        clean, noisy = GENERAL_TIMESTEPS, NOISY_TIMESTEPS
        return replace(found, timesteps=clean, noisy_timesteps=noisy, distilled_timesteps=None)
    return found


def own_parts(name: str | os.PathLike) -> dict[str, Any]:
    """Components that `from_pretrained` is given beside the folder of [`find_model`]: the U-Net of the untrained twin.

    Says that the twin is used where `general` has no weights, and that a local folder has the name of a model.
    """
    name = os.fspath(name)
    if name in (GENERAL, UNTRAINED) and os.path.isdir(name):
        _say_once(f"{name} is the local folder of that name, not the model that comes with the package.")
    if not comes_with_package(name):
        return {}
    if name == GENERAL and any(Path(SHIPPED_MODEL).glob("unet/*.safetensors")):
        return {}
    if name == GENERAL:
        _say_once("This build has no weights of the general denoiser: its untrained twin is used.")
    config = UNet2DModel.load_config(SHIPPED_MODEL, subfolder="unet")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"unet": UNet2DModel.from_config(config).eval()}


@cache
def _say_once(text: str) -> None:
    logger.warning(text)


def hub_name(name: str) -> str | None:
    """The name of a model on the Hub; `None` of a local one, and of those that come with the package."""
    return None if os.path.exists(name) or comes_with_package(name) else name


def describe_model(name: str, unet: torch.nn.Module) -> str:
    """What records call a model of the package: its name, the version of the package and a digest of its weights."""
    return f"{name} ({NAME} {importlib.metadata.version(NAME)}, weights {weights_digest(unet)})"
