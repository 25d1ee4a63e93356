# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The pictures of a session, of any format that `segment` reads, as model input and for display."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from ..datasets import layouts
from ..images.channels import to_rgb
from ..images.formats.base import Window
from ..images.formats.opening import is_raster, open_raster
from ..images.image_processor import DiffuseSegImageProcessor, open_image, to_eight_bit
from ..jobs.errors import UserError
from .journal import MAX_PIXELS


SQUEEZED = 4  # times as many pixels along an axis as the model sees: worth a line


@dataclass(frozen=True)
class Picture:
    """A picture of the folder."""

    name: str  # its path below the folder, with `/`
    path: Path
    size: tuple[int, int]  # height and width in pixels
    root: Path  # the folder, without links

    def check(self) -> None:
        """Raises [`UserError`] if the file is gone, is a link out of the folder, or has changed its size."""
        if not self.path.exists():
            raise UserError(f"{self.name} is gone; put it back, or start again without it.")
        self._check_inside()
        with open_raster(self.path) as raster:
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
        return f"{stat.st_size}-{stat.st_mtime_ns}"

    def read(self) -> PIL.Image.Image | np.ndarray:
        """The decoded picture: a PIL image, or an array `[H, W, C]` for formats that Pillow does not read.

        Raises:
            UserError: The file cannot be read, is a link out of the folder, or has changed its size.
        """
        self._check_inside()
        if not is_raster(self.path):
            image = open_image(self.path)
            self._check_size((image.height, image.width))
            return image
        with open_raster(self.path) as raster:
            values = raster.read(0, Window(0, 0, *raster.size)).transpose(1, 2, 0)
        self._check_size(values.shape[:2])
        return values

    def pixels(self, processor: DiffuseSegImageProcessor, size: tuple[int, int]) -> torch.Tensor:
        """The model input: `[1, C, H, W]` in [-1, 1]."""
        return processor.preprocess(processor.load([self.read()]), *size)

    def shown(self) -> PIL.Image.Image:
        """The picture for display, mode "L" or "RGB"; of many channels the first three, each stretched to its range."""
        image = self.read()
        if isinstance(image, PIL.Image.Image):
            return to_eight_bit(image)
        if image.dtype == np.uint8 and image.shape[2] in (1, 3):
            return PIL.Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        values = image.transpose(2, 0, 1)[:3].astype(np.float32)
        low, high = (f(values, axis=(1, 2), keepdims=True) for f in (np.nanmin, np.nanmax))
        return PIL.Image.fromarray(to_rgb(np.nan_to_num((values - low) / np.maximum(high - low, 1e-12))))


def find_pictures(
    folder: Path, model_size: tuple[int, int] | None = None
) -> tuple[dict[str, Picture], dict[str, str], list[str]]:
    """The pictures below a folder by name, the reasons of those left out by name, and notices to show.

    Links that lead out of the folder are not followed; `model_size` is the height and width that the model sees.

    Raises:
        UserError: There is no such folder, or no picture in it that can be opened.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    root = Path(os.path.realpath(folder))
    found: dict[str, Picture] = {}
    left_out: dict[str, str] = {}
    squeezed = []
    notes: list[str] = []
    for path in layouts.find_pictures(folder):
        name = path.relative_to(folder).as_posix()
        if not is_inside(path, root):
            left_out[name] = "is a link that leads out of the folder"
            continue
        if not name.isprintable():
            left_out[ascii(name)] = "has a name with characters that cannot be shown; rename it"
            continue
        try:
            with open_raster(path) as raster:
                size, planes = (raster.height, raster.width), raster.planes
                notes += raster.notes
        except UserError as error:
            left_out[name] = str(error)
            continue
        if size[0] * size[1] > MAX_PIXELS:
            left_out[name] = f"has {size[1]} x {size[0]} pixels, {MAX_PIXELS:,} are the most; cut it into pieces"
        elif planes > 1:
            left_out[name] = f"has {planes} planes; save those that are to be labelled one by one"
        else:
            found[name] = Picture(name, path, size, root)
            if model_size is not None and max(n / m for n, m in zip(size, model_size)) >= SQUEEZED:
                squeezed.append(name)
    if not found:
        why = next((f": {name} {reason}" for name, reason in left_out.items()), "")
        raise UserError(f"There are no pictures in {folder} that can be labelled{why}.")
    if left_out:
        first = next(iter(left_out))
        notes.append(
            f"{len(left_out)} of {len(left_out) + len(found)} pictures are left out: {first} {left_out[first]}"
        )
    if squeezed:
        height, width = model_size
        notes.append(
            f"{len(squeezed)} pictures are {SQUEEZED} times as large as what the model sees ({width} x {height}) or "
            f"larger, {squeezed[0]} among them: small things are lost; cut them into pieces."
        )
    return found, left_out, notes


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, links resolved, lies below a folder that has none; of a folder all that is in it, too."""
    inner = [p for p in path.rglob("*") if p.is_symlink()] if path.is_dir() else []
    return all(Path(os.path.realpath(p)).is_relative_to(root) for p in (path, *inner))
