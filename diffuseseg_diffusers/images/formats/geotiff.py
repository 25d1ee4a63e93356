# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Georeferenced images, read and written by rasterio."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...jobs.install import missing_extra
from ..grids import map_grid
from .base import WRITTEN, LabelReader, Raster, Window, broken, default_names, unique_names, windows_over


IGNORED = 255


class GeoRaster(Raster):
    """A GeoTIFF, or any other band raster that GDAL opens.

    Args:
        path (path): Of the file.

    Attributes:
        crs (`rasterio.crs.CRS`, *optional*), transform (`affine.Affine`): Coordinates of pixels.

    Raises:
        UserError: The file is broken.
    """

    mask_suffix = ".tif"

    def __init__(self, path: str | os.PathLike):
        try:
            import rasterio
        except ModuleNotFoundError as error:
            raise missing_extra("geo", error.name) from error
        self.name, self._lock = str(path), threading.Lock()
        try:
            self._file = file = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise broken(self.name, error) from error
        self.height, self.width, self.dtype = file.height, file.width, np.dtype(file.dtypes[0])
        self.crs, self.transform = file.crs, file.transform
        self.grid = map_grid(self.size, self.transform, self.crs)
        self.nodata = file.nodata
        colours = [colour.name for colour in file.colorinterp]
        names = [
            d or (c if c in ("red", "green", "blue", "alpha") else None) for d, c in zip(file.descriptions, colours)
        ]
        self.channels = default_names(1) if names == [None] else unique_names(names)
        self.levels = (1.0, *map(float, file.overviews(1)))
        if self.crs is not None and self.crs.is_projected:
            metres = self.crs.linear_units_factor[1]
            across, down = (np.hypot(self.transform.a, self.transform.d), np.hypot(self.transform.b, self.transform.e))
            self.pixel_size = float(down * metres * 1e6), float(across * metres * 1e6)

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        import rasterio
        from rasterio.windows import Window as RasterioWindow

        down = self.levels[level]
        part = RasterioWindow(window.left * down, window.top * down, window.width * down, window.height * down)
        try:
            with self._lock:
                return self._file.read(window=part, out_shape=(len(self.channels), window.height, window.width))
        except rasterio.errors.RasterioError as error:
            raise broken(self.name, error) from error

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import rasterio
        from rasterio.windows import Window as RasterioWindow

        points, of_points = self._file.gcps
        profile = dict(driver="GTiff", height=self.height, width=self.width, count=1, dtype=dtype.name)
        profile |= dict(tiled=True, blockxsize=WRITTEN, blockysize=WRITTEN, compress="deflate", bigtiff="if_safer")
        if points:
            profile |= dict(gcps=points, crs=of_points)
        else:
            profile |= dict(crs=self.crs, transform=self.transform)
        if dtype == np.uint8:
            profile["nodata"] = IGNORED
        with rasterio.open(path, "w", **profile) as file:
            if palette and dtype == np.uint8:
                file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(palette)})
            kept = {k: v for k, v in self._file.tags().items() if k in ("AREA_OR_POINT",)}
            file.update_tags(**kept)
            for window in windows_over(self.height, self.width):
                part = RasterioWindow(window.left, window.top, window.width, window.height)
                file.write(labels(0, window).astype(dtype), 1, window=part)

    def close(self) -> None:
        self._file.close()
