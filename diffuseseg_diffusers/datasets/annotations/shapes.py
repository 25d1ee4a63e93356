# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Areas and their pixels. Each area is filled by the rule of the program that it was drawn with.

An area is a mapping with one key:

* `runs`: lengths of runs outside and inside of it, in turn, column after column (COCO); a list, or COCO's text
* `polygons`: `[[x, y, x, y, …], …]`, together, as pycocotools fills them (COCO, CVAT, Label Studio)
* `drawn`: `[kind, points]` as Pillow draws it (labelme)
* `filled`: `[outline, hole, …]` of whole numbers, with its border, and without that of its holes (YOLO and Supervisely,
  whose programs take OpenCV's `fillPoly`)
* `rings`: `[[[x, y], …], …]`: pixels whose centre lies inside an odd number of them (QuPath, as Java fills shapes)

Coordinates are pixels from the top left corner. What lies outside of the picture is cut off.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import PIL.Image
import PIL.ImageDraw

from ...jobs.errors import UserError
from ...jobs.install import missing_extra


Area: TypeAlias = dict[str, Any]

BACKGROUND = ("background", "_background_", "__background__")
IGNORED = "__ignore__"  # label of pixels without a class, as in labelme's examples


@dataclass(frozen=True)
class Region:
    """Pixels with a label, to be written.

    Args:
        label (`str`): Name of its class, or `IGNORED`.
        mask (`np.ndarray`): `[h, w]` bool, the box around it.
        top, left (`int`): Where the box is in the picture.
        number (`int`, *optional*): Of the object that it is.
    """

    label: str
    mask: np.ndarray
    top: int = 0
    left: int = 0
    number: int | None = None

    @classmethod
    def around(cls, own: np.ndarray, label: str, top: int = 0, left: int = 0, number: int | None = None) -> "Region":
        """A region with the smallest box, of a mask `[H, W]` that has a pixel."""
        rows, columns = (np.flatnonzero(own.any(axis)) for axis in (1, 0))
        box = own[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(label, box, top + int(rows[0]), left + int(columns[0]), number)

    def whole(self, height: int, width: int) -> np.ndarray:
        """The mask in a picture of this size, `[height, width]` bool."""
        out = np.zeros((height, width), bool)
        out[self.top : self.top + self.mask.shape[0], self.left : self.left + self.mask.shape[1]] = self.mask
        return out


def from_mask(ids: np.ndarray, names: Sequence[str], ignore_index: int = 255) -> list[Region]:
    """Regions of a mask, one for each class in it; without the first class if that is the background.

    Args:
        ids (`np.ndarray`): `[H, W]` uint8, class ids.
        names (sequence of `str`): Of the classes.
        ignore_index (`int`, defaults to 255): Id of pixels without a label, which become a region too.
    """
    regions = []
    for i in np.unique(ids).tolist():
        if i != ignore_index and i >= len(names):
            raise UserError(f"The mask has the id {i}, but there are {len(names)} classes.")
        if i == ignore_index or i or not is_background(names[0]):
            regions.append(Region.around(ids == i, IGNORED if i == ignore_index else names[i]))
    return regions


def is_background(name: str) -> bool:
    """Whether a class is called background, in one of its usual spellings."""
    return name.lower() in BACKGROUND


def rasterize(cell: str) -> np.ndarray:
    """The mask that a cell of shapes stands for, `[H, W]` uint8 class ids; later shapes cover earlier ones.

    Args:
        cell (`str`): JSON of `height`, `width`, `outside`, the id of pixels in no shape, and `shapes`, each an area
            with its `class`.
    """
    drawing = json.loads(cell)
    out = np.full((drawing["height"], drawing["width"]), drawing["outside"], np.uint8)
    for shape in drawing["shapes"]:
        paint(out, shape, shape["class"])
    return out


def is_cell(value: object) -> bool:
    """Whether a cell of a column of masks holds shapes."""
    return isinstance(value, str) and value.startswith('{"height":')


def paint(out: np.ndarray, area: Area, value: int) -> None:
    """Sets the pixels of an area in an array `[H, W]`."""
    kind = next(kind for kind in _PAINTERS if kind in area)
    _PAINTERS[kind](out, area[kind], value)


def _paint_runs(out: np.ndarray, counts: list[int] | str, value: int) -> None:
    height, width = out.shape
    counts = decode_counts(counts) if isinstance(counts, str) else counts
    ends = np.cumsum(counts)
    lengths = np.asarray(counts[1::2], int)
    begins = ends[::2][: len(lengths)]
    at = np.repeat(begins - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())  # down the columns
    out[at % height, at // height] = value


def _paint_polygons(out: np.ndarray, polygons: list[list[float]], value: int) -> None:
    coco = pycocotools()
    found = coco.decode(coco.merge(coco.frPyObjects(polygons, *out.shape)))
    out[found.astype(bool)] = value


def _paint_drawn(out: np.ndarray, drawn: tuple[str, list], value: int) -> None:
    kind, points = drawn
    image = PIL.Image.new("L", out.shape[::-1])
    draw = PIL.ImageDraw.Draw(image)
    if kind == "polygon":
        draw.polygon([tuple(point) for point in points], fill=1, outline=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), fill=1, outline=1)
    else:  # a circle: its centre, and a point of it
        (x, y), (at_x, at_y) = points
        radius = float(np.hypot(at_x - x, at_y - y))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1, outline=1)
    out[np.asarray(image, bool)] = value


def _paint_filled(out: np.ndarray, rings: list[list[list[int]]], value: int) -> None:
    mask = np.zeros_like(out)
    for i, ring in enumerate(rings):
        _paint_rings(mask, [[[x + 0.5, y + 0.5] for x, y in ring]], i == 0)  # points are centres of pixels
        image = PIL.Image.fromarray(mask)
        PIL.ImageDraw.Draw(image).line([tuple(point) for point in [*ring, ring[0]]], fill=int(i == 0))
        mask = np.array(image)
    out[mask > 0] = value


def _paint_rings(out: np.ndarray, rings: list[list[list[float]]], value: int) -> None:
    height, width = out.shape
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], 1) for ring in map(np.asarray, rings)])
    (x0, y0), (x1, y1) = edges[:, 0].T, edges[:, 1].T
    # Rows whose centre an edge passes: from the first at or below its upper end to the last above its lower end.
    first, behind = (np.clip(np.ceil(y - 0.5), 0, height).astype(int) for y in (np.minimum(y0, y1), np.maximum(y0, y1)))
    count = behind - first
    edge = np.repeat(np.arange(len(edges)), count)
    rows = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    cross = x0[edge] + (rows + 0.5 - y0[edge]) * slope
    columns = np.clip(np.ceil(cross - 0.5), 0, width).astype(int)  # the first pixel whose centre is not left of it
    if not len(rows):
        return
    top, left, bottom, right = rows.min(), columns.min(), rows.max() + 1, columns.max()
    passed = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(passed, (rows - top, columns - left), 1)
    inside = np.cumsum(passed, axis=1)[:, :-1] % 2 == 1
    out[top:bottom, left:right][inside] = value


_PAINTERS: dict[str, Callable[[np.ndarray, Any, int], None]] = {
    "runs": _paint_runs,
    "polygons": _paint_polygons,
    "drawn": _paint_drawn,
    "filled": _paint_filled,
    "rings": _paint_rings,
}


def decode_counts(text: str) -> list[int]:
    """Run lengths of COCO's compressed text, five bits a character (maskApi.c); pycocotools checks no sum of them."""
    counts: list[int] = []
    value = bits = 0
    for character in text.encode("ascii"):
        value |= (character - 48 & 31) << bits
        bits += 5
        if character - 48 & 32:
            continue
        if character - 48 & 16:  # negative
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))  # from the fourth on, the difference
        value = bits = 0
    return counts


def pycocotools() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        UserError: It is not installed.
    """
    try:
        from pycocotools import mask
    except ModuleNotFoundError as error:
        raise missing_extra("objects", error.name) from error
    return mask


def masked(mask: np.ndarray, top: int, left: int, size: tuple[int, int]) -> Area:
    """The area of a mask `[h, w]` at a place in a picture of this height and width."""
    cut = top < 0 or left < 0 or top + mask.shape[0] > size[0] or left + mask.shape[1] > size[1]
    return {"runs": run_lengths(mask, top, left, *size)} | ({"cut": True} if cut else {})


def run_lengths(own: np.ndarray, top: int, left: int, height: int, width: int) -> list[int]:
    """Lengths of the runs of 0 and 1, in turn and column by column, of a region in a picture of `height` × `width`.

    Args:
        own (`np.ndarray`): `[h, w]` bool, the box around it; what lies outside of the picture is left out.
        top, left (`int`): Where the box is.
    """
    own = own[max(0, -top) : height - top, max(0, -left) : width - left]
    top, left = max(0, top), max(0, left)
    padded = np.pad(own, [(1, 1), (0, 0)]).T.astype(np.int8)  # [w,h+2], a column each
    change = np.diff(padded, axis=1)  # [w,h+1]
    columns, begin = np.nonzero(change == 1)
    end = np.nonzero(change == -1)[1]
    starts = (columns + left) * height + begin + top
    stops = (columns + left) * height + end + top
    joined = starts[1:] == stops[:-1]  # over the foot of one column into the head of the next
    if len(starts):
        starts, stops = starts[np.r_[True, ~joined]], stops[np.r_[~joined, True]]
    edges = np.stack([starts, stops], 1).ravel()
    counts = np.diff(np.r_[0, edges, height * width]).tolist()
    return counts if counts[-1] else counts[:-1]
