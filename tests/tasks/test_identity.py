# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A run is resumed by the same configuration and contents alone, whichever field or input changes."""

import copy
import math
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from diffuseseg_diffusers.jobs.config import Config, Option, WritesFolder
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.locks import unlock_folder
from diffuseseg_diffusers.jobs.run import open_run
from diffuseseg_diffusers.tasks import TASKS, named


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
