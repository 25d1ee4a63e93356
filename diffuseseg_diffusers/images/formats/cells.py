# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of any format in dataset cells; multi-channel TIFFs are kept as encoded bytes."""

from collections.abc import Mapping
from io import BytesIO

import numpy as np
import PIL.Image

from ...jobs.errors import UserError
from ..channels import InputChannels
from ..image_processor import ORIENTATION, is_address, warn_once
from .base import ArrayRaster, Raster, Window
from .opening import has_tiff, is_raster, open_raster, open_tiff_raster
from .pictures import PictureRaster
from .planes import open_plane


_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


def open_cell(value: object, where: str, axes: str | None = None, slice_axis: str = "z") -> Raster:
    """Opens a cell of an image column, and logs the notes of its reader, once each.

    Args:
        value (`PIL.Image.Image`, `str` or mapping): An image, its path, or `path` and `bytes` as `datasets` keeps them;
            or `path`, `plane` and `planes`, a plane of a stack as a picture, see [`open_plane`].
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
    if isinstance(value, (list, np.ndarray)):
        return ArrayRaster(_channels_first(np.asarray(value), where), where)
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if data is None and not isinstance(path, str):
        raise UserError(f"There is no image in {where}, but {value!r:.40}.")
    if isinstance(value, Mapping) and value.get("plane") is not None:
        return open_plane(str(path), value["plane"], value.get("planes"), axes, slice_axis)
    if data is None:
        return open_raster(str(path), axes, slice_axis)
    where = f"{path} ({where})" if path else where
    if data[:4] in _TIFF and has_tiff():
        return open_tiff_raster(BytesIO(data), where, axes)
    return PictureRaster(BytesIO(data), where)


def _channels_first(values: np.ndarray, where: str) -> np.ndarray:
    """An array in a cell, such as of `datasets.Array3D`, as `[C, H, W]`.

    Raises:
        UserError: It has other dimensions, or it is unknown which of them is of channels.
    """
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3) or not values.size:
        raise UserError(f"{where} holds an array {values.shape} of {values.dtype}; an image is [H, W] or [C, H, W].")
    if values.ndim == 2:
        return values[None]
    first, last = values.shape[0] in (1, 3, 4), values.shape[2] in (1, 3, 4)
    if first == last:
        raise UserError(f"{where} holds an array {values.shape}, of which it is unknown where its channels are.")
    return values if first else values.transpose(2, 0, 1)


def raster_picture(raster: Raster) -> PIL.Image.Image | None:
    """A raster as Pillow would have opened it, without alpha; `None` if it is no picture of one plane, grey or RGB."""
    chosen = InputChannels().indices(raster.channels, raster.name)
    modes = {1: ("uint8", "bool", "uint16", "float32"), 3: ("uint8",)}
    if raster.planes > 1 or raster.dtype.name not in modes.get(len(chosen), ()):
        return None
    values = raster.read(0, Window(0, 0, raster.height, raster.width))[chosen]
    image = PIL.Image.fromarray(np.ascontiguousarray(values[0] if len(chosen) == 1 else values.transpose(1, 2, 0)))
    image.info[ORIENTATION] = raster.orientation
    return image


def needs_raster(value: object) -> bool:
    """Whether a cell is read by one of our readers rather than by Pillow: TIFFs, maps, volumes, arrays."""
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if data is not None:
        return data[:4] in _TIFF and has_tiff()
    if isinstance(value, (list, np.ndarray)):
        return True
    return isinstance(path, str) and not is_address(path) and is_raster(path)
