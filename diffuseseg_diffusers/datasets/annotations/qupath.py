# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""QuPath's GeoJSON: a file for each picture, named after it, in pixels of the full resolution.

Pixels are those whose centre lies inside, as Java fills shapes; shapes without a class are left out, and those of the
class `Ignore*` are ignored. Later shapes cover earlier ones.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.install import missing_extra
from .base import NAMES, Contents, Marked, Picture, file_for, hexcolor, points_of
from .shapes import IGNORED, Region


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features") or [{"type": "Feature", "geometry": None}]  # a picture with nothing in it
    features = content if isinstance(content, list) else [content]
    return bool(features) and all(_is_feature(one) for one in features)


def _is_feature(one: Any) -> bool:
    return isinstance(one, dict) and one.get("type") == "Feature" and "geometry" in one


def read(path: Path, content: Any) -> Contents:
    """The picture of a file."""
    features = content if isinstance(content, list) else content.get("features", [content])
    name = path.name
    for suffix in (".geojson", ".json", "_objects"):
        name = name.removesuffix(suffix)
    found = Contents([Picture(name)], list(content.get(NAMES, [])) if isinstance(content, dict) else [])
    for feature in features:
        geometry, properties = feature.get("geometry") or {}, feature.get("properties") or {}
        label = (properties.get("classification") or {}).get("name")
        plane = geometry.get("plane") or {}
        if plane.get("z") or plane.get("t"):
            raise ValueError("it has shapes on several planes of a stack, which are not read")
        if geometry.get("type") not in ("Polygon", "MultiPolygon"):
            found.left_out[f"shapes of the kind {geometry.get('type')!r}"] += 1
        elif not label:
            found.left_out["shapes without a class"] += 1
        else:
            parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
            rings = [points_of(ring) for part in parts for ring in part]
            if not rings or not all(rings):
                raise ValueError("it has a polygon without coordinates")
            found.pictures[0].shapes.append((IGNORED if label == "Ignore*" else label, {"rings": rings}))
    return found


def outline(region: Region) -> list[list[list[list[int]]]]:
    """Coordinates of a MultiPolygon along the edges of a region's pixels, valid as OGC defines it.

    Parts are pixels that share an edge; parts that touch at a corner stay apart.
    """
    try:
        from rasterio.features import shapes
        from rasterio.transform import Affine
    except ModuleNotFoundError as error:
        raise missing_extra("objects", error.name) from error
    own = region.mask.astype(np.uint8)
    parts = [shape for shape, _ in shapes(own, own > 0, 4, Affine.translation(region.left, region.top))]
    return [[[[int(x), int(y)] for x, y in ring] for ring in part["coordinates"]] for part in parts]


def write(folder: Path, pictures: Iterable[Marked], names: Sequence[str]) -> None:
    """Writes a file for each picture."""
    taken: set[Path] = set()
    for picture in pictures:
        features = []
        for i, region in enumerate(picture.regions):
            label = "Ignore*" if region.label == IGNORED else region.label
            color = hexcolor(names.index(label) if label in names else 255)
            kind = {"name": label, "color": [int(color[j : j + 2], 16) for j in (1, 3, 5)]}
            own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{picture.name}/{i}"))
            feature = {
                "type": "Feature",
                "id": own,
                "geometry": {"type": "MultiPolygon", "coordinates": outline(region)},
            }
            features.append(feature | {"properties": {"objectType": "annotation", "classification": kind}})
        content = {"type": "FeatureCollection", NAMES: [name for name in names if name], "features": features}
        file_for(folder, picture.name, ".geojson", taken).write_text(json.dumps(content), "utf-8")
