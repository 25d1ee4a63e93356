# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Planes of stacks and volumes as pictures of their own."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from ..image_processor import mask_to_pil
from .base import LabelReader, Raster, Window
from .opening import TIFF, files_of, open_raster


KEPT = 2**30  # bytes of a decoded volume that is kept in memory
_OME = ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "float64")
_last: dict[tuple, Raster] = {}  # the volume that was opened last, under its path and the state of its files


class OnePlane(Raster):
    """A plane of a stack as a picture. It has no place in space, where it would be a slice without thickness.

    Args:
        raster ([`Raster`]): The stack; closed with its plane.
        plane (`int`): Which plane of it, from 0.
    """

    mask_suffix = ".png"

    def __init__(self, raster: Raster, plane: int):
        self._stack, self._plane = raster, plane
        self.name = f"{raster.name}, {raster.plane_name(plane)}"
        self.height, self.width, self.channels, self.dtype = raster.height, raster.width, raster.channels, raster.dtype
        self.pixel_size, self.nodata, self.levels = raster.pixel_size, raster.nodata, raster.levels
        self.orientation, self.whole, self.notes = raster.orientation, raster.whole, raster.notes

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self._stack.read(self._plane, window, level)

    def read_ids(self, plane: int, window: Window) -> np.ndarray:
        return self._stack.read_ids(self._plane, window)

    @property
    def has_gaps(self) -> bool:
        return self._stack.has_gaps

    def gaps(self, values: np.ndarray, plane: int, window: Window, level: int = 0) -> np.ndarray | None:
        return self._stack.gaps(values, self._plane, window, level)

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        mask_to_pil(labels(0, Window(0, 0, *self.size)).astype(dtype), palette).save(path, "png")

    def close(self) -> None:
        if not self._stack.whole:  # those may be kept, and hold no file
            self._stack.close()


def open_plane(
    path: str, plane: int, planes: int | None = None, axes: str | None = None, slice_axis: str = "z"
) -> OnePlane:
    """Opens a plane of a stack. Of formats that are decoded whole, the last volume is kept for its other planes.

    Args:
        path (`str`): Of the stack.
        plane (`int`): Which plane of it, from 0.
        planes (`int`, *optional*): How many planes it has to have.
        axes, slice_axis: See [`open_raster`].

    Raises:
        UserError: It cannot be read, or has another number of planes.
    """
    raster = _opened(path, axes, slice_axis)
    if raster.planes != (planes or raster.planes):
        raise UserError(f"{path} had {planes} planes and has {raster.planes} now; put back the stack that it was.")
    if not 0 <= plane < raster.planes:
        raise UserError(f"{path} has {raster.planes} planes, and plane {plane + 1} is wanted; choose one of them.")
    return OnePlane(raster, plane)


def _opened(path: str, axes: str | None, slice_axis: str) -> Raster:
    """A stack, or the last volume again if its files are as they were."""
    if path.lower().endswith(TIFF):  # of which a plane is read alone
        return open_raster(path, axes, slice_axis)
    key = (path, slice_axis, _state(path))
    if (kept := _last.get(key)) is not None:
        return kept
    raster = open_raster(path, axes, slice_axis)
    if raster.whole:
        _last.clear()
        if raster.planes * raster.height * raster.width * len(raster.channels) * raster.dtype.itemsize <= KEPT:
            _last[key] = raster
    return raster


def _state(path: str) -> tuple:
    """What changes with the files of a volume: those of a folder, or a file and those that it names."""
    entries = os.scandir(path) if os.path.isdir(path) else map(Path, files_of(path))
    try:
        found = [(os.fspath(entry), entry.stat()) for entry in entries]
    except FileNotFoundError:  # which opening says
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))


def save_picture(raster: Raster, path: Path) -> None:
    """Writes a picture of one plane as a TIFF of its own type, with its channels, sizes of pixels, and gaps.

    Raises:
        UserError: It cannot be read, or the package that writes it is missing.
    """
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise missing_extra("tiff", error.name) from error
    values = raster.read(0, Window(0, 0, *raster.size))  # [C,H,W]
    *colours, last = raster.channels if raster.channels[-1] == "alpha" else (*raster.channels, None)
    options: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib"}
    if raster.nodata is not None and not np.isnan(raster.nodata):
        options["extratags"] = [(42113, 2, 0, f"{raster.nodata:.17g}", True)]  # GDAL's
    packed = values.dtype == bool and len(values) > 1  # which tifffile does not write pixel by pixel
    if colours in (["gray"], ["red", "green", "blue"]) and not packed:
        values = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
        options |= {"photometric": "rgb"} if len(colours) == 3 else {}
        options |= {"extrasamples": ["unassalpha"], "planarconfig": "contig"} if last else {}
        if raster.pixel_size is not None:
            options["resolution"] = tuple(1e4 / size for size in raster.pixel_size[::-1])
            options["resolutionunit"] = "CENTIMETER"
        tifffile.imwrite(path, values, metadata=None, **options)
        return
    metadata: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": list(raster.channels)}}
    for axis, size in zip("YX", raster.pixel_size or ()):
        metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    tifffile.imwrite(path, values, ome=raster.dtype.name in _OME, metadata=metadata, **options)  # it names channels
