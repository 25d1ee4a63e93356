# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a session, of any format that `segment` reads, as model input and for display."""

import os
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from ..datasets.columns import ReadImage, read_image
from ..datasets.layout import left_out
from ..datasets.layouts import find_layout
from ..images.channels import InputChannels
from ..images.formats.opening import is_raster, lost_here, open_raster
from ..images.image_processor import DiffuseSegImageProcessor
from ..jobs.errors import UserError
from .checks import MAX_PIXELS
from .display import PLAIN, Shown, View, show


NOTES = 5  # of single pictures that are told of at the start; each is shown beside its picture
READING = 2  # counts changes of how pictures are read, after which features have to be extracted again
KEPT = 2**28  # bytes of a decoded picture that is kept in memory
SQUEEZED = 4  # times as many pixels along an axis as the model sees: worth a line


@dataclass(frozen=True)
class Picture:
    """A picture of the folder."""

    name: str  # its path below the folder, with `/`
    path: Path
    size: tuple[int, int]  # height and width in pixels
    root: Path  # the folder, without links
    notes: tuple[str, ...] = ()  # what was guessed, dropped or distorted when it was opened
    has_gaps: bool = False  # whether there may be pixels without a measurement
    axes: str | None = None  # of a TIFF that does not state them

    def check(self) -> None:
        """Raises [`UserError`] if the file is gone, is a link out of the folder, or has changed its size."""
        if not self.path.exists():
            raise UserError(f"{self.name} is gone; put it back, or start again without it.")
        self.check_inside()
        with open_raster(self.path, self.axes) as raster:
            self._check_size(raster.size)

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
        return f"{stat.st_size}-{stat.st_mtime_ns}-{READING}-{self.axes}"

    def read(self, channels: InputChannels) -> ReadImage:
        """The decoded picture, as [`LabeledImages`] reads it.

        Raises:
            UserError: The file cannot be read, is a link out of the folder, or has changed its size.
        """
        self.check_inside()
        found = read_image(str(self.path), self.name, channels, self.axes)
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
            found[name] = picture = _open(path, name, root, axes)
        except UserError as error:
            out[name if name.isprintable() else ascii(name)] = str(error)
            continue
        of_pictures += picture.notes
        if model_size is not None and max(n / m for n, m in zip(picture.size, model_size)) >= SQUEEZED:
            squeezed.append(name)
    if not found:
        why = next((f": {name} {reason}" for name, reason in out.items()), "")
        raise UserError(f"There are no pictures in {folder} that can be labelled{why}.")
    if out:
        first = next(iter(out))
        notes.append(f"{len(out)} of {len(out) + len(found)} pictures are left out: {first} {out[first]}")
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


def _open(path: Path, name: str, root: Path, axes: str | None) -> Picture:
    """A picture that can be labelled.

    Raises:
        UserError: It cannot; says why, after its name.
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
        if raster.planes > 1:
            raise UserError(f"has {raster.planes} planes; save those that are to be labelled one by one")
        return Picture(name, path, (height, width), root, tuple(notes), raster.has_gaps, axes)


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, links resolved, lies below a folder that has none; of a folder all that is in it, too."""
    inner = [p for p in path.rglob("*") if p.is_symlink()] if path.is_dir() else []
    return all(Path(os.path.realpath(p)).is_relative_to(root) for p in (path, *inner))
