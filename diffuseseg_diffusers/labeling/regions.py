# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pixels of strokes and regions of masks."""

import numpy as np
from scipy.ndimage import label

from .journal import UNLABELED


def to_runs(region: np.ndarray, label: int) -> list[list[int]]:
    """Encodes a region, boolean `[H, W]`, as runs of a stroke: row, first column, column behind the last, class id."""
    edges = np.diff(np.pad(region.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    return [[int(y), int(a), int(b), label] for y, a, b in zip(rows, starts, stops)]


def sparse_pixels(ids: np.ndarray, strokes: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `each` pixels of every class in every stroke, evenly spread over it.

    From class ids (`[H, W]` uint8, 255 without a label) and numbers of strokes (`[H, W]` int32): y and x `[P, 2]`,
    class ids `[P]` and numbers of strokes `[P]`, int64.
    """
    where = np.flatnonzero(ids != UNLABELED)
    key = strokes.ravel()[where].astype(np.int64) * 256 + ids.ravel()[where]  # annotations are strokes of many classes
    by_key = np.argsort(key, kind="stable")
    order = where[by_key]
    numbers, starts, counts = np.unique(key[by_key], return_index=True, return_counts=True)
    kept = [order[a + np.linspace(0, n - 1, min(n, each)).round().astype(int)] for a, n in zip(starts, counts)]
    chosen = np.concatenate(kept) if len(numbers) else np.zeros(0, np.int64)
    pixels = np.stack(np.divmod(chosen, ids.shape[1]), 1)
    return pixels, ids.ravel()[chosen].astype(np.int64), strokes.ravel()[chosen].astype(np.int64)


def connected_region(mask: np.ndarray, y: int, x: int) -> np.ndarray:
    """The 4-connected region of a pixel's class: boolean `[H, W]`."""
    regions, _ = label(mask == mask[y, x])
    return regions == regions[y, x]
