# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The interface of all formats: planes of channels, read by windows, and masks written with the same geometry."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ...jobs.errors import UserError
from ..grids import Grid


@dataclass(frozen=True)
class Window:
    """A part of a plane in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


# Gives the labels of a window of a plane, `[height, width]`; what is written asks for one window after another.
LabelReader: TypeAlias = Callable[[int, Window], np.ndarray]

WRITTEN = 512  # side of the windows that masks are written by


class Raster(ABC):
    """An image of any size with one or more planes (pages, slices) of any number of channels.

    Attributes:
        name (`str`): Where it comes from, for messages.
        planes (`int`), height (`int`), width (`int`): Its size; height and width in pixels.
        channels (`tuple` of `str`): Names of the channels.
        dtype (`np.dtype`): Of the values.
        pixel_size (two `float`, *optional*): Height and width of a pixel in micrometres, where the file says it.
        plane_distance (`float`, *optional*): From slice to slice of a volume in micrometres.
        grid ([`Grid`], *optional*): Where its pixels lie, if the file says it.
        nodata (`float`, *optional*): Value of pixels without a measurement, where the file names one.
        levels (`tuple` of `float`): Downsampling of each resolution that the file holds, from 1 on.
        orientation (`int`): EXIF orientation that was applied, from 1 (none) to 8.
        whole (`bool`): Whether reading a window decodes the whole image and keeps it in memory.
        volumetric (`bool`): Whether planes are slices of one volume, so that objects extend across them.
        mask_suffix (`str`): Of the file, or folder, that a mask is written to.
        mask_is_folder (`bool`): Which of the two.
        notes (`list` of `str`): What was guessed, dropped or distorted when it was opened, one line each.
    """

    name: str
    planes: int = 1
    height: int
    width: int
    channels: tuple[str, ...]
    dtype: np.dtype
    pixel_size: tuple[float, float] | None = None
    plane_distance: float | None = None
    grid: Grid | None = None
    nodata: float | None = None
    levels: tuple[float, ...] = (1.0,)
    orientation: int = 1
    whole: bool = False
    volumetric: bool = False
    mask_suffix: str
    mask_is_folder: bool = False

    @cached_property
    def notes(self) -> list[str]:
        return []

    @abstractmethod
    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        """A window of a plane, `[C, height, width]`, in the file's own type.

        Args:
            plane (`int`): From 0.
            window ([`Window`]): In pixels of the level; inside of the picture.
            level (`int`, defaults to 0): Index into `levels`.

        Raises:
            UserError: The file is broken there; names it.
        """

    def read_ids(self, plane: int, window: Window) -> np.ndarray:
        """A window of a mask of class ids, `[C, height, width]`: as [`read`], but a palette's numbers, not colours."""
        return self.read(plane, window)

    @abstractmethod
    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        """Writes labels of the size and with the geometry of this picture.

        Args:
            path (`Path`): A file, or for some formats a folder, that is not there.
            labels (`Callable`): Gives the labels of a window of a plane.
            dtype (`np.dtype`): uint8, uint16 or uint32.
            palette (sequence of `[red, green, blue]`, *optional*): Colours of the labels, where the format holds them.
        """

    @property
    def has_gaps(self) -> bool:
        """Whether there may be pixels without a measurement."""
        return self.nodata is not None or self.dtype.kind == "f"

    def gaps(self, values: np.ndarray, plane: int, window: Window, level: int = 0) -> np.ndarray | None:
        """Where nothing was measured, `[h, w]` bool; `None` if something was everywhere.

        Args:
            values (`np.ndarray`): `[C, h, w]`, what was read of the window, or chosen channels of it.
            plane, window, level: As in `read`.
        """
        if not self.has_gaps:
            return None
        found = np.zeros(values.shape[1:], bool)
        if values.dtype.kind == "f":
            found |= np.isnan(values).all(0)
        if self.nodata is not None:
            found |= (values == self.nodata).all(0)
        return found if found.any() else None

    def position(self, plane: int) -> tuple[int, int]:
        """Slice and time of a plane, from 0; pages that are neither count as slices."""
        return plane, 0

    def plane_name(self, plane: int) -> str:
        """What a plane is called, from 1: "z 3", of several times "z 3, t 2", of times alone "t 2"."""
        (z, t), (slices, times) = self.position(plane), self.position(self.planes - 1)
        return ", ".join([f"z {z + 1}"] * (slices > 0 or not times) + [f"t {t + 1}"] * (times > 0))

    def close(self) -> None:  # noqa: B027 (most hold nothing open)
        """Closes the file."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def __enter__(self) -> "Raster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def level_for(self, scale: float) -> int:
        """The coarsest level that still resolves what the model sees at `scale`.

        Args:
            scale (`float`): Model pixels per image pixel.
        """
        enough = [i for i, down in enumerate(self.levels) if down * scale <= 1.001]
        return max(enough, key=lambda i: self.levels[i], default=0)


class ArrayRaster(Raster):
    """An image in memory.

    Args:
        values (`np.ndarray`): `[H, W]`, `[C, H, W]` or, of several planes, `[planes, C, H, W]`.
        name (`str`, defaults to `"An image"`): What to call it in messages.
        channels (sequence of `str`, *optional*): Names of the channels; red, green and blue if three, else numbers.
        pixel_size (two `float`, *optional*): Height and width of a pixel in micrometres.
    """

    mask_suffix = ".npy"

    def __init__(
        self,
        values: np.ndarray,
        name: str = "An image",
        channels: Sequence[str] | None = None,
        pixel_size: tuple[float, float] | None = None,
    ):
        self.values = values[(None,) * (4 - values.ndim)]  # [planes,C,H,W]
        self.planes, count, self.height, self.width = self.values.shape
        self.name, self.dtype, self.pixel_size = name, values.dtype, pixel_size
        self.channels = tuple(channels or default_names(count))

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self.values[plane][(slice(None), *window.slices)]

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        whole = np.stack([labels(p, Window(0, 0, self.height, self.width)) for p in range(self.planes)])
        np.save(path, whole.astype(dtype)[0] if self.planes == 1 else whole.astype(dtype))


def native_tile(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Height and width in image pixels of the field of view of a model of input `size` at a scale."""
    return max(1, round(size[0] / scale)), max(1, round(size[1] / scale))


def scale_of(raster: Raster, scale: float | None, pixel_size: float | None) -> float:
    """Model pixels per image pixel: as given, or so that a model pixel measures `pixel_size` micrometres.

    Raises:
        UserError: The picture does not say how large its pixels are, and a size is wanted.
    """
    if pixel_size is None:
        return scale or 1.0
    if raster.pixel_size is None:
        raise UserError(
            f"{raster.name} does not say how large its pixels are, and {pixel_size:g} µm are wanted, as asked for or "
            f"as the head was fitted; give a --scale in place of --pixel_size."
        )
    return float(np.sqrt(np.prod(raster.pixel_size))) / pixel_size


def default_names(count: int) -> tuple[str, ...]:
    """Default channel names."""
    if count in (3, 4):
        return ("red", "green", "blue", "alpha")[:count]
    return ("gray",) if count == 1 else tuple(map(str, range(count)))


def unique_names(names: Sequence[str | None]) -> tuple[str, ...]:
    """Channel names of a file; numbers where they are missing or not unique."""
    return tuple(n if n and list(names).count(n) == 1 else str(i) for i, n in enumerate(names))


def windows_over(height: int, width: int, side: int = WRITTEN) -> Iterator[Window]:
    """Windows of at most `side` × `side` pixels that cover a plane, row by row."""
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield Window(top, left, min(side, height - top), min(side, width - left))


def broken(name: str, error: Exception) -> UserError:
    """The error for a file that its library cannot read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return UserError(f"{name} cannot be read ({reason.rstrip('.')}); repair or remove it.")
