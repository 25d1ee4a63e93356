# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Validates what strokes and classes are made of, from a page as from a file."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ..images.image_processor import default_palette
from ..jobs.errors import UserError


Runs: TypeAlias = Sequence[Sequence[int]] | np.ndarray  # row, first column, column behind the last, class id
FEW_RUNS = 1000  # that a stroke may have in the smallest of pictures
MAX_PIXELS = 2**24  # of a picture; larger ones are to be cut first
MAX_KEY = 64  # characters


def checked_name(name: str) -> str:
    """Validates the name of a class and strips white space.

    Raises:
        UserError: The name is empty, too long, or has unprintable characters.
    """
    name = " ".join(str(name).split())
    if not name or len(name) > 100 or not name.isprintable():
        raise UserError(f"A class needs a name of 1 to 100 characters that can be shown, got {name[:120]!a}.")
    return name


def checked_runs(runs: Runs, picture: str, size: tuple[int, int]) -> np.ndarray:
    """The runs of a stroke, `[N,4]` int32: row, first column, column behind the last, class id or 255.

    Raises:
        UserError: They are no whole numbers, none or too many, or one lies outside the picture.
    """
    wrong_kind = "The runs of a stroke are lists of four whole numbers: row, start, stop, class id."
    try:
        given = np.array(runs)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(wrong_kind) from error
    if given.dtype.kind not in "iu" or given.ndim != 2 or given.shape[1] != 4 or not len(given):
        raise UserError(wrong_kind)
    if len(given) > max(FEW_RUNS, size[0] * size[1]):
        raise UserError(f"A stroke has {len(given):,} runs, more than {picture} has pixels.")
    rows, starts, stops, labels = given.T
    inside = (rows >= 0) & (rows < size[0]) & (starts >= 0) & (starts < stops) & (stops <= size[1])
    if not inside.all():
        wrong = given[~inside][0].tolist()
        raise UserError(f"A stroke lies outside {picture}, which is {size[1]} x {size[0]} pixels: run {wrong[:3]}.")
    if labels.min() < 0 or labels.max() > 255:
        raise UserError(f"A class id is 0 to 254, or 255 to erase; got {labels[(labels < 0) | (labels > 255)][0]}.")
    return given.astype(np.int32)


def checked_color(color: Sequence[int]) -> list[int]:
    """Red, green and blue of a class; raises [`UserError`] if they are not whole numbers from 0 to 255."""
    values = list(color) if isinstance(color, (list, tuple)) else []
    if len(values) != 3 or any(isinstance(c, bool) or not isinstance(c, int) or not 0 <= c <= 255 for c in values):
        raise UserError(f"A colour is three whole numbers from 0 to 255, got {color!r}.")
    return values


def checked_key(key: str) -> str:
    """The key of a stroke.

    Raises:
        UserError: It has no characters or more than 64, or others than printable ASCII.
    """
    if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
        raise UserError(f"The key of a stroke is 1 to {MAX_KEY} printable ASCII characters, got {str(key)[:80]!a}.")
    return key


def class_color(label: int) -> list[int]:
    """Colour of a class that was given none: neither black nor white, which pictures hide."""
    return [color for color in default_palette(label + 3) if 0 < sum(color) < 3 * 255][label]
