# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Studies of a small model on drawn images, in little time."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.paper.study import Study

from ..conftest import drawn_dataset, make_pipeline


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default recipe as it is, but for the number of its steps, pixels and views."""
    short = replace(RECIPES["default"], batch_size=64, max_steps=40, augmented_images=8)
    monkeypatch.setitem(RECIPES, "default", short)


def make_study(folder: Path, **options) -> Study:
    """A study of a random U-Net on four drawn images, to be tested on two others."""
    defaults = dict(test=drawn_dataset(2, seed=50), folds=2, draws=2, counts=(1, 4))
    return Study(make_pipeline(), drawn_dataset(4), folder, **{**defaults, **options})
