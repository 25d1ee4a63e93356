# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What files of annotations say, before their pictures are found and their labels are classes."""

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import PIL.Image

from ...images.image_files import encode_image
from .shapes import Area, Region


FARTHEST = 10**6  # pixels; pycocotools ends the process at coordinates of thousands of millions
NAMES = "label_names"  # key under which formats that list no classes keep their order


@dataclass
class Picture:
    """A picture and what is drawn in it.

    Args:
        name (`str`): Its path or address as the file says it, or what it is called without a suffix.
        shapes (`list`): Labels and areas, those that are covered first.
        size (two `int`, *optional*): Height and width, where the file says them.
        split (`str`, *optional*): The part that it belongs to, where the file says it.
    """

    name: str
    shapes: list[tuple[str, Area]] = field(default_factory=list)
    size: tuple[int, int] | None = None
    split: str | None = None


@dataclass
class Contents:
    """What a file says.

    Args:
        pictures (`list`): With their shapes.
        names (`list` of `str`): Labels in the order of their ids, where the file lists them.
        left_out (`Counter`): What is not read, and how often.
    """

    pictures: list[Picture] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)


@dataclass
class Marked:
    """A picture to be written.

    Args:
        name (`str`): Its file.
        height, width (`int`): Its size in pixels.
        regions (iterable of [`Region`]): What is marked in it, those that are covered first.
        plane (`int`, *optional*): Which plane of a stack it is.
    """

    name: str
    height: int
    width: int
    regions: Iterable[Region]
    plane: int | None = None


def file_for(folder: Path, name: str, suffix: str, taken: set[Path]) -> Path:
    """Where annotations of a picture go: below the folder as the picture lies below its own, unless that is `taken`."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        path = Path(path.name)
    file = folder / path.with_suffix(suffix)
    if file in taken:  # a.png beside a.jpg
        file = folder / f"{path}{suffix}"
    taken.add(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def plain_path(name: str) -> str:
    """A path with slashes, whichever system wrote it."""
    return PureWindowsPath(name).as_posix() if "\\" in name else name


def points_of(values: Iterable[Sequence[Any]]) -> list[list[float]]:
    """Points of a shape as numbers.

    Raises:
        ValueError: They are none.
    """
    points = [[float(x), float(y)] for x, y, *_ in values]
    if not all(abs(number) <= FARTHEST for point in points for number in point):
        raise ValueError(f"a shape has a coordinate that is no number of at most {FARTHEST:,} pixels")
    return points


def polygon_of(points: Iterable[Sequence[Any]]) -> list[float]:
    """A polygon as x, y, x, y, ….

    Raises:
        ValueError: It is none.
    """
    flat = [number for point in points_of(points) for number in point]
    if len(flat) < 6:
        raise ValueError("a polygon has less than three points")
    return flat


def ellipse_points(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0) -> list[list[float]]:
    """An ellipse as a polygon of 720 points, as datumaro writes those of CVAT."""
    t = np.arange(720) * 2 * np.pi / 720
    points = np.stack([radius_x * np.cos(t), radius_y * np.sin(t)], 1)
    return rotated((points + [x, y]).tolist(), (x, y), degrees)


def rotated(points: list[list[float]], around: tuple[float, float], degrees: float) -> list[list[float]]:
    """Points turned clockwise on the screen."""
    if not degrees:
        return points
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = around
    return [[x + (a - x) * cos - (b - y) * sin, y + (a - x) * sin + (b - y) * cos] for a, b in points]


def decode_png(data: bytes) -> np.ndarray:
    """A binary mask that is kept as PNG: `[h, w]` bool; its alpha where it has one."""
    try:
        image = PIL.Image.open(io.BytesIO(data))
    except PIL.UnidentifiedImageError as error:
        raise ValueError("the pixels of a mask are no PNG") from error
    with image:
        if "A" in image.getbands() or "transparency" in image.info:
            return np.asarray(image.convert("RGBA"))[..., 3] > 0
        return np.asarray(image.convert("L")) > 0


def encode_png(mask: np.ndarray) -> str:
    """A binary mask `[h, w]` as PNG of one bit a pixel, in base64."""
    return base64.b64encode(encode_image(PIL.Image.fromarray(np.ascontiguousarray(mask)))).decode("ascii")


def hexcolor(i: int) -> str:
    """A colour for label `i`, #rrggbb."""
    return "#" + "".join(f"{(i * step + 64) % 256:02x}" for step in (37, 101, 167))
