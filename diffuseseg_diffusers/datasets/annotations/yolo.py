# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""YOLO segmentation: `data.yaml` and a text file for each picture, `class x y x y …` in parts of its size.

As in Ultralytics, coordinates lose their fractions of a pixel, and the border belongs to a polygon. Later lines cover
earlier ones. A picture without a text file has no shapes.
"""

from pathlib import Path
from typing import Any

from ...images.formats.opening import find_rasters, open_raster
from ...jobs.errors import UserError
from .base import Contents, Picture, points_of


_FAR = 2.0  # times the picture's size; polygons may reach out of it a little
_SPLITS = ("train", "val", "test")


def recognises(path: Path, content: Any) -> bool:
    """Whether a parsed file is of this format."""
    return isinstance(content, dict) and bool(content.get("names")) and any(split in content for split in _SPLITS)


def read(path: Path, content: Any) -> Contents:
    """Pictures and shapes of all splits."""
    names = content["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not all(isinstance(name, (str, int, float)) for name in names.values()):
        raise ValueError("`names` are no names of classes")
    if sorted(names) != list(range(len(names))):
        raise ValueError("`names` are not those of the classes 0, 1, 2, …")
    found = Contents(names=[str(names[i]) for i in range(len(names))])
    for split in _SPLITS:
        given = content.get(split)
        for one in given if isinstance(given, list) else [given] if given else []:
            if split == "test" and found.pictures and not _places(path, content.get("path"), str(one)):
                found.left_out[f"folder of the split 'test', which {path.name} names and which is not there"] += 1
                continue  # Roboflow names one in every export, which training does not read
            for image in _images(path, content.get("path"), str(one)):
                found.pictures.append(_picture(image, split, found))
    return found


def _images(path: Path, root: str | None, given: str) -> list[Path]:
    """Pictures of a split: of a folder, or of a list in a text file."""
    found = _places(path, root, given)
    if not found:
        raise UserError(
            f"{path} names {given}, and there is no {path.parent / (root or '') / given}; mend the path there."
        )
    place, roots = found[0], [path.parent / (root or ""), path.parent]
    if place.is_dir():
        return find_rasters(place)
    lines = [line.strip() for line in place.read_text("utf-8").splitlines() if line.strip()]
    return [
        next((p for p in (base / line for base in [place.parent, *roots]) if p.exists()), Path(line)) for line in lines
    ]


def _places(path: Path, root: str | None, given: str) -> list[Path]:
    """What a path of `data.yaml` may mean and is there, the likeliest first."""
    roots = [path.parent / (root or ""), path.parent]
    tried = [base / name for base in roots for name in (given, given.removeprefix("../"))]  # as Roboflow writes it
    return [place for place in tried if place.exists()]


def _picture(image: Path, split: str, found: Contents) -> Picture:
    parts = list(image.parts)
    at = len(parts) - 1 - parts[::-1].index("images") if "images" in parts else None
    if at is not None:
        parts[at] = "labels"
    text = Path(*parts).with_suffix(".txt")
    with open_raster(image) as raster:
        height, width = raster.size
    picture = Picture(str(image), size=(height, width), split=split)
    for line in text.read_text("utf-8").splitlines() if text.is_file() else []:
        numbers = [float(word) for word in line.split()]
        if len(numbers) > 5 and len(numbers) % 2 == 0:
            raise ValueError(f"{text} has a line with an odd number of coordinates")
        if numbers and numbers[0] not in range(len(found.names)):
            raise ValueError(f"{text} has the class {numbers[0]:g}, and there are {len(found.names)}")
        if (far := max(map(abs, numbers[1:]), default=0)) > _FAR:
            raise ValueError(
                f"{text} has the coordinate {far:g}, and parts of the picture's size, 0 to 1, are expected"
            )
        label = found.names[int(numbers[0])] if numbers else ""
        if len(numbers) > 6:
            parts = points_of(zip(numbers[1::2], numbers[2::2]))
            points = [[int(x * width), int(y * height)] for x, y in parts]
            picture.shapes.append((label, {"filled": [points]}))
        elif numbers:
            found.left_out["boxes"] += 1
    return picture
