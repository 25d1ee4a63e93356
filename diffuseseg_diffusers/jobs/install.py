# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What to type where a package is missing."""

import importlib.metadata

from .errors import UserError


# What the cards say, until the package is in a registry. The extra `train` reads datasets, measures and draws.
INSTALL = "pip install '.[train]'"
INSTALL_WHERE = "in a clone of DiffuseSeg for Diffusers"
INSTALL_WITHOUT_US = "pip install diffusers transformers accelerate"  # for `trust_remote_code=True`


def missing_extra(extra: str, module: str | None = None) -> UserError:
    """The error for a missing optional package.

    Args:
        extra (`str`): Extra of this package that brings it, such as `"onnx"`.
        module (`str`, *optional*): The module that is missing.
    """
    from packaging.requirements import Requirement  # not a part of Python, and `diffuseseg --help` does without

    needed = [Requirement(text) for text in importlib.metadata.requires("diffuseseg-diffusers") or ()]
    named = [f"'{r.name}{r.specifier}'" for r in needed if r.marker and r.marker.evaluate({"extra": extra})]
    return UserError(f"{module or f'The extra {extra!r}'} is not installed; run `pip install {' '.join(named)}`.")
