# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a session, of any format that `segment` reads, as model input and for display."""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from datasets import Value

from ..datasets.columns import ReadImage, read_image
from ..datasets.layout import left_out
from ..datasets.layouts import find_layout
from ..images.channels import InputChannels
from ..images.formats.base import Raster
from ..images.formats.cells import open_cell
from ..images.formats.opening import is_raster, lost_here, open_raster
from ..images.image_processor import DiffuseSegImageProcessor
from ..jobs.errors import UserError
from .checks import MAX_PIXELS
from .display import PLAIN, Shown, View, show


NOTES = 5  # of single pictures that are told of at the start; each is shown beside its picture
MAX_PLANES = 200  # of a stack; of more, evenly spread ones are offered
READING = 2  # counts changes of how pictures are read, after which features have to be extracted again
KEPT = 2**28  # bytes of a decoded picture that is kept in memory
SQUEEZED = 4  # times as many pixels along an axis as the model sees: worth a line
CELL = {"path": Value("string"), "plane": Value("int32"), "planes": Value("int32")}  # of a column of pictures


@dataclass(frozen=True)
class Picture:
    """A picture of the folder, or a plane of a stack or volume in it."""

    name: str  # its path below the folder, with `/`; of a plane with its number, such as "stack.tif, z 3"
    path: Path
    size: tuple[int, int]  # height and width in pixels
    root: Path  # the folder, without links
    notes: tuple[str, ...] = ()  # what was guessed, dropped or distorted when it was opened
    has_gaps: bool = False  # whether there may be pixels without a measurement
    axes: str | None = None  # of a TIFF that does not state them
    plane: int | None = None  # of a stack, from 0
    planes: int = 1  # of the stack
    place: str = ""  # of the plane, such as "z 3, t 2"

    @property
    def file_name(self) -> str:
        """The path of its file below the folder."""
        return self.name.removesuffix(f", {self.place}") if self.place else self.name

    @property
    def extent(self) -> tuple[int, ...]:
        """Height, width and, of a plane, how many planes the stack has: what must stay the same."""
        return self.size if self.plane is None else (*self.size, self.planes)

    @property
    def cell(self) -> dict[str, Any]:
        """The picture in a column of a dataset, see [`open_cell`]."""
        return {"path": str(self.path), "plane": self.plane, "planes": self.planes}

    def check(self) -> None:
        """Raises [`UserError`] if the file is gone, is a link out of the folder, or has changed its size or planes."""
        if not self.path.exists():
            raise UserError(f"{self.name} is gone; put it back, or start again without it.")
        self.check_inside()
        with open_cell(self.cell, self.name, self.axes) as raster:
            self._check_size(raster.size)
            if raster.planes > 1:
                raise UserError(f"{self.name} was a picture of one plane and is now one of {raster.planes} planes.")

    def check_inside(self) -> None:
        """Raises [`UserError`] if the file is a link out of the folder."""
        if not is_inside(self.path, self.root):
            raise UserError(f"{self.name} is a link by now that leads out of the folder; it is not read.")

    def _check_size(self, size: tuple[int, int]) -> None:
        if tuple(size) != self.size:
            raise UserError(f"{self.name} was {self.size[1]} x {self.size[0]} pixels and is now {size[1]} x {size[0]}.")

    def stamp(self) -> str:
        """A value that changes with the file."""
        stat = os.stat(self.path)
        of_file = f"{stat.st_size}-{stat.st_mtime_ns}-{READING}-{self.axes}"
        return of_file if self.plane is None else f"{of_file}-{self.plane}-{self.planes}"

    def read(self, channels: InputChannels) -> ReadImage:
        """The decoded picture, as [`LabeledImages`] reads it.

        Raises:
            UserError: The file cannot be read, is a link out of the folder, or has changed its size or planes.
        """
        self.check_inside()
        found = read_image(self.cell, self.name, channels, self.axes)
        image = found.image
        self._check_size(image.size[::-1] if isinstance(image, PIL.Image.Image) else image.shape[:2])
        return found

    def pixels(self, processor: DiffuseSegImageProcessor, size: tuple[int, int]) -> torch.Tensor:
        """The model input: `[1, C, H, W]` in [-1, 1]."""
        return processor.preprocess(processor.load([self.read(processor.channels).image]), *size)

    def shown(self, channels: InputChannels, view: View = PLAIN, found: ReadImage | None = None) -> Shown:
        """The picture for display, with what has to be said of it; `found` is what was read of it, if it is at hand."""
        found = found or self.read(channels)
        lines = list(self.notes)
        if found.gaps is not None:
            lines.append(f"{found.gaps.mean():.1%} of its pixels hold no measurement; they are of no class.")
        shown = show(found, self.name, view, channels)
        return shown._replace(lines=lines + shown.lines)


class LastRead:
    """Keeps the last picture that was read, of at most 256 MB, so that another view of it does not decode it again."""

    def __init__(self) -> None:
        self._kept: tuple[tuple, ReadImage] | None = None  # replaced as a whole, and so needs no lock

    def read(self, picture: Picture, channels: InputChannels, keep: bool = True) -> ReadImage:
        """As [`Picture.read`]; without `keep`, the picture that is kept stays.

        Raises:
            UserError: See [`Picture.read`].
        """
        if not picture.path.is_file():  # gone, or a folder, whose stamp does not change with the files in it
            return picture.read(channels)
        key = (picture.name, picture.stamp(), channels)  # of the file as it is before it is read
        kept = self._kept
        if kept is not None and kept[0] == key:
            picture.check_inside()
            return kept[1]
        found = picture.read(channels)
        if keep:
            self._kept = (key, found) if _decoded_bytes(found) <= KEPT else None
        return found


def _decoded_bytes(found: ReadImage) -> int:
    image, gaps = found.image, 0 if found.gaps is None else found.gaps.nbytes
    if isinstance(image, PIL.Image.Image):  # which has four bytes a pixel unless it is one of one byte
        return image.width * image.height * (1 if image.mode in ("1", "L", "P") else 4) + gaps
    return image.nbytes + gaps


def find_pictures(
    folder: Path, model_size: tuple[int, int] | None = None, axes: str | None = None
) -> tuple[dict[str, Picture], dict[str, str], list[str]]:
    """The pictures below a folder by name, the reasons of those left out by name, and notices to show.

    Each plane of a stack or volume is a picture; of more than `MAX_PLANES` evenly spread ones, and a notice says which.
    Links that lead out of the folder are not followed; `model_size` is the height and width that the model sees,
    `axes` as in [`open_raster`].

    Raises:
        UserError: There is no such folder, or no picture in it that can be opened.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    root = Path(os.path.realpath(folder))
    found: dict[str, Picture] = {}
    out: dict[str, str] = {}
    squeezed = []
    layout = find_layout(folder)
    notes = left_out(layout)
    of_pictures: list[str] = []
    for path in layout.pictures():
        name = path.relative_to(folder).as_posix()
        try:
            own = {picture.name: picture for picture in _open(path, name, root, axes)}
            if taken := next((other for other in own if other in found), None):
                raise UserError(f"would share the name {taken!r} with {found[taken].file_name!r}; rename one of them")
        except UserError as error:
            out[name if name.isprintable() else ascii(name)] = str(error)
            continue
        found |= own
        first = next(iter(own.values()))
        of_pictures += first.notes
        if model_size is not None and max(n / m for n, m in zip(first.size, model_size)) >= SQUEEZED:
            squeezed += own
    if not found:
        why = next((f": {name} {reason}" for name, reason in out.items()), "")
        raise UserError(f"There are no pictures in {folder} that can be labelled{why}.")
    if out:
        name = next(iter(out))
        notes.append(f"{len(out)} of {len(out) + len(found)} pictures are left out: {name} {out[name]}")
    notes += of_pictures[:NOTES]
    if len(of_pictures) > NOTES:
        notes.append(f"{len(of_pictures) - NOTES} more such lines stand beside their pictures.")
    if squeezed:
        height, width = model_size
        notes.append(
            f"{len(squeezed)} pictures are {SQUEEZED} times as large as what the model sees ({width} x {height}) or "
            f"larger, {squeezed[0]} among them: small things are lost; cut them into pieces."
        )
    return found, out, notes


def _open(path: Path, name: str, root: Path, axes: str | None) -> list[Picture]:
    """A picture that can be labelled, or the planes of a stack.

    Raises:
        UserError: It cannot be; says why, after its name.
    """
    if not is_inside(path, root):
        raise UserError("is a link that leads out of the folder")
    if not name.isprintable():
        raise UserError("has a name with characters that cannot be shown; rename it")
    with open_raster(path, axes) as raster:
        height, width = raster.size
        notes = [note.replace(str(path), name) for note in raster.notes]
        if "alpha" in raster.channels and not raster.has_gaps and is_raster(path):
            notes.append(f"{name} has an alpha channel, which is not read.")
        if lost := lost_here(path):
            notes.append(f"{name} {lost}.")
        if height * width > MAX_PIXELS:
            raise UserError(f"has {width} x {height} pixels, {MAX_PIXELS:,} are the most; cut it into pieces")
        offered = _offered(raster)
        places = [raster.plane_name(plane) for plane in offered]
        if len(offered) < raster.planes:
            notes.append(
                f"{name} has {raster.planes} planes, and {MAX_PLANES} at most are pictures: one in {offered.step}, "
                f"from {places[0]}, {places[1]} on to {places[-1]}."
            )
        picture = Picture(name, path, (height, width), root, tuple(notes), raster.has_gaps, axes)
        if raster.planes == 1:
            return [picture]
        return [
            replace(picture, name=f"{name}, {place}", plane=plane, planes=raster.planes, place=place)
            for plane, place in zip(offered, places)
        ]


def _offered(raster: Raster) -> range:
    """The planes that are pictures, at most `MAX_PLANES`, evenly spread."""
    step = -(-raster.planes // MAX_PLANES)
    if min(raster.position(raster.planes - 1)) > 0:  # slices and times, of which no step may meet the same ones alone
        while step > 1 and math.gcd(step, raster.planes) > 1:
            step += 1
    return range(0, raster.planes, step)


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, links resolved, lies below a folder that has none; of a folder all that is in it, too."""
    inner = [p for p in path.rglob("*") if p.is_symlink()] if path.is_dir() else []
    return all(Path(os.path.realpath(p)).is_relative_to(root) for p in (path, *inner))
