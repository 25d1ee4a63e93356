# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Views: how a model reads pictures, whole and resized or in tiles at a scale, in its training and in use."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.labeled import LabeledImages
from ..features.base import FeatureExtractor
from ..jobs.errors import UserError
from ..jobs.files import read_json


LOOKED_AT = 32  # labelled images whose size is looked at
LONGEST = 160  # pixels of the longer side of whole pictures, above which they are reduced
SAME_SCALE = 1.25  # ratio of two scales up to which they count as one


def shapes_of(dataset: LabeledImages) -> list[tuple[int, int]]:
    """Height and width in pixels of the first labelled images."""
    return [dataset[i].mask.shape[:2] for i in range(min(len(dataset), LOOKED_AT))]


def whole_size(shapes: Sequence[tuple[int, int]], extractor: FeatureExtractor) -> tuple[int, int]:
    """Height and width at which a model of any size reads whole pictures.

    Their own median size while its longer side is at most `LONGEST`, else reduced to that with proportions kept; both
    rounded to what the model can halve.

    Args:
        shapes (sequence of two `int`): Height and width of pictures in pixels.
        extractor ([`FeatureExtractor`]): Of a convolutional model, such as the general one.

    Examples:
        >>> whole_size([(120, 118)], extractor), whole_size([(483, 648)], extractor)
        ((120, 120), (120, 160))
    """
    multiple = max(tap.stride for tap in extractor.taps)
    height, width = np.median(np.array(shapes), axis=0)
    scale = min(1.0, LONGEST / max(height, width))
    sides = [max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)]
    return sides[0], sides[1]


def tiling_of(dataset: LabeledImages, size: tuple[int, int]) -> dict[str, Any]:
    """At which scale a model that reads images of a size sees the labelled ones: `tiles`, `scale`, `pixel_size`."""
    if dataset.tiling is not None:
        return dataset.tiling
    scale = float(np.median([min(s / n for s, n in zip(size, shape)) for shape in shapes_of(dataset)]))
    return {"tiles": False, "scale": scale, "pixel_size": None}


def training_of(model: str | os.PathLike) -> dict[str, Any]:
    """The arguments that a denoiser's folder says it was trained with; empty where it is silent.

    Raises:
        UserError: Its scale or size of a pixel is not a number above 0.
    """
    state = Path(model, "training_state.json")
    found = read_json(state) if state.is_file() else {}
    asked = found.get("arguments") if isinstance(found, dict) else None
    if not isinstance(asked, dict):
        return {}
    for name in ("scale", "pixel_size"):
        value = asked.get(name)
        if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            raise UserError(f"{state} says {name} {value!r:.40}, not a number above 0; mend it, or remove the file.")
    return asked


def compare_views(model: str | os.PathLike, tiling: Mapping[str, Any]) -> str:
    """Says in what the view of fitting differs from that of the denoiser's training; empty if it does not.

    Args:
        model (`str` or path): Folder of the denoiser, whose `training_state.json` tells of its training.
        tiling (mapping): As [`tiling_of`] returns it.
    """
    asked = training_of(model)
    if "crop" not in asked:  # not of `train-ddpm`, or older
        return ""
    if not asked["crop"]:
        what = "The denoiser was trained on whole pictures, resized, but tiles are read here"
        return f"{what}: if those were larger than tiles, leave --tile out." if tiling["tiles"] else ""
    option, trained, here = "scale", asked.get("scale") or 1.0, tiling["scale"]
    if asked.get("pixel_size"):
        option, trained, here = "pixel_size", asked["pixel_size"], tiling["pixel_size"]
    known = f"The denoiser was trained on crops at --{option} {trained:g}"
    if here is not None and max(here / trained, trained / here) <= SAME_SCALE:
        return ""
    if not tiling["tiles"]:
        return f"{known}, but whole pictures are read here, at scale {tiling['scale']:.2g}: consider --tile."
    return f"{known}, but tiles are read at scale {tiling['scale']:.2g} here: give --{option} {trained:g}."
