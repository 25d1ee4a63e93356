# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Masks that were drawn on another grid than that of their image."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...jobs.errors import UserError
from ..grids import Grid, inside, overlapping
from ..image_processor import warn_once
from .base import LabelReader, Raster, Window


class AlignedRaster(Raster):
    """A mask on the grid of its image: the nearest pixel of the mask, by what both headers say.

    So masks that are flipped, have their axes in another order, are cropped, or of another pixel size, fit; one line
    says so.

    Args:
        mask ([`Raster`]): The mask, which has a grid.
        grid ([`Grid`]), name (`str`): Of the image.

    Raises:
        UserError: The two do not overlap.
    """

    def __init__(self, mask: Raster, grid: Grid, name: str):
        assert mask.grid is not None
        share = overlapping(mask.grid, mask.name, grid, name)
        self._mask, self._own, self.grid = mask, mask.grid, grid
        self.planes, self.height, self.width = grid.shape
        self.name, self.channels, self.dtype, self.volumetric = mask.name, mask.channels, mask.dtype, mask.volumetric
        self.mask_suffix, self.whole = mask.mask_suffix, mask.whole
        covers = "" if share == 1 else f" It covers {share:.0%} of the image; the rest has no label."
        line = f"{mask.name} lies on another grid than {name}, and is read on the grid of the image.{covers}"
        self.notes.append(line)
        warn_once(line)

    def _places(self, plane: int, window: Window) -> np.ndarray:
        """Planes, rows and columns of the mask `[3, h, w]` for the pixels of a window of the image."""
        rows, columns = (np.arange(s.start, s.stop, dtype=float) for s in window.slices)
        at = np.stack(np.meshgrid(float(plane), rows, columns, indexing="ij"))[:, 0]
        return self.grid.indices_in(self._own, at)  # type: ignore[union-attr]

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self._nearest(self._mask.read, plane, window)

    def read_ids(self, plane: int, window: Window) -> np.ndarray:
        return self._nearest(self._mask.read_ids, plane, window)

    def _nearest(self, read: Callable[[int, Window], np.ndarray], plane: int, window: Window) -> np.ndarray:
        places = np.nan_to_num(self._places(plane, window), posinf=0.0)
        # A pixel between two goes to the first, however the headers are rounded.
        limits = np.reshape(self._own.shape, (3, 1, 1)) - 1
        at = np.floor(places + 0.5 - 1e-4).astype(np.int64).clip(0, limits)  # [3,h,w]
        values: np.ndarray | None = None
        for found in np.unique(at[0]):
            own = at[0] == found
            rows, columns = at[1][own], at[2][own]
            top, left = int(rows.min()), int(columns.min())
            part = Window(top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1)
            read_there = read(int(found), part)
            if values is None:
                values = np.zeros((len(read_there), window.height, window.width), read_there.dtype)
            values[:, own] = read_there[:, rows - top, columns - left]
        assert values is not None
        return values

    def uncovered(self, plane: int, window: Window) -> np.ndarray:
        """Where a window of the image lies outside of the mask, `[h, w]` bool."""
        return ~inside(self._places(plane, window), self._own.shape)

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        raise UserError(f"{self.name} is read on the grid of its image; write with the image.")

    def close(self) -> None:
        self._mask.close()


def aligned(mask: Raster, grid: Grid | None, name: str) -> Raster:
    """A mask on the grid of its image.

    Args:
        mask ([`Raster`]): The mask.
        grid ([`Grid`], *optional*), name (`str`): Of the image.

    Returns:
        [`Raster`]: The mask itself, if both have the same grid or one of them does not say it.

    Raises:
        UserError: The two do not overlap.
    """
    if mask.grid is None or grid is None or grid.matches(mask.grid):
        return mask
    return AlignedRaster(mask, grid, name)


def without_label(mask: Raster, ids: np.ndarray, plane: int, window: Window, ignore_index: int) -> np.ndarray:
    """Class ids of a window, ignored where the mask does not cover the image."""
    if not isinstance(mask, AlignedRaster):
        return ids
    return np.where(mask.uncovered(plane, window), np.uint8(ignore_index), ids)
