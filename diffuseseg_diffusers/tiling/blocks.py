# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Blocks of large pictures on disk, read as one picture."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..images.channels import InputChannels, to_rgb
from ..images.formats.base import WRITTEN, Raster, Window, windows_over
from ..images.image_processor import overlay
from ..pipelines.segmenter import Segmenter


OVERLAY_SIDE = 2048  # of overlays of large pictures, which are made smaller


class BlockFiles:
    """What blocks hold, as one picture, of which little is in memory at a time.

    Args:
        paths (`dict`): File of each `(plane, block)`.
    """

    def __init__(self, paths: dict[tuple[int, Window], Path]):
        self.paths = paths
        self._kept: OrderedDict[Path, Any] = OrderedDict()
        self._by_plane: dict[int, list[tuple[Window, Path]]] = {}
        for (plane, block), path in paths.items():
            self._by_plane.setdefault(plane, []).append((block, path))

    def labels(self, plane: int, window: Window) -> np.ndarray:
        """Class ids of a window, `[h, w]` uint8."""
        return self._window(plane, window, "labels", np.dtype(np.uint8))

    def uncertainty(self, plane: int, window: Window) -> np.ndarray | None:
        """Uncertainty of a window in nats, `[h, w]` float32, if it was kept."""
        path = next(iter(self.paths.values()))
        if "uncertainty" not in self._load(path):
            return None
        return self._window(plane, window, "uncertainty", np.dtype(np.float32))

    def _window(self, plane: int, window: Window, name: str, dtype: np.dtype) -> np.ndarray:
        found = np.zeros((window.height, window.width), dtype)
        for block, path in self._by_plane[plane]:
            top, left = max(block.top, window.top), max(block.left, window.left)
            bottom = min(block.top + block.height, window.top + window.height)
            right = min(block.left + block.width, window.left + window.width)
            if top < bottom and left < right:
                inside = slice(top - block.top, bottom - block.top), slice(left - block.left, right - block.left)
                place = slice(top - window.top, bottom - window.top), slice(left - window.left, right - window.left)
                found[place] = self._load(path)[name][inside]
        return found

    def _load(self, path: Path) -> dict[str, np.ndarray]:
        if path not in self._kept:
            with np.load(path, allow_pickle=False) as file:
                self._kept[path] = {name: file[name] for name in file.files}
            row = max(len(blocks) for blocks in self._by_plane.values()) ** 0.5 + 1
            while len(self._kept) > 2 * row:  # windows go row after row
                self._kept.popitem(last=False)
        self._kept.move_to_end(path)
        return self._kept[path]

    def totals(self, num_classes: int, ignored: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Pixels of each class, `[num_classes]`, and the histogram of uncertainty, if there is one."""
        counts, histogram = np.zeros(256, np.int64), None
        for path in self.paths.values():
            found = self._load(path)
            counts += np.bincount(found["labels"].ravel(), minlength=256)
            if "histogram" in found:
                histogram = found["histogram"] + (0 if histogram is None else histogram)
        counts[ignored] = 0 if ignored >= num_classes else counts[ignored]
        return counts[:num_classes], histogram


def reduced_overlay(
    raster: Raster, plane: int, channels: InputChannels, pipe: Segmenter, blocks: BlockFiles, alpha: float
) -> PIL.Image.Image:
    """The overlay of a plane, of at most 2,048 pixels a side: every n-th pixel."""
    down = -(-max(raster.size) // OVERLAY_SIDE)
    side = max(1, WRITTEN * 4 // down) * down
    shape = -(-raster.height // down), -(-raster.width // down)
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    chosen = channels.indices(raster.channels, raster.name)
    for window in windows_over(raster.height, raster.width, side):
        values = raster.read(plane, window)[chosen][:, ::down, ::down]
        place = tuple(slice(s.start // down, s.start // down + n) for s, n in zip(window.slices, values.shape[1:]))
        image[place] = to_rgb(channels.encode(values, len(chosen), raster.name))
        mask[place] = blocks.labels(plane, window)[::down, ::down]
    return overlay(PIL.Image.fromarray(image), mask, pipe.palette, alpha)
