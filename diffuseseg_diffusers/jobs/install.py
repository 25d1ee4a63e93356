# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What to type where a package is missing."""

import importlib.metadata
from typing import TYPE_CHECKING

from .errors import UserError


if TYPE_CHECKING:
    from packaging.requirements import Requirement

NAME = "diffuseseg-diffusers"

# What the cards say, until the package is in a registry. The extra `train` reads datasets, measures and draws.
INSTALL = "pip install '.[train]'"
INSTALL_WHERE = "in a clone of DiffuseSeg for Diffusers"
INSTALL_WITHOUT_US = "pip install diffusers transformers accelerate"  # for `trust_remote_code=True`


def requirements_of(extra: str, base: bool = False) -> list["Requirement"]:
    """What an extra of this package installs, those that it includes resolved; with `base`, what every installation
    has too."""
    from packaging.requirements import Requirement  # not a part of Python, and `diffuseseg --help` does without

    needed = [Requirement(text) for text in importlib.metadata.requires(NAME) or ()]
    found = [one for one in needed if one.marker is None] if base else []
    for one in needed:
        if one.marker and one.marker.evaluate({"extra": extra}):
            found += [one] if one.name != NAME else [r for inner in sorted(one.extras) for r in requirements_of(inner)]
    return list({one.name: one for one in found}.values())


def missing_extra(extra: str, module: str | None = None) -> UserError:
    """The error for a missing module that an extra of this package brings, such as `"onnx"`."""
    named = [f"'{one.name}{one.specifier}'" for one in requirements_of(extra)]
    return UserError(f"{module or f'The extra {extra!r}'} is not installed; run `pip install {' '.join(named)}`.")
