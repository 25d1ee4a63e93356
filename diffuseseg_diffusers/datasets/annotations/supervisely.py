# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Supervisely: a project with `meta.json` and folders of `img` and `ann`, a JSON file for each picture.

Pixels of polygons include their border, as in Supervisely, and their holes include theirs. Later objects cover earlier
ones. Lines and points have no area and are left out.
"""

import base64
import zlib
from pathlib import Path
from typing import Any

from .base import Contents, Picture, decode_png, points_of
from .shapes import masked


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format: of a picture, or the list of classes."""
    if not isinstance(content, dict):
        return False
    if path.name == "meta.json":
        return isinstance(content.get("classes"), list) and "tags" in content
    return isinstance(content.get("objects"), list) and isinstance(content.get("size"), dict)


def read(path: Path, content: Any) -> Contents:
    """The picture of a file, or the classes that `meta.json` lists."""
    if path.name == "meta.json":
        return Contents(names=[one["title"] for one in content["classes"]])
    size = int(content["size"]["height"]), int(content["size"]["width"])
    folder = path.parent.with_name("img") if path.parent.name == "ann" else path.parent
    found = Contents([Picture(str(folder / path.stem), size=size)])
    for one in content["objects"]:
        kind, label = one["geometryType"], one["classTitle"]
        if kind in ("polygon", "rectangle"):
            rings = [one["points"]["exterior"], *one["points"].get("interior", [])]
            filled = [[[round(x), round(y)] for x, y in points_of(ring)] for ring in rings if ring]
            if kind == "rectangle":
                (x0, y0), (x1, y1) = filled[0]
                filled = [[[x0, y0], [x1, y0], [x1, y1], [x0, y1]]]
            found.pictures[0].shapes.append((label, {"filled": filled}))
        elif kind == "bitmap":
            mask = decode_png(zlib.decompress(base64.b64decode(one["bitmap"]["data"])))
            left, top = one["bitmap"]["origin"]
            found.pictures[0].shapes.append((label, masked(mask, int(top), int(left), size)))
        else:
            found.left_out[f"shapes of the kind {kind!r}"] += 1
    return found
