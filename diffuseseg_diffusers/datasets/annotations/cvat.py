# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""CVAT for images, XML 1.1 (https://docs.cvat.ai/docs/other/xml_format).

Pixels of polygons, boxes and ellipses are pycocotools', which CVAT's own exports of masks use. Of shapes with the same
`z_order`, later ones cover earlier ones. Lines, points and cuboids have no area and are left out.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .base import Contents, Marked, Picture, ellipse_points, hexcolor, plain_path, points_of, polygon_of, rotated
from .shapes import IGNORED, Area, masked, run_lengths


_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton", "tag")


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format."""
    return isinstance(content, ET.Element) and content.tag == "annotations"


def read(path: Path, content: Any) -> Contents:
    """Pictures and shapes of a file; labels in the order in which its `meta` lists them."""
    if content.find("track") is not None:
        raise ValueError('it has tracks of a video, and pictures are read; export as "CVAT for images 1.1"')
    found = Contents(
        names=[one.text or "" for one in content.findall("meta//labels/label/name") if one.text != IGNORED]
    )
    for image in content.findall("image"):
        size = int(image.attrib["height"]), int(image.attrib["width"])
        picture = Picture(plain_path(image.attrib["name"]), size=size, split=image.get("subset"))
        for shape in sorted(image, key=lambda shape: int(shape.get("z_order", 0))):
            if shape.tag in _WITHOUT_AREA:
                found.left_out[f"shapes of the kind {shape.tag!r}"] += 1
            else:
                picture.shapes.append((shape.attrib["label"], _area(shape, size)))
        found.pictures.append(picture)
    return found


def _area(shape: ET.Element, size: tuple[int, int]) -> Area:
    given = shape.attrib
    turned = float(given.get("rotation", 0))
    if shape.tag == "mask":
        counts = [int(n) for n in given["rle"].split(",")]  # row by row inside of the box
        box = int(given["height"]), int(given["width"])
        if sum(counts) != box[0] * box[1]:
            raise ValueError(
                f"the run lengths of a mask are of {sum(counts)} pixels, and its box has {box[0] * box[1]}"
            )
        mask = np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(box)
        return masked(mask, int(given["top"]), int(given["left"]), size)
    if shape.tag == "polygon":
        points = points_of([point.split(",") for point in given["points"].split(";")])
    elif shape.tag == "box":
        x0, y0, x1, y1 = (float(given[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        points = rotated([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], ((x0 + x1) / 2, (y0 + y1) / 2), turned)
    elif shape.tag == "ellipse":
        x, y, radius_x, radius_y = (float(given[name]) for name in ("cx", "cy", "rx", "ry"))
        points = ellipse_points(x, y, radius_x, radius_y, turned)
    else:
        raise ValueError(f"there is no shape {shape.tag!r}")
    return {"polygons": [polygon_of(points)]}


def write(path: Path, pictures: Iterable[Marked], names: Sequence[str]) -> None:
    """Writes one file of masks, which keep holes and parts."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(root, "meta"), "task"), "labels")
    for i, name in enumerate(name for name in (*names, IGNORED) if name):
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "color").text = hexcolor(i)
    for number, picture in enumerate(pictures):
        size = {"width": str(picture.width), "height": str(picture.height)}
        image = ET.SubElement(root, "image", {"id": str(number), "name": picture.name, **size})
        for region in picture.regions:
            height, width = region.mask.shape
            counts = run_lengths(region.mask.T, 0, 0, width, height)  # row by row
            box = {"left": region.left, "top": region.top, "width": width, "height": height}
            given = {"label": region.label, "source": "auto", "occluded": "0", "rle": ", ".join(map(str, counts))}
            ET.SubElement(image, "mask", given | {k: str(v) for k, v in box.items()} | {"z_order": "0"})
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
