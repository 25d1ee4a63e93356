# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Drawn slides of any size with exact masks: small and large discs on a mottled ground.

What is at a place is a function of a seed and of the place, so a slide of any size is drawn window by window, and two
windows agree where they overlap.
"""

import numpy as np

from diffuseseg_diffusers.images.formats.base import Window


LABEL_NAMES = ("ground", "cell", "vessel")
# Of each kind: the class, the grid that it stands on, the least and the largest radius, the share of places, a colour.
_KINDS = ((2, 160, 30.0, 60.0, 0.5, (205, 120, 140)), (1, 24, 4.0, 8.0, 0.6, (95, 70, 150)))
_GROUND, _COARSE, _FINE = np.array([232, 208, 216], np.float32), 64, 8


def draw_slide(window: Window, seed: int = 0, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Draws a window of the endless slide.

    Args:
        window ([`Window`]): Which.
        seed (`int`, defaults to 0): Of the slide.
        channels (`int`, defaults to 3): Of the image; those behind the third are mixtures of the first ones, turned.

    Returns:
        `np.ndarray` `[channels, height, width]` uint8, the image, and `[height, width]` uint8, its classes.
    """
    rows, columns = window.slices
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None]
    mask = np.zeros((window.height, window.width), np.uint8)
    image = np.broadcast_to(_GROUND[:, None, None], (3, *mask.shape)).copy()
    for kind, grid, least, most, share, colour in _KINDS:
        for i in range(rows.start // grid - 1, (rows.stop - 1) // grid + 2):
            for j in range(columns.start // grid - 1, (columns.stop - 1) // grid + 2):
                here, dy, dx, size, light = _numbers(i, j, seed, kind)
                if here > share:
                    continue
                radius = least + (most - least) * size
                cy, cx = (i + 0.2 + 0.6 * dy) * grid, (j + 0.2 + 0.6 * dx) * grid
                part = _clipped(cy, cx, radius, window)
                if part is None:
                    continue
                inside = (y[part[0]] - cy) ** 2 + (x[:, part[1]] - cx) ** 2 <= radius**2
                mask[part][inside] = kind
                shade = np.array(colour, np.float32) * (0.85 + 0.3 * light)
                image[(slice(None), *part)][:, inside] = shade[:, None]
    for period, strength in ((_COARSE, 14.0), (_FINE, 8.0), (1, 10.0)):
        image += strength * _mottle(rows, columns, period, seed + period)
    more = [image[c % 3] * 0.5 + image[(c + 1) % 3].max() - image[(c + 1) % 3] * 0.5 for c in range(3, channels)]
    image = np.concatenate([image[:channels], *(m[None] for m in more)])
    return image.clip(0, 255).astype(np.uint8), mask


def _numbers(i: int, j: int, seed: int, kind: int) -> list[float]:
    """Five numbers in 0 to 1 that belong to a place."""
    found = _hash(np.array([i], np.int64), np.array([j], np.int64), seed * 8 + kind)
    return [float(_hash(found, np.array([n], np.int64), n)[0]) / 2**32 for n in range(5)]


def _hash(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """32 bits for two numbers each, unrelated to those of their neighbours (of the kind of MurmurHash3)."""
    with np.errstate(over="ignore"):
        h = a.astype(np.uint32) * np.uint32(0x85EBCA6B) ^ b.astype(np.uint32) * np.uint32(0xC2B2AE35)
        h = h ^ np.uint32((seed * 0x9E3779B9) & 0xFFFFFFFF)
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
        return h ^ (h >> np.uint32(16))


def _clipped(cy: float, cx: float, radius: float, window: Window) -> tuple[slice, slice] | None:
    """The box of a disc in a window's own pixels, if they share any."""
    found = []
    for middle, begin, length in ((cy, window.top, window.height), (cx, window.left, window.width)):
        low, high = int(max(0, middle - radius - begin)), int(min(length, middle + radius + 2 - begin))
        if low >= high:
            return None
        found.append(slice(low, high))
    return found[0], found[1]


def _mottle(rows: slice, columns: slice, period: int, seed: int) -> np.ndarray:
    """Smooth noise in -1 to 1, `[h, w]` float32: values on a grid, bilinear between them."""
    (top, fy), (left, fx) = (np.divmod(np.arange(s.start, s.stop), period) for s in (rows, columns))
    y0, x0 = top - top[0], left - left[0]
    i, j = np.arange(top[0], top[-1] + 2), np.arange(left[0], left[-1] + 2)
    grid = (_hash(i[:, None], j[None], seed) / 2**31 - 1).astype(np.float32)
    if period == 1:
        return grid[y0[:, None], x0]
    wy, wx = (fy / period).astype(np.float32)[:, None], (fx / period).astype(np.float32)
    upper = grid[y0][:, x0] * (1 - wx) + grid[y0][:, x0 + 1] * wx
    lower = grid[y0 + 1][:, x0] * (1 - wx) + grid[y0 + 1][:, x0 + 1] * wx
    return upper * (1 - wy) + lower * wy
