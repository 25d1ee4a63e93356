# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""An annotator who knows the true mask: strokes three pixels wide along the middle of what is under the pointer."""

from collections import deque

import numpy as np
from skimage.measure import label as components
from skimage.morphology import medial_axis


WIDTH = 3  # pixels, of a stroke
LENGTH = 24  # pixels, of its longest path


def true_stroke(mask: np.ndarray, y: int, x: int, length: int = LENGTH) -> tuple[np.ndarray, int] | None:
    """The stroke that an annotator draws who is asked about a pixel.

    Args:
        mask (`np.ndarray`): `[H, W]` uint8, the true class ids, 255 where there is none.
        y, x (`int`): The pixel.
        length (`int`): Of the path along the medial axis of the connected region around the pixel.

    Returns:
        Boolean `[H, W]`, the pixels of the stroke, all of one true class, and that class; `None` where the truth says
        nothing.
    """
    label = int(mask[y, x])
    if label == 255:
        return None
    own = components(mask == label, connectivity=1)
    region = own == own[y, x]
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    box = (slice(top, rows[-1] + 2), slice(left, columns[-1] + 2))
    # The border of the picture is a border of the region: strokes do not run along it.
    padded = np.pad(region[box], 1)
    axis = medial_axis(padded, rng=0)[1:-1, 1:-1]
    points = np.argwhere(axis)
    start = points[((points - (y - top, x - left)) ** 2).sum(1).argmin()]
    path = _walk(axis, tuple(start), length)
    stroke = np.zeros_like(axis)
    reach = WIDTH // 2
    for py, px in path:
        stroke[max(py - reach, 0) : py + reach + 1, max(px - reach, 0) : px + reach + 1] = True
    result = np.zeros(mask.shape, bool)
    result[box] = stroke & region[box]
    return result, label


def _walk(axis: np.ndarray, start: tuple[int, int], length: int) -> list[tuple[int, int]]:
    """The `length` points of an axis that are nearest to a point along it."""
    seen, queue = {start}, deque([start])
    while queue and len(seen) < length:
        y, x = queue.popleft()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = (y + dy, x + dx)
                inside = 0 <= near[0] < axis.shape[0] and 0 <= near[1] < axis.shape[1]
                if inside and axis[near] and near not in seen and len(seen) < length:
                    seen.add(near)
                    queue.append(near)
    return list(seen)
