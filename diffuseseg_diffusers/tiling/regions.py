# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What tiles of a block see of a picture."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..images.channels import InputChannels
from ..images.formats.base import Raster, Window


class Region:
    """What tiles of a block see, read at once.

    Args:
        raster ([`Raster`]), plane (`int`): The picture, and which part of it.
        level (`int`): At which resolution of the file.
        tile (two `int`): Height and width of a tile in pixels of the picture.
        corners (sequence of `(top, left)`): Of the tiles, row after row.
        channels ([`InputChannels`]), in_channels (`int`): What the model reads of it.
    """

    def __init__(
        self,
        raster: Raster,
        plane: int,
        level: int,
        tile: tuple[int, int],
        corners: Sequence[tuple[int, int]],
        channels: InputChannels,
        in_channels: int,
    ):
        self.name, self.channels, self.in_channels = raster.name, channels, in_channels
        chosen = channels.indices(raster.channels, raster.name)
        self.down = raster.levels[level]
        sizes = raster.height / self.down, raster.width / self.down
        self.size = tuple(max(1, round(side)) for side in sizes)
        self.side = tuple(max(1, round(side / self.down)) for side in tile)  # of a tile, at this resolution
        self.top, self.left = self._at(corners[0])
        bottom, right = self._at(corners[-1])
        height = min(self.size[0], bottom + self.side[0]) - self.top
        width = min(self.size[1], right + self.side[1]) - self.left
        window = Window(self.top, self.left, height, width)
        values = raster.read(plane, window, level)
        self.values = values if list(chosen) == list(range(len(values))) else values[list(chosen)]
        self.empty = raster.gaps(self.values, plane, window, level)  # [h,w]

    def _at(self, corner: tuple[int, int]) -> tuple[int, int]:
        """A corner at this resolution; no tile leaves the picture."""
        rows, columns = (
            max(0, min(round(at / self.down), size - side)) for at, size, side in zip(corner, self.size, self.side)
        )
        return rows, columns

    def _of(self, top: int, left: int) -> tuple[slice, slice]:
        y, x = self._at((top, left))
        return slice(y - self.top, y - self.top + self.side[0]), slice(x - self.left, x - self.left + self.side[1])

    def measured(self, top: int, left: int) -> bool:
        """Whether a tile has a single measurement."""
        return self.empty is None or not self.empty[self._of(top, left)].all()

    def valid(self, block: Window) -> np.ndarray | None:
        """Where a block has measurements, `[h, w]`; `None` where it has them everywhere."""
        if self.empty is None:
            return None
        rows = ((np.arange(block.top, block.top + block.height) + 0.5) / self.down).astype(int) - self.top
        columns = ((np.arange(block.left, block.left + block.width) + 0.5) / self.down).astype(int) - self.left
        shape = self.empty.shape
        return ~self.empty[rows.clip(0, shape[0] - 1)[:, None], columns.clip(0, shape[1] - 1)]

    def tile(self, top: int, left: int, size: tuple[int, int]) -> torch.Tensor:
        """A tile, resized to `[in_channels, *size]` in [0, 1]; beyond the picture it is mirrored."""
        values = self.values[(slice(None), *self._of(top, left))]
        x = self.channels.encode(values, self.in_channels, self.name)
        if x.shape[1:] != self.side:
            x = np.pad(x, [(0, 0), *((0, side - n) for side, n in zip(self.side, x.shape[1:]))], mode="symmetric")
        pixels = torch.from_numpy(x)
        if self.side != size:
            pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
        return pixels
