# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""COCO: one JSON file of pictures, categories and annotations, as polygons or run lengths.

Pixels are those of pycocotools. Crowd regions have no objects of their own, and COCO's evaluation passes them over:
they are ignored.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .base import Contents, Marked, Picture, polygon_of
from .shapes import IGNORED, Area, decode_counts, pycocotools, run_lengths


_IGNORED_ID = 255


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format."""
    return isinstance(content, dict) and all(isinstance(content.get(k), list) for k in ("images", "categories"))


def read(path: Path, content: Any) -> Contents:
    """Pictures and shapes of a file; labels in the order of the categories' ids."""
    found = Contents()
    labels = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
    by_id = {}
    for image in content["images"]:
        size = (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None
        by_id[image["id"]] = Picture(str(image["file_name"]), size=size)
    if len(by_id) < len(content["images"]) or len(set(labels.values())) < len(content["categories"]):
        raise ValueError("two images have the same id, or two categories the same id or name")
    found.pictures = list(by_id.values())
    found.names = [name for name in labels.values() if name != IGNORED]
    for one in content.get("annotations") or []:
        picture, label = by_id.get(one.get("image_id")), labels.get(one.get("category_id"))
        if picture is None or label is None:
            missing = "image" if picture is None else "category"
            raise ValueError(
                f"annotation {one.get('id')} is of {missing} {one.get(f'{missing}_id')}, which is not there"
            )
        area = _area(one, picture)
        if area is None:
            found.left_out["annotations without an area"] += 1
            continue
        if one.get("iscrowd"):
            found.left_out["crowd regions, whose pixels are ignored,"] += 1
            label = IGNORED
        picture.shapes.append((label, area))
    return found


def _area(annotation: dict, picture: Picture) -> Area | None:
    shape = annotation.get("segmentation")
    if isinstance(shape, dict):
        size = tuple(int(n) for n in shape.get("size") or ())
        counts = shape.get("counts")
        if picture.size is None:
            picture.size = size  # type: ignore[assignment]
        if size != picture.size:
            raise ValueError(
                f"the run lengths of annotation {annotation.get('id')} are of {size}, and {picture.name} is "
                f"of {picture.size} (height, width)",
            )
        lengths = decode_counts(counts) if isinstance(counts, str) else counts
        if not all(isinstance(n, int) and n >= 0 for n in lengths):
            raise ValueError(f"the run lengths of annotation {annotation.get('id')} are no numbers of pixels")
        if sum(lengths) != size[0] * size[1]:
            raise ValueError(
                f"the run lengths of annotation {annotation.get('id')} are of {sum(lengths)} pixels, and "
                f"its picture has {size[0] * size[1]}",
            )
        return {"runs": counts}
    flat = [one for one in shape or [] if isinstance(one, list) and len(one) >= 6]
    if any(len(one) % 2 for one in flat):
        raise ValueError(f"a polygon of annotation {annotation.get('id')} has an odd number of coordinates")
    polygons = [polygon_of(zip(one[::2], one[1::2])) for one in flat]
    return {"polygons": polygons} if polygons else None


def write(path: Path, pictures: Iterable[Marked], names: Sequence[str]) -> None:
    """Writes one file with compressed run lengths, which keep holes and parts; a class without a name is not listed."""
    coco = pycocotools()
    images, annotations, ids = [], [], {name: i for i, name in enumerate(names)} | {IGNORED: _IGNORED_ID}
    for number, picture in enumerate(pictures, 1):
        images.append({"id": number, "file_name": picture.name, "height": picture.height, "width": picture.width})
        if picture.plane is not None:
            images[-1]["plane"] = picture.plane
        size = [picture.height, picture.width]
        for region in picture.regions:
            counts = run_lengths(region.mask, region.top, region.left, *size)
            runs = coco.frPyObjects({"counts": counts, "size": size}, *size)
            height, width = region.mask.shape
            annotation: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": ids[region.label],
                "iscrowd": 0,
            }
            annotation |= {"area": int(region.mask.sum()), "bbox": [region.left, region.top, width, height]}
            if region.number is not None:
                annotation["object"] = region.number
            annotations.append(annotation | {"segmentation": {"size": size, "counts": runs["counts"].decode("ascii")}})
    used = {annotation["category_id"] for annotation in annotations}
    categories = [{"id": i, "name": n} for n, i in ids.items() if n and (n != IGNORED or _IGNORED_ID in used)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}), "utf-8")
