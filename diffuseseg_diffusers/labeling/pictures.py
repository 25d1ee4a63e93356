# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a session, of any format that `segment` reads, as model input and for display."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..datasets.columns import ReadImage, read_image
from ..datasets.layout import left_out
from ..datasets.layouts import find_layout
from ..images.channels import DISPLAYED, InputChannels, stretch, to_rgb
from ..images.formats.opening import is_raster, lost_here, open_raster
from ..images.image_processor import DiffuseSegImageProcessor, to_eight_bit
from ..jobs.errors import UserError
from .journal import MAX_PIXELS


NOTES = 5  # of single pictures that are told of at the start; each is shown beside its picture
READING = 2  # counts changes of how pictures are read, after which features have to be extracted again
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
        self._check_inside()
        with open_raster(self.path, self.axes) as raster:
            self._check_size(raster.size)

    def _check_inside(self) -> None:
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
        self._check_inside()
        found = read_image(str(self.path), self.name, channels, self.axes)
        image = found.image
        self._check_size(image.size[::-1] if isinstance(image, PIL.Image.Image) else image.shape[:2])
        return found

    def pixels(self, processor: DiffuseSegImageProcessor, size: tuple[int, int]) -> torch.Tensor:
        """The model input: `[1, C, H, W]` in [-1, 1]."""
        return processor.preprocess(processor.load([self.read(processor.channels).image]), *size)

    def shown(self, channels: InputChannels) -> tuple[PIL.Image.Image, list[str]]:
        """The picture for display, mode "L" or "RGB", and what has to be said of it, a line each."""
        found = self.read(channels)
        lines = list(self.notes)
        if found.gaps is not None:
            lines.append(f"{found.gaps.mean():.1%} of its pixels hold no measurement; they are of no class.")
        image, of_display = _displayed(found, channels)
        return image, lines + of_display


def _displayed(found: ReadImage, channels: InputChannels) -> tuple[PIL.Image.Image, list[str]]:
    """An image for display, of many channels the first three, and how it differs from what the model sees."""
    image = found.image
    if isinstance(image, PIL.Image.Image):
        if not image.mode.startswith(("I", "F")):
            return to_eight_bit(image), _of_alpha(image)
        image = np.asarray(image)[..., None]
    values = image.transpose(2, 0, 1)  # [C,H,W]
    names = found.channels or ("gray",)
    lines = []
    if len(values) not in (1, 3):
        colours = "red and green" if len(values) == 2 else "red, green and blue"
        lines.append(f"Of {len(values)} channels, {', '.join(names[:3])} are shown as {colours}.")
    together = names[:3] == ("red", "green", "blue")
    parts = [values[:3]] if together else list(values[:3, None])
    if found.gaps is not None and values.dtype != np.uint8:  # which are no values to stretch to
        parts = [np.where(found.gaps, np.nan, part) for part in parts]
    stretched = [stretch(part) for part in parts]
    if values.dtype not in (np.uint8, bool):
        limits = ", ".join(
            ("" if together or len(names) == 1 else f"{name} ") + f"{low:,.5g} to {high:,.5g}"
            for name, (_, low, high) in zip(names, stretched)
        )
        black, white = (channels.windows or [(0, 1 if values.dtype.kind == "f" else 65535)])[0]
        several = " (in its first channel)" if len(channels.windows or ()) > 1 else ""
        lines.append(
            f"Stretched for display alone, from percentile {DISPLAYED[0]:g} to {DISPLAYED[1]:g}: {limits}. For the "
            f"model, {black:,.5g} is black and {white:,.5g} white{several}."
        )
    return PIL.Image.fromarray(to_rgb(np.concatenate([part for part, _, _ in stretched]))), lines


def _of_alpha(image: PIL.Image.Image) -> list[str]:
    """A line if some of a picture is transparent."""
    if not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema()[0] == 255:
        return []
    return ["Its transparency is left out: the model sees the colours that lie below, as they are shown."]


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
