# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures that Pillow decodes, whole: PNG, JPEG, WebP, ….  Masks are palette PNGs."""

import os
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.ExifTags
import PIL.Image

from ..image_processor import ORIENTATION, decode_image, is_address, left_out_pages, mask_to_pil, open_image
from .base import LabelReader, Raster, Window
from .orientation import LYING


_NAMES = {"L": ("gray",), "LA": ("gray", "alpha"), "RGB": ("red", "green", "blue")}
_NAMES["RGBA"] = (*_NAMES["RGB"], "alpha")


class PictureRaster(Raster):
    """A picture of one plane; decoded when it is first read.

    Args:
        source (path, `str`, `BytesIO` or `PIL.Image.Image`): A file, an address, its bytes, or the picture.
        name (`str`): What to call it in messages.

    Raises:
        UserError: It cannot be read.
    """

    whole = True
    mask_suffix = ".png"

    def __init__(self, source: str | os.PathLike | BytesIO | PIL.Image.Image, name: str):
        self.name, self._source = name, source
        if is_address(source) or not self._has_header():
            self.height, self.width, self.dtype = *self.values.shape[1:], self.values.dtype

    def _has_header(self) -> bool:
        """Whether size and channels are known without decoding."""
        if isinstance(self._source, PIL.Image.Image):
            if self._source.mode not in _NAMES:
                return False
            (self.width, self.height), self.channels = self._source.size, _NAMES[self._source.mode]
            self.dtype, self.orientation = np.dtype(np.uint8), self._source.info.get(ORIENTATION, 1)
            return True
        try:
            with PIL.Image.open(self._source) as image:  # type: ignore[arg-type]
                self.notes += left_out_pages(image, self.name)
                if image.format != "PNG" or "exif" in image.info:  # else it would be decoded to look for it at the end
                    self.orientation = image.getexif().get(
                        PIL.ExifTags.Base.Orientation, 1
                    )  # is applied when it is decoded
                self.width, self.height = image.size[::-1] if self.orientation in LYING else image.size
                self.channels, self.dtype = _NAMES.get(image.mode, ()), np.dtype(np.uint8)
                return image.mode in _NAMES and image.format != "TIFF"  # whose size depends on Pillow's version
        except Exception:  # what is wrong with it, decoding says
            return False
        finally:
            if isinstance(self._source, BytesIO):
                self._source.seek(0)

    @cached_property
    def values(self) -> np.ndarray:
        """All of it, `[C, H, W]`."""
        is_name = isinstance(self._source, (str, os.PathLike))
        image = open_image(self._source) if is_name else decode_image(self._source, self.name)  # type: ignore
        self.orientation = image.info.get(ORIENTATION, 1)
        if image.mode not in _NAMES and not image.mode.startswith("I") and image.mode != "F":
            image = image.convert("L" if image.mode == "1" else "LA" if image.mode == "La" else "RGB")
        values = np.asarray(image)
        if image.mode == "I" and values.min(initial=0) >= 0 and values.max(initial=0) <= 65535:
            values = values.astype(np.uint16)  # how Pillow holds some 16-bit files
        self.channels = _NAMES.get(image.mode, ("gray",))
        return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self.values[(slice(None), *window.slices)]

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        whole = labels(0, Window(0, 0, self.height, self.width)).astype(dtype)
        image = mask_to_pil(whole, palette) if palette and dtype == np.uint8 else PIL.Image.fromarray(whole)
        image.save(path, "png")
