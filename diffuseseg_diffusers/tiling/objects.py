# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What people count: the objects in a mask, a table of them, and the formats that other programs read.

Objects are connected pixels of a class. They are labelled block by block and joined across the borders, so that they
may be of any size and number; planes of a volume are joined too.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.annotations import coco, cvat, label_studio, labelme
from ..datasets.annotations.base import Marked
from ..datasets.annotations.shapes import Region, is_background
from ..images.formats.base import LabelReader, Raster, Window, windows_over
from ..jobs.errors import UserError
from ..jobs.files import to_json
from ..jobs.install import missing_extra
from .options import CountsObjects


_SUFFIXES = {
    "geojson": ".geojson",
    "coco": ".coco.json",
    "gpkg": ".gpkg",
    "labelme": ".labelme.json",
    "cvat": ".cvat.xml",
    "label_studio": ".label_studio.json",
}
BLOCK = 2048  # side of what is labelled at a time
LARGEST_SPLIT = 2**26  # pixels of the box of an object that a watershed splits
_BACKGROUND = 0  # in label images; objects count from 1


def check_packages(options: CountsObjects) -> None:
    """Raises [`UserError`] if a package is missing that counting or an export needs."""
    try:
        import pyarrow  # noqa: F401
        import skimage  # noqa: F401

        if "coco" in options.export:
            import pycocotools  # noqa: F401
        if set(options.export) & {"geojson", "gpkg"}:
            import pyogrio  # noqa: F401
            import rasterio  # noqa: F401
            import shapely  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("objects", error.name) from error


def check_planes(options: CountsObjects, raster: Raster) -> None:
    """Raises [`UserError`] if an export is of single pictures, and this is a stack."""
    single = set(options.export) & {"labelme", "cvat", "label_studio"}
    if single and raster.planes > 1:
        raise UserError(
            f"{raster.name} has {raster.planes} planes, and {', '.join(sorted(single))} are of pictures with one; "
            f"export coco or geojson."
        )


def object_files(options: CountsObjects, name: str, suffix: str, is_folder: bool) -> list[tuple[str, bool]]:
    """Files that are written of an image, and whether they are folders."""
    suffixes = [".csv", ".parquet"]
    suffixes += [_SUFFIXES[export] for export in options.export]
    return [(f"{name}_objects{suffix}", is_folder), *((f"{name}_objects{s}", False) for s in suffixes)]


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


def measure_objects(
    found: np.ndarray,
    raster: Raster,
    labels: LabelReader,
    uncertainty: Callable[[int, Window], np.ndarray | None],
    label_names: Sequence[str],
    min_area: int = 0,
) -> dict[str, list]:
    """A table of objects, column by column.

    Args:
        found (`np.ndarray`): `[planes, H, W]` int32; objects that are too small are removed from it, and the others
            numbered anew without gaps.
        raster ([`Raster`]): The picture, whose values are averaged.
        labels (`Callable`), uncertainty (`Callable`): Class ids, and uncertainty, of a window of a plane.
        label_names (sequence of `str`): Names of the classes.
        min_area (`int`, defaults to 0): Objects of fewer pixels are left out.

    Returns:
        `dict`: `id`, `class`, `class_id`, `area_px`, of known pixel sizes `area_um2`, of volumes `volume_um3` and
        `plane`, `centroid_y`, `centroid_x`, `top`, `left`, `bottom`, `right` (behind the last pixel), `mean_` of each
        channel, and `mean_uncertainty` in nats.
    """
    from skimage.measure import regionprops_table

    planes, height, width = found.shape
    count = int(found.max(initial=0))
    sizes = np.zeros(count + 1, np.int64)
    for plane in range(planes):
        for window in windows_over(height, width, BLOCK):
            sizes += np.bincount(found[plane][window.slices].ravel(), minlength=count + 1)
    big = sizes >= max(1, min_area)
    big[_BACKGROUND] = False
    number = np.where(big, np.cumsum(big), 0).astype(np.int32)
    total = int(big.sum())
    class_ids = np.zeros(total + 1, np.int64)
    sums = {name: np.zeros(total + 1) for name in [*raster.channels, "uncertainty"]}
    known = True
    for plane in range(planes):
        for window in windows_over(height, width, BLOCK):
            own = number[found[plane][window.slices]]
            found[plane][window.slices] = own
            if not own.any():
                continue
            flat = own.ravel()
            class_ids[flat] = labels(plane, window).ravel()
            for name, values in zip(raster.channels, raster.read(plane, window)):
                sums[name] += np.bincount(flat, values.ravel().astype(np.float64), total + 1)
            doubt = uncertainty(plane, window)
            if doubt is None:
                known = False
            else:
                sums["uncertainty"] += np.bincount(flat, doubt.ravel(), total + 1)
    # Boxes and centroids of 2-D objects are those of their plane: an object lies in one unless it goes through them.
    shown = found if planes > 1 else found[0]
    table = regionprops_table(shown, properties=("label", "area", "centroid", "bbox")) if total else None
    area = sizes[big]
    columns: dict[str, list] = {"id": list(range(1, total + 1))}
    columns["class"] = [label_names[i] for i in class_ids[1:]]
    columns["class_id"] = class_ids[1:].tolist()
    columns["area_px"] = area.tolist()
    if raster.pixel_size is not None:
        columns["area_um2"] = (area * np.prod(raster.pixel_size)).tolist()
    deep = planes > 1
    axes = ("plane", "y", "x") if deep else ("y", "x")
    for i, axis in enumerate(axes):
        columns[f"centroid_{axis}"] = table[f"centroid-{i}"].tolist() if table else []
    names = ("first_plane", "top", "left") if deep else ("top", "left")
    ends = ("last_plane", "bottom", "right") if deep else ("bottom", "right")
    for i, name in enumerate((*names, *ends)):
        found_at = table[f"bbox-{i}"] - (1 if name == "last_plane" else 0) if table else np.zeros(0)
        columns[name] = found_at.astype(int).tolist()
    for name, values in sums.items():
        if name != "uncertainty" or known:
            columns[f"mean_{name}"] = (values[1:] / area).tolist()
    return columns


def write_objects(
    options: CountsObjects,
    raster: Raster,
    blocks: Any,
    folder: Path,
    name: str,
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    ignore_index: int,
) -> int:
    """Finds the objects of a picture, and writes label image, table and exports.

    Args:
        options ([`CountsObjects`]): Which objects, and what of them.
        raster ([`Raster`]): The picture.
        blocks ([`BlockFiles`]): `labels` and `uncertainty` of its windows.
        folder (`Path`): Where to.
        name (`str`): What the files are named after.
        label_names, palette, ignore_index: Of the classes.

    Returns:
        `int`: How many there are.
    """
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    shape = (raster.planes, raster.height, raster.width)
    work = folder.parent / "objects"
    work.mkdir(exist_ok=True)
    classes = [i for i in counted_classes(options, label_names) if i != ignore_index]
    found = label_objects(blocks.labels, shape, classes, raster.volumetric, work)
    if options.instances == "watershed":
        for line in split_objects(found, options.min_distance):
            print(f"{raster.name}: {line}")
    columns = measure_objects(found, raster, blocks.labels, blocks.uncertainty, label_names, options.min_area)
    count = len(columns["id"])
    dtype = np.dtype(np.uint16 if count < 2**16 else np.uint32)
    files = [file for file, _ in object_files(options, name, raster.mask_suffix, raster.mask_is_folder)]
    raster.write_labels(folder / files[0], lambda plane, window: found[plane][window.slices], dtype, None)
    table = pa.table(columns)
    pyarrow.csv.write_csv(table, folder / files[1])
    pq.write_table(table, folder / files[2])
    for export, file in zip(options.export, files[3:]):
        _EXPORTERS[export](folder / file, found, columns, raster, label_names, palette)
    return count


def outlines(found: np.ndarray, columns: dict[str, list]) -> Iterator[tuple[int, Any]]:
    """The number and the outline of each object: a `shapely` geometry in pixels, origin at the top left corner."""
    from rasterio.features import shapes
    from rasterio.transform import Affine
    from shapely.geometry import shape
    from shapely.ops import unary_union

    for i, number in enumerate(columns["id"]):
        top, left, bottom, right = (columns[name][i] for name in ("top", "left", "bottom", "right"))
        for plane in (
            range(columns["first_plane"][i], columns["last_plane"][i] + 1) if "first_plane" in columns else [0]
        ):
            own = (found[plane, top:bottom, left:right] == number).astype(np.uint8)
            parts = [shape(s) for s, _ in shapes(own, own > 0, 8, Affine.translation(left, top))]
            if parts:
                yield number, unary_union(parts) if len(parts) > 1 else parts[0]


def _write_geojson(
    path: Path, found: np.ndarray, columns: dict, raster: Raster, names: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """Annotations for QuPath: pixels of the full resolution, a class with its colour, and measurements."""
    from shapely.geometry import mapping

    features = []
    measured = [name for name in columns if name not in ("id", "class", "class_id", "top", "left", "bottom", "right")]
    for number, geometry in outlines(found, columns):
        i = number - 1
        kind = {"name": columns["class"][i], "color": list(palette[columns["class_id"][i]])}
        properties = {"objectType": "annotation", "name": str(number), "classification": kind}
        properties["measurements"] = {name: columns[name][i] for name in measured}
        own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name}/{number}/{geometry.bounds}"))
        features.append({"type": "Feature", "id": own, "geometry": mapping(geometry), "properties": properties})
    path.write_text(to_json({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def _marked(found: np.ndarray, columns: dict, raster: Raster) -> Iterator[Marked]:
    """The objects of each plane, for formats of annotations."""
    planes, height, width = found.shape
    boxes = list(zip(*(columns[name] for name in ("id", "class", "top", "left", "bottom", "right"))))
    through = list(zip(columns["first_plane"], columns["last_plane"])) if planes > 1 else [(0, 0)] * len(boxes)

    def regions(plane: int) -> Iterator[Region]:
        for (number, label, top, left, bottom, right), (first, last) in zip(boxes, through):
            if first <= plane <= last:
                own = found[plane, top:bottom, left:right] == number
                if own.any():  # objects may leave a plane out
                    yield Region.around(own, label, top, left, number)

    for plane in range(planes):
        yield Marked(Path(raster.name).name, height, width, regions(plane), plane if planes > 1 else None)


def _annotations(write: Callable[[Path, Iterable[Marked], Sequence[str]], None]) -> Callable[..., None]:
    """Writes objects by a format of annotations. A first class that has no objects is what they lie in, not a label."""

    def export(path: Path, found: np.ndarray, columns: dict, raster: Raster, names: Sequence[str], _: object) -> None:
        labelled = is_background(names[0]) or 0 in columns["class_id"]
        write(path, _marked(found, columns, raster), names if labelled else ["", *names[1:]])

    return export


def _write_gpkg(
    path: Path, found: np.ndarray, columns: dict, raster: Raster, names: Sequence[str], palette: Sequence[Sequence[int]]
) -> None:
    """A vector layer; of pictures that are no maps, in pixels."""
    from pyogrio.raw import write
    from shapely import to_wkb
    from shapely.affinity import affine_transform

    crs, transform = getattr(raster, "crs", None), getattr(raster, "transform", None)
    found_at, geometries = [], []
    for number, geometry in outlines(found, columns):
        if transform is not None:
            t = transform
            geometry = affine_transform(geometry, [t.a, t.b, t.d, t.e, t.c, t.f])
        found_at.append(number - 1)
        geometries.append(to_wkb(geometry))
    data = [np.array([columns[name][i] for i in found_at]) for name in columns]
    data = [values.astype(object) if values.dtype.kind == "U" else values for values in data]
    write(
        path,
        np.array(geometries, dtype=object),
        field_data=data,
        fields=np.array(list(columns), dtype=object),
        crs=crs.to_wkt() if crs is not None else None,
        geometry_type="Unknown",
        driver="GPKG",
        layer="objects",
    )


_EXPORTERS = {
    "geojson": _write_geojson,
    "coco": _annotations(coco.write),
    "gpkg": _write_gpkg,
    "labelme": _annotations(labelme.write),
    "cvat": _annotations(cvat.write),
    "label_studio": _annotations(label_studio.write),
}
