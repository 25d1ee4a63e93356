# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A run is resumed by the same configuration and contents alone, whichever field or input changes."""

import copy
import math
import shutil
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from diffuseseg_diffusers.jobs.config import Config, Option, WritesFolder
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.locks import unlock_folder
from diffuseseg_diffusers.jobs.run import open_run
from diffuseseg_diffusers.tasks import TASKS, named

from ..conftest import run


CONFIGS = {command: named(config) for command, (config, _) in TASKS.items()}
FIELDS = [(command, name) for command, config in CONFIGS.items() for name in config.options()]


def a_value(hint: Any, own: Option) -> Any:
    """A value of that type, within the limits of the option."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is tuple:
        inner = [part for part in typing.get_args(kind) if part is not Ellipsis]
        return tuple(a_value(part, own) for part in inner)
    allowed = own.choices() if callable(own.choices) else own.choices
    if allowed:
        return allowed[0]
    if kind in (int, float):
        low = max(0 if own.minimum is None else own.minimum, own.above or 0)
        return (
            kind(low + (0 if math.isfinite(low) and low > 0 and own.above is None else 1))
            if low > -math.inf
            else kind(0)
        )
    return {bool: False, Path: Path("a"), str: "a"}[kind]


def another(value: Any, hint: Any, own: Option) -> Any:
    """Another value of that type than this one."""
    allowed = own.choices() if callable(own.choices) else own.choices
    if isinstance(value, tuple) and value:
        return (another(value[0], None, own), *value[1:])
    if value in (None, ()):
        made = a_value(hint, own)
        return made if made != () else ("a",)
    if allowed:
        return next(one for one in allowed if one != value)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else type(value)(f"{value}-other")


def first(config: type[Config], folder: Path) -> Config:
    """The configuration of its defaults, with anything for what is required; not checked across fields."""
    hints, made = typing.get_type_hints(config), object.__new__(config)
    for one in fields(config):
        value = a_value(hints[one.name], one.metadata["option"]) if one.default is MISSING else one.default
        object.__setattr__(made, one.name, folder if one.name == "output_dir" else value)
    return made


def changed(config: Config, name: str) -> Config:
    """A copy with another value of a field."""
    hint, own, other = typing.get_type_hints(type(config))[name], config.options()[name], copy.copy(config)
    object.__setattr__(other, name, another(getattr(config, name), hint, own))
    assert getattr(other, name) != getattr(config, name)
    return other


@pytest.mark.parametrize("command, name", FIELDS)
def test_another_value_is_refused_by_name_or_its_field_says_why_it_has_no_influence(command, name, tmp_path):
    config, own = CONFIGS[command], CONFIGS[command].options()[name]
    assert own.influence or len(own.why.split()) > 1, "a field without influence says why"
    before = first(config, tmp_path / "out")
    if not issubclass(config, WritesFolder) or name in ("output_dir", "overwrite"):
        assert (name in before.settings()) == own.influence
        return
    assert open_run(before, command, {}, ()) is False
    assert open_run(copy.copy(before), command, {}, ()) is True
    if own.influence:
        with pytest.raises(UserError, match=f"holds another run: {'' if own.positional else '--'}{name} "):
            open_run(changed(before, name), command, {}, ())
    else:
        assert open_run(changed(before, name), command, {}, ()) is True
    unlock_folder()


def repaint(name: str) -> Callable[[Path], None]:
    """Changes one pixel of a picture or mask."""

    def change(folder: Path) -> None:
        picture = Image.open(folder / name)
        first = picture.getpixel((0, 0))
        picture.putpixel((0, 0), 1 - first if isinstance(first, int) else (first[0] ^ 1, *first[1:]))
        picture.save(folder / name)

    return change


def shift(name: str) -> Callable[[Path], None]:
    """Changes one number of the weights."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / name)
        first = next(iter(tensors.values()))
        first.view(-1)[0] += 1e-3
        save_file(tensors, folder / name, {"format": "pt"})

    return change


UNET, HEAD = (f"model/{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "segmentation_head"))
MASK = "data/train/masks/1.png"
LABELED = ("--dataset_name", "data", "--split", "train")
GENERATE = ("generate", "--model", "model", "--num_samples", "2", "--batch_size", "2", "--num_inference_steps", "2")
ANALYZE = ("analyze", "--model", "model", *LABELED, "--study", "blocks-timesteps", "--recipe", "fast", "--folds", "2")
ANALYZE = (*ANALYZE, "--blocks", "5", "--timesteps", "50", "--draws", "1")
CHANGES = [
    (GENERATE, shift(UNET), "the contents of --model differ"),
    (GENERATE, shift(HEAD), "the contents of --model differ"),
    (ANALYZE, shift(UNET), "the contents of --model differ"),
    (ANALYZE, repaint(MASK), "the contents of --dataset_name differ"),
]


@pytest.mark.parametrize("words, change, said", CHANGES)
def test_another_content_under_the_same_name_is_refused(drawn, tmp_path, words, change, said):
    """`segment`, `train-ddpm` and `train-student` have such tests beside their others."""
    shutil.copytree(drawn, tmp_path / "in")
    words = [str(tmp_path / "in" / word) if word in ("data", "model") else word for word in words]
    words += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    run("diffuseseg", *words)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    change(tmp_path / "in")
    assert said in run("diffuseseg", *words, expect=1).stderr
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before
