# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What one image of a dataset holds, and a small rendering of it."""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import PIL.Image

from ..images.channels import stretch, to_rgb
from ..images.formats.base import Raster, Window
from ..images.formats.cells import open_cell


READ_WHOLE = 2**26  # pixels up to which a picture is read whole; of larger ones the coarsest level is
SHOWN = 512  # longest side of the pictures of a page, in pixels


@dataclass
class Picture:
    """What was read of one image, and of its mask if it has one.

    Args:
        split (`str`), name (`str`): Where it is: its path, or its row.
        height, width, planes (`int`): Its size; height and width in pixels.
        channels (`list[str]`): Names of the channels.
        dtype (`str`): NumPy's name of the type of the values.
        low, high (`float`, *optional*): Least and greatest finite value; of pictures of more than 2^26 pixels, of the
            coarsest level.
        pixel_size (`list[float]`, *optional*): Height and width of a pixel in µm, where the file says it.
        classes (`dict[int, int]`): Pixels of each class id of the mask, ignored ones included.
        notes (`list[str]`): What the reader guessed, dropped or changed.
        error (`str`): Why the image or its mask cannot be used; empty if both can.
        digest (`str`): SHA-256 of the decoded pixels.
    """

    split: str
    name: str
    height: int = 0
    width: int = 0
    planes: int = 1
    channels: list[str] = field(default_factory=list)
    dtype: str = ""
    low: float | None = None
    high: float | None = None
    pixel_size: list[float] | None = None
    classes: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    digest: str = ""

    @property
    def size(self) -> str:
        """Width × height, and planes if there are several, for people."""
        return f"{self.width} × {self.height}" + (f" × {self.planes} planes" if self.planes > 1 else "")

    @property
    def kind(self) -> str:
        """Type and channels, for people."""
        return f"{self.dtype} {'+'.join(self.channels)}"


def read_picture(cell: object, split: str, where: str, axes: str | None, slice_axis: str) -> tuple[Picture, np.ndarray]:
    """What a cell of an image column holds, opened as `segment` opens it, and a small rendering, `[H, W, 3]` uint8.

    Values that are not eight-bit are stretched in the rendering, from their 0.5th to their 99.5th percentile.

    Raises:
        UserError: It cannot be read.
    """
    with open_cell(cell, where, axes, slice_axis) as raster:
        level = 0 if raster.height * raster.width <= READ_WHOLE else len(raster.levels) - 1
        down, middle = raster.levels[level], raster.planes // 2
        window = Window(0, 0, max(1, int(raster.height / down)), max(1, int(raster.width / down)))
        digest, limits = hashlib.sha256(), []
        for plane in range(raster.planes):
            values = raster.read(plane, window, level)  # [C,h,w]
            digest.update(repr((values.shape, values.dtype.str)).encode())
            digest.update(values.tobytes())
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                limits += [float(finite.min()), float(finite.max())]
            if plane == middle:
                rendering = _rendered(values, raster)
        picture = Picture(
            split=split,
            name=raster.name,
            height=raster.height,
            width=raster.width,
            planes=raster.planes,
            channels=list(raster.channels),
            dtype=str(raster.dtype),
            low=min(limits, default=None),
            high=max(limits, default=None),
            pixel_size=list(raster.pixel_size) if raster.pixel_size else None,
            notes=list(raster.notes),
            digest=digest.hexdigest(),
        )
    return picture, rendering


def _rendered(values: np.ndarray, raster: Raster) -> np.ndarray:
    step = view_step(raster)
    shown = values[[i for i, name in enumerate(raster.channels) if name != "alpha"]]
    image = PIL.Image.fromarray(to_rgb(stretch(shown)[0]))
    return np.asarray(image.resize((-(-raster.width // step), -(-raster.height // step)), PIL.Image.Resampling.BOX))


def view_step(size: Picture | Raster) -> int:
    """Every how many rows and columns a view has one; a power of two, as the parts of masks are."""
    return 2 ** max(0, math.ceil(math.log2(max(size.height, size.width) / SHOWN)))
