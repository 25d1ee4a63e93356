# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of any format in dataset cells; multi-channel TIFFs are kept as encoded bytes."""

from collections.abc import Mapping
from io import BytesIO

import PIL.Image

from ...jobs.errors import UserError
from ..image_processor import is_address, warn_once
from .base import Raster
from .opening import is_raster, open_raster
from .pictures import PictureRaster
from .tiff import TiffRaster


_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def open_cell(value: object, where: str, axes: str | None = None, slice_axis: str = "z") -> Raster:
    """Opens a cell of an image column, and logs the notes of its reader, once each.

    Args:
        value (`PIL.Image.Image`, `str` or mapping): An image, its path, or `path` and `bytes` as `datasets` keeps them.
        where (`str`): What to call it in messages, if it has no path.
        axes, slice_axis: See [`open_raster`].

    Raises:
        UserError: It cannot be read; names its path, or `where`.
    """
    raster = _open(value, where, axes, slice_axis)
    for note in raster.notes:
        warn_once(note)
    return raster


def _open(value: object, where: str, axes: str | None, slice_axis: str) -> Raster:
    if isinstance(value, PIL.Image.Image):
        return PictureRaster(value, where)
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if data is None and not isinstance(path, str):
        raise UserError(f"There is no image in {where}, but {value!r:.40}.")
    if data is None:
        return open_raster(str(path), axes, slice_axis)
    where = f"{path} ({where})" if path else where
    if data[:4] in _TIFF:
        return TiffRaster(BytesIO(data), axes, where)
    return PictureRaster(BytesIO(data), where)


def needs_raster(value: object) -> bool:
    """Whether a cell needs a raster reader because Pillow cannot open it."""
    path = value.get("path") if isinstance(value, Mapping) and value.get("bytes") is None else value
    return isinstance(path, str) and not is_address(path) and is_raster(path)
