# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""labelme: a JSON file beside each picture.

Pixels are those of its own `shape_to_mask`; later shapes cover earlier ones. Lines and points have no area and are left
out.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .base import NAMES, Contents, Marked, Picture, decode_png, encode_png, file_for, plain_path, points_of
from .shapes import Area, masked


VERSION = "5.5.0"  # whose form of masks is written


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read(path: Path, content: Any) -> Contents:
    """The picture of a file."""
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    picture = Picture(plain_path(str(content["imagePath"])), size=size)
    found = Contents([picture], list(content.get(NAMES) or []))
    for shape in content["shapes"]:
        kind = shape.get("shape_type") or "polygon"
        points = points_of(shape.get("points") or [])
        if kind in ("polygon", "oriented_rectangle") and len(points) > 2:
            picture.shapes.append((shape["label"], {"drawn": ["polygon", points]}))
        elif kind in ("rectangle", "circle") and len(points) == 2:
            picture.shapes.append((shape["label"], {"drawn": [kind, points]}))
        elif kind == "mask" and len(points) == 2:
            picture.shapes.append((shape["label"], _mask(shape, points, size)))
        else:
            found.left_out[f"shapes of the kind {kind!r}"] += 1
    return found


def _mask(shape: dict, points: list[list[float]], size: tuple[int, int] | None) -> Area:
    if size is None:
        raise ValueError("it has a mask and does not say the size of its picture")
    mask = decode_png(base64.b64decode(shape["mask"]))
    (left, top), (right, bottom) = [[int(x), int(y)] for x, y in points]
    if mask.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(
            f"a mask of {mask.shape[1]} × {mask.shape[0]} is in a box of {right - left + 1} × "
            f"{bottom - top + 1} (width × height)",
        )
    return masked(mask, top, left, size)


def write(place: Path, pictures: Iterable[Marked], names: Sequence[str]) -> None:
    """Writes a file for each picture into a folder, or that of one, of masks, which keep holes and parts."""
    taken: set[Path] = set()
    for picture in pictures:
        shapes = []
        for region in picture.regions:
            (height, width), left, top = region.mask.shape, region.left, region.top
            shape: dict[str, Any] = {
                "label": region.label,
                "points": [[left, top], [left + width - 1, top + height - 1]],
            }
            shape |= {"group_id": region.number, "description": "", "shape_type": "mask", "flags": {}}
            shapes.append(shape | {"mask": encode_png(region.mask)})
        content: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(picture.name).name,
            "imageData": None,
        }
        content |= {"imageHeight": picture.height, "imageWidth": picture.width, NAMES: [name for name in names if name]}
        file = place if place.suffix == ".json" else file_for(place, picture.name, ".json", taken)
        file.write_text(json.dumps(content), "utf-8")
