# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finds annotations and the pictures that they are of, and makes cells of a column of masks of them."""

import json
import os
import re
import unicodedata
import xml.etree.ElementTree as ET
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import PIL.Image
import yaml

from ...images.formats.opening import open_raster
from ...images.image_files import walk
from ...jobs.errors import UserError
from ..folder_names import bare_name, split_of
from ..layout import ALL, Layout
from . import coco, cvat, label_studio, labelme, qupath, supervisely, yolo
from .base import Contents, Picture
from .shapes import IGNORED, Area, is_background


READERS: dict[str, ModuleType] = {
    "coco": coco,
    "labelme": labelme,
    "cvat": cvat,
    "label_studio": label_studio,
    "qupath": qupath,
    "supervisely": supervisely,
    "yolo": yolo,
}
AUTO = "auto"
_LARGE = 2**26  # pixels; pictures of more are opened to see whether they have them
_BROKEN = (AttributeError, IndexError, MemoryError, OSError, OverflowError, TypeError, ValueError)
_SUFFIXES = (".json", ".geojson", ".xml", ".yaml", ".yml")


@dataclass
class Annotated:
    """Pictures of a folder, with the shapes in them.

    Args:
        format (`str`): Name in `READERS`.
        layout ([`Layout`]): Splits and their pictures, each with the file that it is annotated in; `notes` say what was
            left out.
        splits (`dict`): The same pictures with what is drawn in them.
        names (`list` of `str`): Of the classes.
        ids (`dict`): The class of each label.
        outside (`int`): Id of pixels in no shape.
        named (`bool`): Whether the annotations were named, and not searched for.
    """

    format: str
    layout: Layout
    splits: dict[str, list[tuple[Path, Picture]]]
    names: list[str]
    ids: dict[str, int]
    outside: int
    named: bool

    def rows(self, split: str) -> tuple[list[str], list[str]]:
        """Paths of the pictures of a split, and for each a cell that [`rasterize`] takes.

        Raises:
            UserError: There is no such split.
        """
        chosen = self._choose(split)
        cells, empty, clipped = [], 0, 0
        for path, picture in chosen:
            height, width = picture.size or _size(path)
            if (min(height, width) < 1 or height * width > _LARGE) and (height, width) != (real := _size(path)):
                raise UserError(
                    f"{path} is {real[1]} × {real[0]}, but its annotation is {width} × {height} (width × height)."
                )
            shapes = [{"class": self.ids[label], **area} for label, area in picture.shapes]
            empty += not shapes
            clipped += sum(leaves(area, height, width) for _, area in picture.shapes)
            cell = {"height": height, "width": width, "outside": self.outside, "shapes": shapes}
            cells.append(json.dumps(cell, separators=(",", ":")))
        if empty:
            what = f"of class {self.names[self.outside]!r}" if self.outside < len(self.names) else "ignored"
            self.layout.notes.append(
                f"{empty} of {len(chosen)} pictures have no shapes: all of their pixels are {what}."
            )
        if clipped:
            self.layout.notes.append(f"{clipped} shapes reach out of their pictures and are cut off there.")
        return [str(path) for path, _ in chosen], cells

    def _choose(self, split: str) -> list[tuple[Path, Picture]]:
        """The pictures of a split; of a file that was named, which has one alone, those."""
        only = next(iter(self.splits))
        if self.named and len(self.splits) == 1 and only != ALL and only != (split_of(split) or split):
            self.layout.notes.append(f"The annotations are of the split {only!r}, and are taken for {split!r}.")
            return self.splits[only]
        return self.splits[self.layout.split(split)]


def find_annotations(
    place: Path, kind: str = AUTO, broken: list[str] | None = None
) -> dict[str, list[tuple[Path, Any]]]:
    """Files of annotations at a place, a file or a folder, with what is parsed of them, by format.

    Args:
        place (`Path`): A file, or a folder that is searched.
        kind (`str`, defaults to `"auto"`): Which format; by content if `"auto"`.
        broken (`list` of `str`, *optional*): Takes a line for each file of a folder that cannot be parsed.

    Raises:
        UserError: There is no such place, or a file that is named is of no known format.
    """
    if not place.exists():
        raise UserError(f"There is no file or folder {place}.")
    found: dict[str, list[tuple[Path, Any]]] = defaultdict(list)
    for path in [place] if place.is_file() else sorted(_candidates(place)):
        try:
            content = _parse(path)
        except UserError as error:
            if place.is_file():
                raise
            if broken is not None:
                broken.append(str(error))
            continue
        known = [name for name in READERS if kind in (AUTO, name) and READERS[name].recognises(path, content)]
        if known:
            found[known[0]].append((path, content))
    if place.is_file() and not found:
        expected = kind if kind != AUTO else ", ".join(READERS)
        raise UserError(f"{place} is not in a format of annotations that is read ({expected}).")
    return dict(found)


def _candidates(folder: Path) -> Iterator[Path]:
    for here, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.lower().endswith(".zarr")]
        paths = (here / name for name in names if name.lower().endswith(_SUFFIXES))
        yield from (path for path in paths if path.is_file())  # and no pipe, which would be waited for


def _parse(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".xml":
            return ET.parse(path).getroot()
        with path.open(encoding="utf-8-sig") as file:
            content = yaml.safe_load(file) if path.suffix.lower() in (".yaml", ".yml") else json.load(file)
        if isinstance(content, dict):
            content.pop("imageData", None)  # of labelme: the whole picture
        return content
    except (ValueError, ET.ParseError, yaml.YAMLError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); export the annotations again, or remove it.") from error


def read_file(name: str, path: Path, content: Any) -> Contents:
    """What a parsed file says.

    Args:
        name (`str`): Its format, in `READERS`.

    Raises:
        UserError: It is not of its format; says what is missing or wrong.
    """
    try:
        found = READERS[name].read(path, content)
        labels = [*found.names, *(label for picture in found.pictures for label, _ in picture.shapes)]
        if not all(label and isinstance(label, str) for label in labels):
            raise ValueError("a shape has no label")
        return found
    except UserError:
        raise
    except KeyError as error:
        what = f"{error} is missing"
    except (PIL.Image.DecompressionBombError, zlib.error, *_BROKEN) as error:
        what = str(error)
    raise UserError(f"{path} is not as {name} files are: {what}; export the annotations again, or repair the file.")


def unread_annotations(folder: Path) -> Path | None:
    """A file of annotations by its name, in a folder whose masks are read."""
    usual = ("annotations.xml", "*annotations*.json", "annotations/*.json", "data.yaml", "*.geojson")
    return next((path for pattern in usual for path in sorted(folder.glob(pattern))), None)


def read_annotations(
    layout: Layout,
    place: Path | None = None,
    kind: str = AUTO,
    names: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> Annotated | None:
    """The annotations of a folder's pictures; `None` where none are named and none are found.

    Args:
        layout ([`Layout`]): The folder of the pictures, from [`find_layout`].
        place (`Path`, *optional*): File or folder of annotations; searched for in the folder if not given.
        kind (`str`, defaults to `"auto"`): Format of the annotations.
        names (sequence of `str`, *optional*): Of the classes, in order; else those of the annotations behind the
            background.
        ignore_index (`int`, defaults to 255): Id of pixels without a class.

    Raises:
        UserError: Several formats are there, a file is broken, pictures are missing or ambiguous, or labels are of no
            class.
    """
    where = place or layout.folder
    broken: list[str] = []
    found = find_annotations(where, kind, broken)
    if not found and place is None and broken and layout.pictures():
        raise UserError(broken[0])
    if not found and place is None:
        return None
    layout.notes += broken
    if len(found) != 1:
        said = "; ".join(
            f"{name}: {files[0][0]}" + (f" and {len(files) - 1} more" if files[1:] else "")
            for name, files in found.items()
        )
        raise UserError(
            f"There are {'annotations in several formats' if found else 'no annotations'} in {where}"
            f"{f' ({said})' if found else ''}; name the file or folder with --annotations, or --annotation_format."
        )
    ((name, files),) = found.items()
    if name == "coco" and (instances := [f for f in files if f[0].name.startswith("instances_")]):
        files = instances  # beside them COCO has captions and keypoints of the same pictures
    contents = [(path, read_file(name, path, content)) for path, content in files]
    own, splits = _gather(contents, layout, name)
    classes = _classes([content for _, content in contents], names, ignore_index, files[0][0])
    return Annotated(name, own, splits, *classes, named=place is not None)


def _gather(
    contents: list[tuple[Path, Contents]], layout: Layout, name: str
) -> tuple[Layout, dict[str, list[tuple[Path, Picture]]]]:
    """Pictures that are there, by split, with what the annotations say of them."""
    folder = layout.folder
    own = Layout(folder, kind=f"{name} annotations", ignored=layout.ignored, notes=list(layout.notes))
    split_at = {path: split for split in layout.names for path in layout.pictures(split)}
    index = _Index(split_at)
    splits: dict[str, list[tuple[Path, Picture]]] = defaultdict(list)
    seen: dict[Path, Path] = {}
    missing: list[str] = []
    left_out: Counter = Counter()
    for file, content in contents:
        left_out.update(content.left_out)
        stated = _stated_split(file, folder)
        for picture in content.pictures:
            path = index.find(picture.name, file, picture.split or stated)
            if path is None or (name == "yolo" and not os.path.samefile(path, picture.name)):  # labels are beside that
                missing.append(picture.name)
                continue
            if path in seen:
                raise UserError(f"{path} is annotated twice, in {seen[path]} and {file}; name one with --annotations.")
            seen[path] = file
            split = picture.split or (split_at[path] if split_at[path] != ALL else stated or ALL)
            splits[split_of(split) or split].append((path, picture))
    shapes = sum(len(picture.shapes) for own_split in splits.values() for _, picture in own_split)
    dropped = ", ".join(f"{number} {what}" for what, number in left_out.items())
    if missing and not seen:
        raise UserError(
            f"None of the {len(missing)} pictures of {contents[0][0]} is in {folder}, {missing[0]} among them; give "
            f"the folder of the pictures as --dataset_name (of `app` as --images)."
        )
    if not shapes:
        raise UserError(f"{contents[0][0]} has no areas{f', but {dropped}' if dropped else ''}; masks need areas.")
    if dropped:
        own.notes.append(f"Of the annotations, these are not taken as they are: {dropped}.".replace(",.", "."))
    if missing:
        own.notes.append(f"{len(missing)} annotated pictures are not in {folder}, {missing[0]} among them.")
    if alone := sorted(set(split_at) - set(seen)):
        own.notes.append(
            f"{len(alone)} pictures of {folder} have no annotations and count as unlabelled, {alone[0]} among them."
        )
    ordered = {split: sorted(pairs, key=lambda pair: pair[0]) for split, pairs in splits.items()}
    own.splits = {split: [(path, seen[path]) for path, _ in pairs] for split, pairs in ordered.items()}
    return own, ordered


class _Index:
    """Pictures by their names."""

    def __init__(self, split_at: dict[Path, str]):
        self.split_at = split_at
        self.by_path = {os.path.normpath(path): path for path in split_at}
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in split_at:
            for key in {unicodedata.normalize("NFC", path.name), bare_name(path)}:
                self.by_name[key].append(path)

    def find(self, name: str, file: Path, split: str | None) -> Path | None:
        """The picture that a file of annotations means: beside it, or by as much of its path as is needed."""
        for place in (file.parent / name, Path(name)):
            if (path := self.by_path.get(os.path.normpath(place))) is not None:
                return path
        name = unicodedata.normalize("NFC", name)
        found = self.by_name.get(name.rsplit("/", 1)[-1], [])
        for fits in (
            lambda path: f"/{path.as_posix()}".endswith(f"/{name.lstrip('./')}"),
            lambda path: split is None or split_of(self.split_at[path]) == split_of(split),
            lambda path: path.parent == file.parent,
        ):
            found = [path for path in found if fits(path)] or found
        if len(found) > 1:
            raise UserError(
                f"{file} means {name}, which may be {found[0]} or {found[1]}; write more of the path there."
            )
        return found[0] if found else None


def _stated_split(file: Path, folder: Path) -> str | None:
    """The split that the name of a file of annotations, or a folder above it, states."""
    inside = file.relative_to(folder).parts if file.is_relative_to(folder) else (file.name,)
    words = [word for part in (*inside[:-1], Path(file.name).stem) for word in re.split(r"[_\-. ]", part)]
    return next((word for word in words if len(word) > 2 and split_of(word)), None)


def _classes(
    contents: list[Contents], given: Sequence[str] | None, ignore_index: int, file: Path
) -> tuple[list[str], dict[str, int], int]:
    """Names of the classes, the id of each label, and that of pixels outside of all shapes.

    Classes are in the order in which files list them, others behind in that of the alphabet; the background is first,
    and is added where there is none. With `given` names those are the classes.
    """
    listed = list(dict.fromkeys(name for content in contents for name in content.names))
    used = {label for c in contents for picture in c.pictures for label, _ in picture.shapes} - {IGNORED}
    if given is None:
        names = [*listed, *sorted(used - set(listed))]
        first = next((name for name in names if is_background(name)), "background")
        names = [first, *(name for name in names if name != first)]
    else:
        names = list(given)
        if unknown := sorted(used - set(names)):
            raise UserError(f"{file} has the label {unknown[0]!r}, which is no class; classes are {', '.join(names)}.")
    if len(names) > ignore_index or len(names) < 2:
        raise UserError(f"{file} has {len(names)} classes with the background; there may be 2 to {ignore_index}.")
    ids = {name: i for i, name in enumerate(names)} | {IGNORED: ignore_index}
    outside = next((i for i, name in enumerate(names) if is_background(name)), ignore_index)
    return names, ids, outside


def _size(path: Path) -> tuple[int, int]:
    with open_raster(path) as raster:
        return raster.size


def leaves(area: Area, height: int, width: int) -> bool:
    """Whether a shape reaches out of its picture by more than rounding."""
    if area.get("cut"):
        return True
    if "polygons" in area:
        points = [p[i : i + 2] for p in area["polygons"] for i in range(0, len(p), 2)]
    else:
        rings = [area["drawn"][1]] if "drawn" in area else area.get("filled") or area.get("rings") or []
        points = [point for ring in rings for point in ring]
    return any(not (-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5) for x, y in points)
