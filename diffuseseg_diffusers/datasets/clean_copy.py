# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A clean copy of labelled images: a folder for each split, with images as they are and masks of class ids."""

import io
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..images.formats.base import Raster, Window
from ..images.formats.cells import open_cell
from ..images.formats.opening import files_of
from ..jobs.errors import UserError
from ..jobs.files import write_json
from .columns import cell_name
from .folder_names import bare_name
from .labeled import LabeledImages


def write_clean_copy(
    splits: Mapping[str, LabeledImages],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    folder: Path,
) -> None:
    """Writes images as they are and masks of class ids: `SPLIT/images`, `SPLIT/masks`, and `id2label.json`.

    Masks have the suffix of their image's format: palette PNGs for plain pictures.

    Args:
        splits (mapping of `str` to [`LabeledImages`]): What to copy.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.
        folder (`Path`): An empty folder.

    Raises:
        UserError: An image or mask cannot be read.
    """
    for split, labelled in splits.items():
        images, masks = (folder / split / name for name in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir()
        taken: set[str] = set()
        for i in tqdm(range(len(labelled)), f"Writing {split}", unit="image", leave=False, disable=None):
            cell, where = labelled.dataset[i][labelled.image_column], f"row {i}"
            name = _free(bare_name(Path(cell_name(cell, f"{i:05d}"))), taken)
            with open_cell(cell, where, labelled.axes, labelled.slice_axis) as raster:
                _copy_picture(cell, raster, images, name)
                labels = partial(_window_of, _mask_planes(labelled, i, raster))
                raster.write_labels(masks / (name + raster.mask_suffix), labels, np.dtype(np.uint8), palette)
    write_json(folder / "id2label.json", dict(enumerate(label_names)))


def _window_of(planes: np.ndarray, plane: int, window: Window) -> np.ndarray:
    return planes[plane][window.slices]


def _mask_planes(labelled: LabeledImages, i: int, raster: Raster) -> np.ndarray:
    """A whole mask, `[planes, H, W]` uint8."""
    if raster.planes == 1:
        return labelled[i].mask[None]
    planes = np.empty((raster.planes, raster.height, raster.width), np.uint8)
    for plane, window, part in labelled.mask_parts(i):
        planes[plane][window.slices] = part
    return planes


def _copy_picture(cell: object, raster: Raster, folder: Path, name: str) -> None:
    """Copies the file, folder or bytes of a cell, and the files that are read with it under their own names."""
    path, data = (cell.get("path"), cell.get("bytes")) if isinstance(cell, Mapping) else (cell, None)
    if data is None and isinstance(path, str) and os.path.exists(path):
        own, others = bare_name(Path(path)), files_of(path)[1:]
        if others and name != own:
            raise UserError(f"{path} is in several files, and another picture has its name; rename one of the two.")
        for other in others:
            shutil.copyfile(other, folder / os.path.basename(other))
        suffix = Path(path).name[len(own) :]
        copy = shutil.copytree if os.path.isdir(path) else shutil.copyfile
        copy(path, folder / (name + suffix))
    elif isinstance(data, bytes):
        with PIL.Image.open(io.BytesIO(data)) as image:
            suffix = "." + (image.format or "png").lower().replace("jpeg", "jpg")
        (folder / (name + suffix)).write_bytes(data)
    else:
        raise UserError(f"{raster.name} is not stored as a file, and cannot be copied; leave --fix out.")


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if another differs from it by case alone or not at all."""
    free = next(n for n in chain([name], (f"{name}_{k}" for k in count(2))) if n.lower() not in taken)
    taken.add(free.lower())
    return free
