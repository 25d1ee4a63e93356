# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What people count: the objects in a mask, and tables of them.

Objects are connected pixels of a class. They are labelled block by block and joined across the borders, so that they
may be of any size and number; planes of a volume are joined too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from ..images.formats.base import LabelReader, Raster, Window, windows_over
from ..jobs.errors import UserError
from .options import CountsObjects


BLOCK = 2048  # side of what is labelled at a time
LARGEST_SPLIT = 2**26  # pixels of the box of an object that a watershed splits
_BACKGROUND = 0  # in label images; objects count from 1


def counted_classes(options: CountsObjects, label_names: Sequence[str]) -> list[int]:
    """Ids of the classes whose objects are counted.

    Raises:
        UserError: There is no such class.
    """
    if options.object_classes is None:
        return list(range(1, len(label_names)))
    if wrong := [name for name in options.object_classes if name not in label_names]:
        raise UserError(f"There is no class {wrong[0]!r}; there are {', '.join(label_names)}.")
    return [label_names.index(name) for name in options.object_classes]


def label_objects(
    labels: LabelReader,
    shape: tuple[int, int, int],
    classes: Sequence[int],
    through_planes: bool,
    folder: Path,
    block: int = BLOCK,
) -> np.ndarray:
    """Numbers connected pixels of each class, in files; what is in memory does not grow with the picture.

    Pixels are connected if they touch, at corners too. Objects are numbered from 1 in the order of their first block,
    and in it of their first pixel.

    Args:
        labels (`Callable`): Gives the class ids of a window of a plane.
        shape (`planes, height, width`): Of all.
        classes (sequence of `int`): Ids that have objects.
        through_planes (`bool`): Whether objects go on in the next plane.
        folder (`Path`): For the file that holds the result.
        block (`int`): Side of what is labelled at a time.

    Returns:
        `np.ndarray`: `[planes, H, W]` int32, mapped to a file; 0 where there is no object.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from skimage.measure import label

    planes, height, width = shape
    kept = np.zeros(256, bool)
    kept[list(classes)] = True
    found = np.memmap(folder / "objects.int32", np.int32, "w+", shape=shape)
    ids = np.memmap(folder / "classes.uint8", np.uint8, "w+", shape=shape)  # 255 where there are none
    count = 0
    for plane in range(planes):
        for window in windows_over(height, width, block):
            own = labels(plane, window)
            own = np.where(kept[own], own, 255).astype(np.uint8)
            numbers, more = label(own, background=255, return_num=True, connectivity=2)
            found[plane][window.slices] = np.where(numbers > 0, numbers + count, 0)
            ids[plane][window.slices] = own
            count += more
    pairs = [np.zeros((0, 2), np.int64)]

    def join(one: tuple, other: tuple, ids: np.ndarray = ids) -> None:
        same = (ids[one] == ids[other]) & (ids[one] != 255)
        pairs.append(np.unique(np.stack([found[one][same], found[other][same]], 1), axis=0))

    for plane in range(planes):
        for y, dx in product(range(block, height, block), (-1, 0, 1)):
            here, there = _shifted(width, dx)
            join((plane, y - 1, here), (plane, y, there))
        for x, dy in product(range(block, width, block), (-1, 0, 1)):
            here, there = _shifted(height, dy)
            join((plane, here, x - 1), (plane, there, x))
    for plane in range(planes - 1 if through_planes else 0):
        for dy, dx in product((-1, 0, 1), (-1, 0, 1)):
            (rows, others), (columns, beside) = _shifted(height, dy), _shifted(width, dx)
            join((plane, rows, columns), (plane + 1, others, beside))
    together = np.concatenate(pairs)
    graph = coo_matrix((np.ones(len(together), bool), (together[:, 0], together[:, 1])), shape=(count + 1, count + 1))
    group = connected_components(graph, directed=False)[1]  # [count+1]
    first = np.unique(group, return_index=True)[1]  # each group's first number
    order = np.empty(len(first), np.int32)
    order[np.argsort(first)] = np.arange(len(first))  # the group of 0 is the first
    number = order[group].astype(np.int32)
    for plane in range(planes):
        for window in windows_over(height, width, block):
            found[plane][window.slices] = number[found[plane][window.slices]]
    (folder / "classes.uint8").unlink()
    return found


def _shifted(length: int, by: int) -> tuple[slice, slice]:
    """Two parts of an axis, of which the second lies `by` pixels further."""
    return slice(max(0, -by), length - max(0, by)), slice(max(0, by), length - max(0, -by))


def split_objects(found: np.ndarray, min_distance: int) -> list[str]:
    """Splits objects where they narrow, in place: a watershed of the distance to their border, in the box of each.

    Args:
        found (`np.ndarray`): `[planes, H, W]` int32 from [`label_objects`]; new objects get the next numbers.
        min_distance (`int`): Pixels between the middles of two objects.

    Returns:
        `list[str]`: Lines on objects that were too large, and stay as they are.
    """
    from scipy.ndimage import distance_transform_edt, find_objects
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    said, count = [], int(found.max(initial=0))
    for number, box in enumerate(find_objects(found), 1):
        if box is None:
            continue
        own = found[box] == number
        if own.size > LARGEST_SPLIT:
            said.append(f"Object {number} spans {own.size:,} pixels and is not split.")
            continue
        padded = np.pad(own, [(0, 0) if own.shape[0] == 1 else (1, 1), (1, 1), (1, 1)])
        distance = distance_transform_edt(padded)
        peaks = peak_local_max(
            distance, min_distance=min_distance, labels=padded.astype(np.int32), exclude_border=False
        )
        if len(peaks) < 2:
            continue
        markers = np.zeros(padded.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        parts = watershed(-distance, markers, mask=padded)
        inner = tuple(slice(0, None) if n == 1 else slice(1, -1) for n in padded.shape)
        parts = parts[inner]
        new = np.concatenate([[0, number], count + 1 + np.arange(len(peaks) - 1)]).astype(np.int32)
        found[box] = np.where(own, new[parts], found[box])
        count += len(peaks) - 1
    return said


@dataclass
class Measured:
    """Tables of objects, column by column.

    Args:
        objects (`dict`): A row for each: `id`, `class`, `class_id`, `area_px`, of known pixel sizes `area_um2` or, in
            volumes, `volume_um3`, `centroid_y`, `centroid_x`, `top`, `left`, `bottom`, `right` (behind the last pixel),
            of several planes `centroid_plane`, `first_plane` and `last_plane` too, `mean_` of each channel, and
            `mean_uncertainty` in nats.
        sections (`dict`): A row for each plane of each object, plane after plane, and of that plane alone: the same
            columns, `first_plane` being the plane.
    """

    objects: dict[str, list]
    sections: dict[str, list]


def measure_objects(
    found: np.ndarray,
    raster: Raster,
    labels: LabelReader,
    uncertainty: Callable[[int, Window], np.ndarray | None],
    label_names: Sequence[str],
    min_area: int = 0,
) -> Measured:
    """Measures objects, plane by plane and together.

    Args:
        found (`np.ndarray`): `[planes, H, W]` int32; objects that are too small are removed from it, and the others
            numbered anew without gaps.
        raster ([`Raster`]): The picture, whose values are averaged.
        labels (`Callable`), uncertainty (`Callable`): Class ids, and uncertainty, of a window of a plane.
        label_names (sequence of `str`): Names of the classes.
        min_area (`int`, defaults to 0): Objects of fewer pixels are left out.
    """
    planes, height, width = found.shape
    everywhere = [(plane, window) for plane in range(planes) for window in windows_over(height, width)]
    sizes = np.zeros(int(found.max(initial=0)) + 1, np.int64)
    for plane, window in everywhere:
        sizes += np.bincount(found[plane][window.slices].ravel(), minlength=len(sizes))
    big = sizes >= max(1, min_area)
    big[_BACKGROUND] = False
    number = np.where(big, np.cumsum(big), 0).astype(np.int32)
    parts = []
    for plane, window in everywhere:
        own = found[plane][window.slices] = number[found[plane][window.slices]]
        if own.any():
            named = dict(zip(raster.channels, raster.read(plane, window)))
            doubt = uncertainty(plane, window)
            named |= {} if doubt is None else {"uncertainty": doubt}
            parts.append(_pixels_of(own, plane, window, labels(plane, window), named))
    if not parts:  # columns without a row
        none = np.zeros((0, 0), np.uint8)
        named = dict.fromkeys([*raster.channels, "uncertainty"], none)
        parts = [_pixels_of(none, 0, Window(0, 0, 0, 0), none, named)]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    sections = _grouped(rows, "first_plane", "id")
    objects = _grouped(sections, "id")
    flat = raster.volumetric and planes > 1
    return Measured(_columns(objects, raster, label_names, flat), _columns(sections, raster, label_names, False))


# How columns of parts become those of the whole; what is not here is added up.
_LEAST, _MOST = ("id", "class_id", "first_plane", "top", "left"), ("last_plane", "bottom", "right")
_OF_STACKS = ("centroid_plane", "first_plane", "last_plane")


def _pixels_of(own: np.ndarray, plane: int, window: Window, ids: np.ndarray, named: dict) -> dict[str, np.ndarray]:
    """Rows of the objects in a window `[h, w]` of a plane, of which means are sums yet."""
    y, x = np.nonzero(own)
    rows: dict[str, np.ndarray] = {"id": own[y, x], "class_id": ids[y, x], "area_px": np.ones(len(y), np.int64)}
    rows |= {"first_plane": np.full(len(y), plane), "top": y + window.top, "left": x + window.left}
    rows |= {"last_plane": rows["first_plane"], "bottom": rows["top"] + 1, "right": rows["left"] + 1}
    rows |= {f"centroid_{axis}": rows[at] for axis, at in (("plane", "first_plane"), ("y", "top"), ("x", "left"))}
    rows |= {f"mean_{name}": values[y, x].astype(np.float64) for name, values in named.items()}
    return _grouped(rows, "id")


def _grouped(rows: dict[str, np.ndarray], *keys: str) -> dict[str, np.ndarray]:
    """Joins rows that have the same keys, and sorts by these."""
    if not len(rows["id"]):
        return rows
    order = np.lexsort([rows[key] for key in reversed(keys)])
    changes = np.any([np.diff(rows[key][order]) != 0 for key in keys], axis=0)
    starts = np.flatnonzero(np.r_[True, changes])
    how = dict.fromkeys(_LEAST, np.minimum) | dict.fromkeys(_MOST, np.maximum)
    return {name: how.get(name, np.add).reduceat(values[order], starts) for name, values in rows.items()}


def _columns(rows: dict[str, np.ndarray], raster: Raster, names: Sequence[str], deep: bool) -> dict[str, list]:
    """The table of rows; of volumes, those that are `deep` fill space."""
    columns: dict[str, list] = {"id": rows["id"].tolist()}
    columns["class"] = [names[i] for i in rows["class_id"]]
    columns |= {name: rows[name].tolist() for name in ("class_id", "area_px")}
    area, size = rows["area_px"], raster.pixel_size
    if size is not None and not deep:
        columns["area_um2"] = (area * np.prod(size)).tolist()
    elif size is not None and raster.plane_distance is not None:
        columns["volume_um3"] = (area * np.prod(size) * raster.plane_distance).tolist()
    shown = [name for name in rows if raster.planes > 1 or name not in _OF_STACKS]
    columns |= {name: (rows[name] / area).tolist() for name in shown if name.startswith("centroid_")}
    columns |= {name: rows[name].tolist() for name in shown if name in _LEAST[2:] + _MOST}
    return columns | {name: (rows[name] / area).tolist() for name in shown if name.startswith("mean_")}
