# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of `diffuseseg fit`; the task itself is `training/train_segmentation_head.py`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..jobs.config import exclusive, option
from ..jobs.errors import UserError
from .options import (
    RECIPES,
    CachesDownloads,
    CutsTiles,
    FitsHeads,
    NamesModelOrBackbone,
    PushesModel,
    ReadsChannels,
    ReadsLabels,
    SetsSize,
    WritesFolder,
    needs,
)


BEST = "best"
# Options that it does not take: it chooses itself, or has no way to follow them yet.
AGAINST_BEST = (
    "backbone",
    "blocks",
    "up_blocks",
    "timesteps",
    "noise_levels",
    "prompt",
    "noise",
    "mirror",
    "resolution",
    "max_bytes",
    "num_members",
    "sparse_labels",
    "unlabeled_dataset_name",
    "scale",
    "pixel_size",
    "activation_dir",
    "target",
)
AUTO = "auto"  # in place of blocks or timesteps: chosen by cross-validation
_validation, _feature, _training = (partial(option, group=name) for name in ("validation", "features", "training"))


@dataclass(frozen=True, kw_only=True)
class FitConfig(
    NamesModelOrBackbone,
    ReadsLabels,
    ReadsChannels,
    CutsTiles,
    SetsSize,
    FitsHeads,
    CachesDownloads,
    WritesFolder,
    PushesModel,
):
    """Fit a segmentation head on a few labelled images."""

    validation_split: str | None = _validation(None, "Part of the dataset to measure on afterwards.")
    validation_fraction: float | None = _validation(None, "Fraction of labelled images to hold out and measure on.")
    blocks: tuple[int | str, ...] | None = _feature(
        None,
        "Blocks by number, or by the name of a module: see `diffuseseg taps` (default: the recipe's); auto: chosen by "
        "cross-validation.",
        minimum=float("-inf"),
    )
    prompt: str | None = _feature(None, "Text that conditions the model (default: its null prompt).")
    up_blocks: tuple[int, ...] | None = _feature(None, "Outputs of whole up-blocks of a U-Net; the deepest is 0.")
    timesteps: tuple[int | str, ...] | None = _feature(
        None, "Diffusion timesteps (default: the recipe's); auto: chosen by cross-validation.", minimum=float("-inf")
    )
    noise_levels: tuple[float, ...] | None = _feature(
        None, "Noise-to-signal ratios in place of timesteps, the same for every model.", above=0
    )
    max_dimensions: int | None = _feature(
        None, "Maximum feature dimension for auto (default: that of the recipe's features)."
    )
    max_bytes: int | None = _feature(None, "Maximum size of an image's activations in half precision.")
    max_milliseconds: float | None = _feature(None, "Maximum time of the model's passes for an image, for auto.")
    noise: str | None = _feature(
        None,
        "Noise of the images at the timesteps: none, clean images; shared, one for all; fresh, drawn for every image "
        "and timestep (default: the recipe's).",
        choices=("none", "shared", "fresh"),
    )
    recipe: str | None = _training(
        None,
        "Training procedure: best, several ways to segment, cross-validated on the labelled images within "
        "--max_minutes; default, a head on activations; paper, as published; fast, the paper's features trained in "
        "less time (default: best, unless another option speaks against it).",
        choices=(BEST, *RECIPES),
    )
    max_minutes: float | None = _training(None, "Time for --recipe best (default: 2).", above=0, maximum=24 * 60)
    sparse_labels: bool = _training(
        False, "Learn from unlabelled pixels too, for masks that are strokes; takes twice as long."
    )
    target: tuple[str, ...] = _training(
        (),
        "Operating points in place of the likeliest class, chosen on held-out labelled images: recall=0.9 or "
        "precision=0.9 for the second of two classes, NAME:recall=0.9 for any.",
    )
    unlabeled_dataset_name: str | None = _training(
        None,
        "Unlabelled images, a folder or a name on the Hub, to fit the decision rule on: classes are then chosen for "
        "the highest expected mean IoU.",
        reads=True,
    )
    unlabeled_dataset_config_name: str | None = _training(None, "Configuration of that dataset.")
    unlabeled_split: str = _training("train", "Part of that dataset.")
    max_unlabeled: int = _training(200, "Maximum number of unlabelled images, evenly spread.", minimum=1)
    no_flip: bool = _training(False, "Never mirror images: left and right differ in meaning.")
    mirror: bool = _training(False, "Let half of the members see the mirror image in use, for twice the passes.")
    num_members: int | None = _training(None, "Members of the ensemble (default: the recipe's, 4 or 10).", minimum=1)
    min_label_fraction: float = _training(
        20 / 256**2, "Minimum fraction of an image that a class covers; ignored in the image where it covers less."
    )
    seed: int = _training(0, "Seed of noise, weights and order of pixels.")

    def check(self) -> None:
        super().check()
        exclusive(self, "validation_split", "validation_fraction")
        exclusive(self, "blocks", "up_blocks")
        exclusive(self, "timesteps", "noise_levels")
        exclusive(self, "target", "unlabeled_dataset_name")
        if self.noise == "none" and self.noise_levels:
            raise UserError("--noise none and --noise_levels exclude each other; leave one out.")
        if self.mirror and (self.no_flip or self.recipe in ("paper", "fast")):
            given = "--no_flip" if self.no_flip else f"--recipe {self.recipe}"
            raise UserError(f"--mirror does not go with {given}; leave one out.")
        for name in ("blocks", "timesteps"):
            if AUTO in (getattr(self, name) or ()) and getattr(self, name) != (AUTO,):
                raise UserError(f"--{name} takes numbers or auto, got both: {' '.join(map(str, getattr(self, name)))}.")
        if any(isinstance(timestep, str) and timestep != AUTO for timestep in self.timesteps or ()):
            raise UserError(f"--timesteps takes numbers or auto, got {' '.join(map(str, self.timesteps))}.")
        if self.auto and self.noise_levels:
            raise UserError("--noise_levels and auto exclude each other; leave one out.")
        if not self.auto and (self.max_dimensions or self.max_milliseconds):
            raise UserError("--max_dimensions and --max_milliseconds are for --blocks or --timesteps auto.")
        if (self.recipe == BEST or self.max_minutes is not None) and (against := self.against_best()):
            asked = "--recipe best" if self.recipe == BEST else "--max_minutes, of --recipe best,"
            raise UserError(f"{asked} does not go with --{against[0]}; leave one out.")
        if self.recipe not in (None, BEST) and self.max_minutes is not None:
            raise UserError(f"--max_minutes is for --recipe best, got --recipe {self.recipe}; leave one out.")
        needs(self, "unlabeled_dataset_name", "unlabeled_dataset_config_name", "max_unlabeled")
        if self.unlabeled_dataset_name and (self.tile or self.input_channels or self.axes):
            raise UserError(
                "--unlabeled_dataset_name takes whole images of eight bits; leave it out with tiles or channels."
            )
        pictures = self.unlabeled_dataset_name
        if pictures and os.path.isdir(pictures) and self.output_dir.resolve().is_relative_to(Path(pictures).resolve()):
            raise UserError(
                f"--output_dir {self.output_dir} lies in {pictures}, which it would change; choose another."
            )
        if self.backbone and self.push_to_hub:
            raise UserError("A head on --backbone cannot be pushed yet; leave --push_to_hub out.")

    def against_best(self) -> list[str]:
        """The options that are given and that `best` does not take."""
        usual = {field.name: field.default for field in fields(self)}
        return [name for name in AGAINST_BEST if getattr(self, name) != usual[name]]

    def with_recipe(self, more: Sequence[str] = ()) -> tuple["FitConfig", str]:
        """The configuration with a recipe, and why if it was not named: `best`, unless something is against it.

        Args:
            more (sequence of `str`): What is against `best` beside the options, a clause each.

        Raises:
            UserError: `best` was named, and something is against it.
        """
        if self.recipe not in (None, BEST):
            return self, ""
        against = [*(f"--{name} is given" for name in self.against_best()), *more]
        if against and (self.recipe == BEST or self.max_minutes is not None):
            raise UserError(f"--recipe best is not possible: {against[0]}; use --recipe default without --max_minutes.")
        return replace(self, recipe="default" if against else BEST), f", as {against[0]}" if against else ""

    @property
    def noising(self) -> dict[str, Any]:
        """Arguments of `fit_segmentation_head` that `--noise` stands for."""
        clean = None if self.noise is None else self.noise == "none"
        return {"share_noise": self.noise != "fresh", "clean": clean}

    @property
    def auto(self) -> list[str]:
        """Which of blocks and timesteps are chosen by cross-validation."""
        return [name for name in ("blocks", "timesteps") if getattr(self, name) == (AUTO,)]
