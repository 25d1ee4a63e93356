# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Orientation of EXIF and TIFF: where the first row and column of what is stored belong."""

import numpy as np

from ..image_processor import warn_once
from .base import Window


LYING = (5, 6, 7, 8)  # rows are stored as columns
_FROM_BELOW, _FROM_THE_RIGHT = (3, 4, 7, 8), (2, 3, 6, 7)


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """An array `[..., H, W]` as it is stored, upright: `[..., W, H]` for orientations 5 to 8.

    Args:
        values (`np.ndarray`): The array.
        orientation (`int`): 1 to 8; others are taken for 1, as viewers do.
    """
    if orientation in LYING:
        values = values.swapaxes(-1, -2)
    if orientation in _FROM_BELOW:
        values = values[..., ::-1, :]
    return values[..., ::-1] if orientation in _FROM_THE_RIGHT else values


def upright_mask(mask: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """A mask `[H, W]` as its picture was turned, if it only fits so; one line says what was done.

    Args:
        mask (`np.ndarray`): The mask, with its own orientation applied.
        size (two `int`): Height and width of the upright picture.
        orientation (`int`): What was applied to the picture.
    """
    if orientation not in range(2, 9):
        return mask
    if mask.shape == size and (orientation not in LYING or size[0] == size[1]):
        warn_once(
            "Images are turned by their EXIF orientation while their masks fit either way: those are taken as upright. "
            "If they are not, give them the same orientation."
        )
    elif mask.shape == size[::-1] != size and orientation in LYING:
        warn_once("Masks that fit their image only when turned are turned by the EXIF orientation of the image.")
        return turned(mask, orientation)
    return mask


def stored_window(window: Window, orientation: int, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of what is stored that `turned` makes a window of the upright picture.

    Args:
        window ([`Window`]): Of the upright picture.
        orientation (`int`): 1 to 8.
        height, width (`int`): Of the upright picture, in pixels.
    """
    top = height - window.top - window.height if orientation in _FROM_BELOW else window.top
    left = width - window.left - window.width if orientation in _FROM_THE_RIGHT else window.left
    rows, columns = slice(top, top + window.height), slice(left, left + window.width)
    return (columns, rows) if orientation in LYING else (rows, columns)
