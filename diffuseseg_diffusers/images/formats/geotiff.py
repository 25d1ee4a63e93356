# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Georeferenced images, read and written by rasterio."""

import os
import threading
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.install import missing_extra
from ..grids import map_grid
from .base import WRITTEN, LabelReader, Raster, Window, broken, default_names, unique_names, windows_over
from .samples import Samples


IGNORED = 255


# How a JPEG 2000 says where it lies: the UUID of GeoJP2, or GML of GMLJP2.
_IN_JP2 = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.root-instance", b"gml.data")


def has_place_beside(path: str | os.PathLike) -> bool:
    """Whether a JPEG 2000, or files beside a picture, say where it lies."""
    if os.fspath(path).lower().endswith(".jp2") and os.path.isfile(path):
        with open(path, "rb") as file:
            head = file.read(2**15)
        if any(sign in head for sign in _IN_JP2):
            return True
    return bool(place_files(path))


def place_files(path: str | os.PathLike) -> list[str]:
    """Files beside a picture that say where it lies: a world file, RPCs, or GDAL's `.aux.xml`."""
    stem, suffix = os.path.splitext(os.fspath(path))
    ends = [f"{suffix[:2]}{suffix[-1:]}w", f"{suffix}w", ".wld"]
    ends = [end.upper() for end in ends] if suffix.isupper() else ends
    if suffix.lower().startswith(".tif"):
        ends += ["_RPC.TXT", "_rpc.txt", ".RPB"]
    found = [stem + end for end in ends if os.path.isfile(stem + end)]
    described = f"{path}.aux.xml"
    if os.path.isfile(described):
        text = Path(described).read_text("utf-8", errors="replace")
        found += [described] * any(tag in text for tag in ("<GeoTransform", "<GCPList", "<SRS"))
    return found


class GeoRaster(Raster):
    """A GeoTIFF, or any other band raster that GDAL opens.

    Args:
        source (path or `BytesIO`): Of the file, or its bytes.
        name (`str`): What to call it in messages.

    Attributes:
        crs (`rasterio.crs.CRS`, *optional*), transform (`affine.Affine`): Coordinates of pixels.

    Raises:
        UserError: The file is broken.
    """

    mask_suffix = ".tif"

    def __init__(self, source: str | os.PathLike | BytesIO, name: str):
        try:
            import rasterio
        except ModuleNotFoundError as error:
            raise missing_extra("geo", error.name) from error
        self.name, self._lock, self._memory = name, threading.Lock(), None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                if isinstance(source, BytesIO):
                    self._memory = rasterio.MemoryFile(source.getvalue())
                self._file = file = rasterio.open(source) if self._memory is None else self._memory.open()
        except rasterio.errors.RasterioError as error:
            raise broken(self.name, error) from error
        self.height, self.width = file.height, file.width
        self.crs, self.transform = file.crs, file.transform
        self.grid = map_grid(self.size, self.transform, self.crs)
        self.nodata = file.nodata
        colours = [colour.name for colour in file.colorinterp]
        names = [
            d or (c if c in ("red", "green", "blue", "alpha") else None) for d, c in zip(file.descriptions, colours)
        ]
        self._samples = self._appearance(colours)
        self.dtype = self._samples.dtype(np.dtype(file.dtypes[0]))
        self.channels = self._samples.channels(default_names(1) if names == [None] else unique_names(names))
        self.levels = (1.0, *map(float, file.overviews(1)))
        flags = {flag for own in file.mask_flag_enums for flag in own}
        self._has_mask = rasterio.enums.MaskFlags.per_dataset in flags
        if self.nodata is not None and (self._samples.inverted or self._samples.palette is not None):
            self.nodata, self._has_mask = None, True  # is a value that is stored, not one that is shown
        if self.crs is not None and self.crs.is_projected:
            metres = self.crs.linear_units_factor[1]
            across, down = (np.hypot(self.transform.a, self.transform.d), np.hypot(self.transform.b, self.transform.e))
            self.pixel_size = float(down * metres * 1e6), float(across * metres * 1e6)

    def _appearance(self, colours: Sequence[str]) -> Samples:
        """What its samples mean; GDAL itself makes RGB of CMYK, Lab and YCbCr."""
        structure = self._file.tags(ns="IMAGE_STRUCTURE") | self._file.tags(1, ns="IMAGE_STRUCTURE")
        bits = int(structure.get("NBITS", 0)) or None
        inverted, palette = structure.get("MINISWHITE") == "YES", None
        if colours[0] == "palette" and not inverted:  # GDAL gives inverted ones a palette of greys
            palette = np.array([colour[:3] for _, colour in sorted(self._file.colormap(1).items())], np.uint8)
        return Samples(self.name, bits, inverted, palette)

    def _part(self, window: Window, level: int) -> dict[str, Any]:
        from rasterio.windows import Window as RasterioWindow

        down = self.levels[level]
        part = RasterioWindow(window.left * down, window.top * down, window.width * down, window.height * down)
        return {"window": part, "out_shape": (window.height, window.width)}

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self._samples.shown(self._stored(window, level))

    def read_ids(self, plane: int, window: Window) -> np.ndarray:
        return self._samples.shown(self._stored(window, 0), numbers=True)

    def _stored(self, window: Window, level: int) -> np.ndarray:
        import rasterio

        part = self._part(window, level)
        part["out_shape"] = (self._file.count, *part["out_shape"])
        try:
            with self._lock:
                return self._file.read(**part)
        except rasterio.errors.RasterioError as error:
            raise broken(self.name, error) from error

    @property
    def has_gaps(self) -> bool:
        return self._has_mask or super().has_gaps

    def gaps(self, values: np.ndarray, plane: int, window: Window, level: int = 0) -> np.ndarray | None:
        found = super().gaps(values, plane, window, level)
        if self._has_mask:  # a mask band, or alpha
            with self._lock:
                outside = self._file.read_masks(1, **self._part(window, level)) == 0
            found = outside if found is None else found | outside
        return found if found is not None and found.any() else None

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
        elif self.crs is not None or not self.transform.is_identity:
            profile |= dict(crs=self.crs, transform=self.transform)
        if dtype == np.uint8:
            profile["nodata"] = IGNORED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            file = rasterio.open(path, "w", **profile)
        with file:
            if self._file.rpcs is not None:
                file.rpcs = self._file.rpcs
            if palette and dtype == np.uint8:
                file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(palette)})
            kept = {k: v for k, v in self._file.tags().items() if k in ("AREA_OR_POINT",)}
            file.update_tags(**kept)
            for window in windows_over(self.height, self.width):
                part = RasterioWindow(window.left, window.top, window.width, window.height)
                file.write(labels(0, window).astype(dtype), 1, window=part)

    def close(self) -> None:
        self._file.close()
        if self._memory is not None:
            self._memory.close()
