# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Label Studio's JSON: a list of tasks with brush strokes as run lengths, polygons, rectangles and ellipses.

A brush is an image of red, green, blue and alpha, of which alpha counts, in the run lengths of rle-pack
(https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack). Shapes are in percent of the picture; their pixels
are pycocotools', as in Label Studio's export to COCO. Later shapes cover earlier ones. Predictions are not read.
"""

import json
import re
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from .base import NAMES, Contents, Marked, Picture, ellipse_points, plain_path, points_of, polygon_of, rotated
from .shapes import Area, masked


_SIZES = (3, 4, 8, 16)  # bits of the lengths of runs
_UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format."""
    tasks = content if isinstance(content, list) else [content]
    return bool(tasks) and all(isinstance(task, dict) and "data" in task and "annotations" in task for task in tasks)


def read(path: Path, content: Any) -> Contents:
    """Pictures and shapes of a file; tasks without annotations are left out."""
    found = Contents()
    for task in content if isinstance(content, list) else [content]:
        where = f"task {task.get('id')}"
        valid = [one for one in task["annotations"] if not one.get("was_cancelled")]
        chosen = [one for one in valid if one.get("ground_truth")] or valid
        if len(chosen) > 1:
            raise ValueError(f"{where} has {len(chosen)} annotations; mark one of them as ground truth")
        if not chosen:
            found.left_out["tasks that nobody has labelled"] += 1
            continue
        found.names += [name for name in task["data"].get(NAMES, []) if name not in found.names]
        picture = Picture(_file_name(task))
        labels = {r.get("id"): r["value"]["labels"] for r in chosen[0]["result"] if r.get("type") == "labels"}
        for result in chosen[0]["result"]:
            kind = str(result.get("type", "")).removesuffix("labels")
            if kind in ("brush", "polygon", "rectangle", "ellipse"):
                picture.shapes.append(_shape(where, kind, result, labels, picture))
            elif kind:
                found.left_out[f"results of the type {result['type']!r}"] += 1
        found.pictures.append(picture)
    return found


def _file_name(task: dict) -> str:
    """Name of a task's picture: the part of its address that names a file, without the letters that an upload adds."""
    addresses = [v for v in task["data"].values() if isinstance(v, str)]
    address = task["data"].get("image") or (addresses[0] if len(addresses) == 1 else None)
    if not isinstance(address, str):
        raise ValueError(f"task {task.get('id')} does not say where its picture is: its data has no `image`")
    split = urlsplit(address)
    name = plain_path(parse_qs(split.query).get("d", [unquote(split.path)])[0])
    return name if "/upload/" not in name else _UPLOADED.sub("", name.rsplit("/", 1)[1])


def _shape(where: str, kind: str, result: dict, labels: dict[Any, list], picture: Picture) -> tuple[str, Area]:
    value = result["value"]
    size = int(result["original_height"]), int(result["original_width"])
    own = value.get(f"{kind}labels") or value.get("labels") or labels.get(result.get("id")) or []
    if len(own) != 1:
        raise ValueError(f"a {kind} of {where} has {len(own)} labels, and one is needed")
    if picture.size not in (None, size):
        raise ValueError(f"{where} states two sizes of its picture, {picture.size} and {size} (height, width)")
    if (result.get("image_rotation") or 0) % 360:
        raise ValueError(
            f"{where} was labelled on a picture that is turned by {result['image_rotation']}°, which is not read"
        )
    picture.size = size
    height, width = size
    if kind == "brush":
        alpha = decode_brush(value["rle"])
        if alpha.size != height * width:
            raise ValueError(f"a brush of {where} is of {alpha.size} pixels, and its picture has {height * width}")
        return own[0], masked(alpha.reshape(size) > 0, 0, 0, size)
    if kind == "polygon":
        points = points_of(value["points"])
        points = [[x * width / 100, y * height / 100] for x, y in points]
    else:
        x, y = value["x"] * width / 100, value["y"] * height / 100
        turned = float(value.get("rotation") or 0)
        if kind == "rectangle":
            w, h = value["width"] * width / 100, value["height"] * height / 100
            points = rotated([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], (x, y), turned)
        else:
            points = ellipse_points(x, y, value["radiusX"] * width / 100, value["radiusY"] * height / 100, turned)
    return own[0], {"polygons": [polygon_of(points)]}


def decode_brush(data: Sequence[int]) -> np.ndarray:
    """Alpha of a brush, flat uint8, row by row."""
    bits = "".join(f"{byte:08b}" for byte in bytes(data)).ljust(53, "0")
    count, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
    sizes = [int(bits[37 + 4 * i : 41 + 4 * i], 2) + 1 for i in range(4)]
    at, values, lengths, total = 53, [], [], 0
    while total < count:
        if at + 3 > len(bits):
            raise ValueError("the run lengths of a brush end too early")
        size = sizes[int(bits[at + 1 : at + 3], 2)]
        length = int(bits[at + 3 : at + 3 + size], 2) + 1
        repeated = bits[at] == "1"
        at += 3 + size
        for _ in range(1 if repeated else length):
            values.append(int(bits[at : at + word], 2))
            at += word
        lengths += [length] if repeated else [1] * length
        total += length
    return np.repeat(np.array(values, np.uint8), lengths)[:count][3::4]


def encode_brush(mask: np.ndarray) -> list[int]:
    """A mask `[H, W]` as a brush: 255 or 0 in red, green, blue and alpha."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1], True])
    bits = [f"{flat.size * 4:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for start, length in zip(edges[:-1].tolist(), (np.diff(edges) * 4).tolist()):
        value = "1" * 8 if flat[start] else "0" * 8
        while length > 0:
            part = min(length, 2**16)
            which = next(i for i, size in enumerate(_SIZES) if part <= 2**size)
            bits.append(f"1{which:02b}{part - 1:0{_SIZES[which]}b}{value}")
            length -= part
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def write(path: Path, pictures: Iterable[Marked], names: Sequence[str]) -> None:
    """Writes tasks with brushes, for a project with `<BrushLabels name="label" toName="image">`."""
    tasks = []
    for picture in pictures:
        results = []
        size = {"original_width": picture.width, "original_height": picture.height, "image_rotation": 0}
        for i, region in enumerate(picture.regions):
            brush = encode_brush(region.whole(picture.height, picture.width))
            value = {"format": "rle", "rle": brush, "brushlabels": [region.label]}
            own = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{picture.name}/{i}"))[:10]
            results.append(
                {"id": own, "type": "brushlabels", "from_name": "label", "to_name": "image", **size, "value": value}
            )
        tasks.append(
            {
                "data": {"image": picture.name, NAMES: [name for name in names if name]},
                "annotations": [{"result": results}],
            }
        )
    path.write_text(json.dumps(tasks), "utf-8")
