# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Label images, tables and the formats that other programs read, of the objects of a picture."""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.annotations import coco, cvat, label_studio, labelme
from ..datasets.annotations.base import Marked
from ..datasets.annotations.qupath import outline
from ..datasets.annotations.shapes import Region, is_background
from ..images.formats.base import Raster
from ..jobs.errors import UserError
from ..jobs.files import to_json
from ..jobs.install import missing_extra
from .objects import Measured, counted_classes, label_objects, measure_objects, split_objects
from .options import CountsObjects


_SUFFIXES = {
    "geojson": ".geojson",
    "coco": ".coco.json",
    "gpkg": ".gpkg",
    "labelme": ".labelme.json",
    "cvat": ".cvat.xml",
    "label_studio": ".label_studio.json",
}


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
            f"{raster.name} has {raster.planes} planes, and pictures of one are what "
            f"{', '.join(sorted(single))} can hold; export coco or geojson."
        )


def object_files(options: CountsObjects, name: str, suffix: str, is_folder: bool) -> list[tuple[str, bool]]:
    """Files that are written of an image, and whether they are folders."""
    suffixes = [".csv", ".parquet"]
    suffixes += [_SUFFIXES[export] for export in options.export]
    return [(f"{name}_objects{suffix}", is_folder), *((f"{name}_objects{s}", False) for s in suffixes)]


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
    measured = measure_objects(found, raster, blocks.labels, blocks.uncertainty, label_names, options.min_area)
    count = len(measured.objects["id"])
    dtype = np.dtype(np.uint16 if count < 2**16 else np.uint32)
    files = [file for file, _ in object_files(options, name, raster.mask_suffix, raster.mask_is_folder)]
    raster.write_labels(folder / files[0], lambda plane, window: found[plane][window.slices], dtype, None)
    table = pa.table(measured.objects)
    pyarrow.csv.write_csv(table, folder / files[1])
    pq.write_table(table, folder / files[2])
    for export, file in zip(options.export, files[3:]):
        _EXPORTERS[export](folder / file, found, measured, raster, label_names, palette)
    return count


def _region(found: np.ndarray, sections: dict[str, list], i: int) -> Region:
    """The pixels of a section of an object."""
    plane = sections["first_plane"][i] if "first_plane" in sections else 0
    top, left, bottom, right = (sections[name][i] for name in ("top", "left", "bottom", "right"))
    number = sections["id"][i]
    return Region(sections["class"][i], found[plane, top:bottom, left:right] == number, top, left, number)


def _marked(found: np.ndarray, sections: dict[str, list], raster: Raster) -> Iterator[Marked]:
    """The objects of each plane, for formats of annotations."""
    planes = np.array(sections.get("first_plane", [0] * len(sections["id"])))
    for plane in range(raster.planes):
        regions = (_region(found, sections, int(i)) for i in np.flatnonzero(planes == plane))
        which = plane if raster.planes > 1 else None
        yield Marked(Path(raster.name).name, raster.height, raster.width, regions, which)


def _annotations(write: Callable[[Path, Iterable[Marked], Sequence[str]], None]) -> Callable[..., None]:
    """Writes objects by a format of annotations. A first class that has no objects is what they lie in, not a label."""

    def export(path: Path, found: np.ndarray, measured: Measured, raster: Raster, names: Sequence[str], _: Any) -> None:
        labelled = is_background(names[0]) or 0 in measured.objects["class_id"]
        write(path, _marked(found, measured.sections, raster), names if labelled else ["", *names[1:]])

    return export


_NO_MEASUREMENTS = ("id", "class", "class_id", "top", "left", "bottom", "right")
_PLANES = ("centroid_plane", "first_plane", "last_plane")


def _write_geojson(
    path: Path, found: np.ndarray, measured: Measured, raster: Raster, _: Any, palette: Sequence[Sequence[int]]
) -> None:
    """Annotations for QuPath: pixels of the full resolution, a class with its colour, and measurements.

    Of stacks each plane of an object is a feature, with what was measured in that plane.
    """
    table, features = measured.sections, []
    names = [name for name in table if name not in _NO_MEASUREMENTS + _PLANES]
    for i, number in enumerate(table["id"]):
        parts = outline(_region(found, table, i))
        geometry: dict[str, Any] = {"type": "MultiPolygon", "coordinates": parts}
        if len(parts) == 1:
            geometry = {"type": "Polygon", "coordinates": parts[0]}
        plane = table["first_plane"][i] if raster.planes > 1 else 0
        if raster.planes > 1:
            z, t = raster.position(plane)
            geometry["plane"] = {"c": -1, "z": z, "t": t}  # of all channels
        kind = {"name": table["class"][i], "color": list(palette[table["class_id"][i]])}
        properties = {"objectType": "annotation", "name": str(number), "classification": kind}
        properties["measurements"] = {name: table[name][i] for name in names}
        own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name}/{plane}/{number}"))
        features.append({"type": "Feature", "id": own, "geometry": geometry, "properties": properties})
    path.write_text(to_json({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def _write_gpkg(path: Path, found: np.ndarray, measured: Measured, raster: Raster, *_: Any) -> None:
    """A vector layer; of pictures that are no maps, in pixels. Of stacks each plane of an object is a feature."""
    from pyogrio.raw import write
    from shapely import MultiPolygon, Polygon, to_wkb
    from shapely.affinity import affine_transform

    crs, transform = getattr(raster, "crs", None), getattr(raster, "transform", None)
    columns, geometries = dict(measured.sections), []
    for i in range(len(columns["id"])):
        parts = [Polygon(rings[0], rings[1:]) for rings in outline(_region(found, columns, i))]
        geometry = parts[0] if len(parts) == 1 else MultiPolygon(parts)
        if transform is not None:
            t = transform
            geometry = affine_transform(geometry, [t.a, t.b, t.d, t.e, t.c, t.f])
        geometries.append(to_wkb(geometry))
    if raster.planes > 1:
        places = [raster.position(plane) for plane in columns["first_plane"]]
        columns = {name: values for name, values in columns.items() if name not in _PLANES}
        own = {"id": list(range(1, len(places) + 1)), "object": columns.pop("id")}
        columns = {**own, "z": [z for z, _ in places], "t": [t for _, t in places], **columns}
    data = [np.array(values) for values in columns.values()]
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
