# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labelled images from the Hub or from disk, checked as they are read."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, Image, Value

from ..images.channels import InputChannels, to_rgb
from ..images.formats.aligned import aligned, without_label
from ..images.formats.base import Raster, Window, windows_over
from ..images.formats.cells import needs_raster, open_cell
from ..images.formats.orientation import upright_mask
from ..images.grids import Grid
from ..images.image_processor import is_address, warn_once
from ..images.masks import (
    MaskReader,
    Tally,
    looks_gray,
    looks_like_instances,
    picture_values,
    unscaled,
    white_of,
)
from ..images.palettes import read_palette
from ..jobs.errors import UserError
from .annotations.shapes import is_cell, rasterize
from .columns import IMAGE_COLUMNS, MASK_COLUMNS, ReadImage, decode_cell, find_column, read_image


RESIZE = "save the mask at the size of the image, by the nearest pixel, if it shows the same place."
_LOOKED_AT = 8  # masks that are searched for objects


@dataclass
class LabeledImage:
    """An image with its mask.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): The image, `W` × `H`, any mode; of formats that Pillow does not
            open, and of chosen channels, an array `[H, W, C]` of any type.
        mask (`np.ndarray`): `[H, W]` uint8, class ids; the dataset's `ignore_index` where there is no label.
        name (`str`): Where it came from, for messages: its path, or its row.
    """

    image: PIL.Image.Image | np.ndarray
    mask: np.ndarray
    name: str

    @property
    def picture(self) -> PIL.Image.Image:
        """The image for display; of many channels the first three, stretched to their range."""
        if isinstance(self.image, PIL.Image.Image):
            return self.image
        values = self.image.transpose(2, 0, 1).astype(np.float32)  # [C,H,W]
        low, high = (f(values, axis=(1, 2), keepdims=True) for f in (np.nanmin, np.nanmax))
        return PIL.Image.fromarray(to_rgb(np.nan_to_num((values - low) / np.maximum(high - low, 1e-12))))


class LabeledImages:
    """A sequence of [`LabeledImage`] over a `datasets.Dataset`; decodes and checks one at a time.

    Args:
        dataset (`datasets.Dataset`): With a column of images and one of masks (images, or paths of `.npy` files).
        num_classes (`int`, *optional*): Number of classes; from `label_names`, else read from all the masks.
        label_names (sequence of `str`, *optional*): Names of the classes.
        palette (path, sequence or mapping, *optional*): Their colours, see [`read_palette`]; needed for masks in
            colour.
        ignore_index (`int`, defaults to 255): Id of pixels without a label.
        mask_format (`str`, defaults to `"index"`): `"index"`, `"binary"`, `"rgb"` or `"instances"`, see [`MaskReader`].
        image_column, mask_column (`str`, *optional*): Columns to use; the usual names are found.
        channels ([`InputChannels`], *optional*): Which channels of the images are read, and between which values.
        axes (`str`, *optional*), slice_axis (`str`): See [`open_raster`].
        nearest_color (`bool`, defaults to `False`): See [`MaskReader`].

    Attributes:
        tiling (`dict`, *optional*): How large images are cut, of [`LabeledTiles`].

    Raises:
        UserError: A column is missing, or the masks are not of `mask_format`.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        palette: str | os.PathLike | Sequence | Mapping | None = None,
        ignore_index: int = 255,
        mask_format: str = "index",
        image_column: str | None = None,
        mask_column: str | None = None,
        channels: InputChannels | None = None,
        axes: str | None = None,
        slice_axis: str = "z",
        nearest_color: bool = False,
    ):
        self.channels, self.axes, self.slice_axis = channels or InputChannels(), axes, slice_axis
        self.palette, ignored = read_palette(palette, ignore_index) if palette is not None else (None, [])
        self.reader = MaskReader(mask_format, self.palette, ignored, ignore_index, nearest_color)
        if isinstance(dataset, Mapping):
            raise UserError(f"Give one split of the dataset, such as dataset[{next(iter(dataset))!r}]; it has several.")
        if not isinstance(dataset, Dataset):
            raise UserError(f"Labelled images are a `datasets.Dataset`, not streamed; got {type(dataset).__name__}.")
        dataset = dataset.with_format(None)  # decoding and conversion are ours
        if len(dataset) == 0:
            raise UserError("The dataset is empty: it has no images.")
        columns = dataset.column_names
        self.image_column = find_column(columns, image_column, IMAGE_COLUMNS, "image")
        self.mask_column = find_column(columns, mask_column, MASK_COLUMNS, "mask")
        kind = dataset.features[self.mask_column]
        if isinstance(kind, (ClassLabel, Value)) and not kind.dtype.endswith("string"):
            raise UserError(
                f"The column {self.mask_column!r} holds a class for each whole image, and masks are needed; name "
                f"their column with --mask_column."
            )
        for column in (self.image_column, self.mask_column):
            if isinstance(dataset.features[column], Image):
                dataset = dataset.cast_column(column, Image(decode=False))  # so that errors can say where
        self.dataset = dataset
        self.label_names = list(label_names) if label_names else None
        self.ignore_index = ignore_index
        self.mask_format = mask_format
        if mask_format == "binary":
            self.reader = replace(self.reader, white=self._white())
        usual = {"rgb": len(self.palette or ()), "binary": 2, "instances": 2}.get(mask_format)
        stated = num_classes or len(self.label_names or ()) or usual
        if usual and stated != usual:
            raise UserError(
                f"Masks read with --mask_format {mask_format} have {usual} classes, but {stated} are named: "
                f"{', '.join(self.label_names or ()) or 'give their names'}."
            )
        self.num_classes = stated or self._count_classes()
        if mask_format == "index" and (num_classes or self.label_names):
            self._check_not_binary()

    tiling: dict | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> LabeledImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index)

    def read(self, index: int) -> LabeledImage:
        """The image and mask of a row of the dataset, of one plane.

        Raises:
            UserError: They cannot be read, have several planes, or differ in size.
        """
        row = self.dataset[index]
        opened = self._image(row[self.image_column], f"row {index}")
        image, name = opened.image, opened.name
        mask, mask_name = self._mask(row[self.mask_column], f"the mask of row {index}", opened.grid, name)
        height, width = (image.height, image.width) if isinstance(image, PIL.Image.Image) else image.shape[:2]
        mask = upright_mask(mask, (height, width), opened.orientation)
        if mask.shape != (height, width):
            raise UserError(
                f"Image and mask differ in size: {name} is {width} × {height}, but {mask_name} is "
                f"{mask.shape[1]} × {mask.shape[0]} (width × height); {RESIZE}"
            )
        mask = self._known(mask, mask_name)
        if opened.gaps is not None:
            mask = np.where(opened.gaps, np.uint8(self.ignore_index), mask)
        return LabeledImage(image=image, mask=mask, name=name)

    def _known(self, mask: np.ndarray, mask_name: str) -> np.ndarray:
        """Class ids, if all are of classes."""
        wrong = np.setdiff1d(mask, [*range(self.num_classes), self.ignore_index])
        if len(wrong):
            hint = ""
            if set(np.unique(mask)) <= {0, 255} or looks_gray(np.bincount(mask.ravel(), minlength=256)):
                hint = ' It looks like a binary mask: pass mask_format="binary" (`--mask_format binary`).'
            raise UserError(
                f"The mask value {', '.join(map(str, wrong[:10]))} in {mask_name} is outside of the classes 0 to "
                f"{self.num_classes - 1} (and {self.ignore_index} for ignored pixels).{hint}"
            )
        return mask

    def as_ids(self, mask: np.ndarray, where: str, tally: Tally | None = None) -> np.ndarray:
        """Class ids of a part of a mask as it was read: `[H, W]` uint8 from `[H, W]` or `[H, W, C]`.

        Args:
            mask (`np.ndarray`), where (`str`), tally ([`Tally`], *optional*): See [`MaskReader.ids`]; what fits no
                class is not judged without a tally.

        Raises:
            UserError: It is not of `mask_format`, or has ids outside the classes.
        """
        return self._known(self.reader.ids(mask, where, tally or Tally(where)), where)

    def _image(self, cell: Any, where: str) -> ReadImage:
        """An image: as Pillow opens it, or, of other formats and channels, an array `[H, W, C]`."""
        return read_image(cell, where, self.channels, self.axes, self.slice_axis)

    def split(self, fraction: float, seed: int = 0) -> "tuple[LabeledImages, LabeledImages]":
        """Random split; the second part gets `fraction` of the images, each part at least one.

        Raises:
            UserError: There are not enough images, or the fraction is not between 0 and 1.
        """
        held_out = max(1, round(fraction * len(self))) if 0 < fraction < 1 else 0
        if not held_out or held_out >= len(self):
            raise UserError(f"Cannot hold out a fraction of {fraction} of {len(self)} images.")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(sorted(order[held_out:])), self.select(sorted(order[:held_out]))

    def same_images(self, other: "LabeledImages") -> bool:
        """Whether the other dataset has the same images in the same order: the same files, or the same bytes."""
        mine, theirs = (d.dataset.flatten_indices().data.column(d.image_column) for d in (self, other))
        return mine.equals(theirs)

    def select(self, indices: Sequence[int]) -> "LabeledImages":
        """The images at these indices."""
        chosen = copy.copy(self)
        chosen.dataset = self.dataset.select(indices)
        if not len(chosen.dataset):
            raise UserError("The dataset is empty: it has no images.")
        return chosen

    def _mask(self, value: Any, where: str, grid: Grid | None = None, image: str = "") -> tuple[np.ndarray, str]:
        """Decodes a mask to `[H, W]` uint8 class ids, on the grid of its image if both have one."""
        if is_cell(value):
            return rasterize(value), "its annotation"
        if not needs_raster(value):
            values, where = self._mask_values(value, where)
            if self.mask_format in ("index", "instances") and _is_jpeg(value) and np.ptp(values):
                raise UserError(
                    f"{where} is a JPEG file, whose compression changes class ids; save masks as PNG, or pass "
                    f"--mask_format binary, or rgb with --nearest_color."
                )
            return self.reader.ids(values, where), where
        with aligned(open_cell(value, where, self.axes, self.slice_axis), grid, image) as raster:
            if raster.planes > 1:
                raise UserError(f"{raster.name} has {raster.planes} planes, and images of one are read here; split it.")
            window = Window(0, 0, raster.height, raster.width)
            ids = self.reader.ids(self._read(raster, 0, window), raster.name)
            return without_label(raster, ids, 0, window, self.ignore_index), raster.name

    def mask_parts(self, index: int) -> Iterator[tuple[int, Window, np.ndarray]]:
        """Class ids of a mask of any size and number of planes, part by part.

        Args:
            index (`int`): Of the image.

        Yields:
            Plane, window, and the ids there, `[h, w]` uint8; windows begin at multiples of 2,048 pixels.

        Raises:
            UserError: The mask is not of `mask_format`, or of another size than its image.
        """
        row = self.dataset[index]
        with open_cell(row[self.image_column], f"row {index}", self.axes, self.slice_axis) as image:
            grid, name, shape = image.grid, image.name, (image.planes, image.height, image.width)
        value, where = row[self.mask_column], f"the mask of row {index}"
        if not needs_raster(value):
            whole = self[index].mask
            yield 0, Window(0, 0, *whole.shape), whole
            return
        with aligned(open_cell(value, where, self.axes, self.slice_axis), grid, name) as mask:
            if (mask.planes, mask.height, mask.width) != shape:
                raise UserError(
                    f"Image and mask differ in size: {name} has {shape[0]} planes of {shape[2]} × {shape[1]}, but "
                    f"{mask.name} has {mask.planes} of {mask.width} × {mask.height} (width × height); {RESIZE}"
                )
            for plane in range(mask.planes):
                for window in windows_over(mask.height, mask.width, 2048):
                    ids = self.as_ids(self._read(mask, plane, window), mask.name)
                    yield plane, window, without_label(mask, ids, plane, window, self.ignore_index)

    def _mask_values(self, value: Any, where: str) -> tuple[np.ndarray, str]:
        """A mask that is decoded whole, as it was saved, `[H, W]` or `[H, W, C]`, and its name for messages."""
        if isinstance(value, str) and value.endswith(".npy"):
            return _load_npy(value), value
        image, where = decode_cell(value, where)
        values = picture_values(image, self.reader.shows_colors, where)
        source = value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value
        if isinstance(source, (str, bytes)) and not is_address(source):
            values = unscaled(values, source, where, self.reader.shows_colors)
        return values, where

    def _read(self, raster: Raster, plane: int, window: Window) -> np.ndarray:
        """A part of a mask as it was saved, `[h, w]` or `[h, w, C]`."""
        values = raster.read(plane, window) if self.reader.shows_colors else raster.read_ids(plane, window)
        if len(values) in (2, 4) and raster.channels[-1] != "alpha":
            if len(values) == 2 or self.mask_format != "rgb":
                raise UserError(f"{raster.name} has {len(values)} channels, but masks have one, of class ids.")
            warn_once(f"{raster.name} has four channels, of which red, green and blue are read.")
            values = values[:3]
        return values[0] if len(values) == 1 else values.transpose(1, 2, 0)

    def _mask_parts(self) -> Iterator[tuple[np.ndarray, str]]:
        """The parts of all masks as they were saved, `[h, w]` or `[h, w, C]`, and the name of the mask."""
        for i, value in enumerate(self.dataset[self.mask_column]):
            if is_cell(value):
                yield rasterize(value), f"the annotation of row {i}"
                continue
            if not needs_raster(value):
                yield self._mask_values(value, f"the mask of row {i}")
                continue
            with open_cell(value, f"the mask of row {i}", self.axes, self.slice_axis) as raster:
                for plane in range(raster.planes):
                    for window in windows_over(raster.height, raster.width, 2048):
                        yield self._read(raster, plane, window), raster.name

    def _white(self) -> float:
        """The value of white in binary masks: one for all, since a mask may be black or white alone."""
        white = 1.0
        for part, _ in self._mask_parts():
            part = part[..., :-1] if part.ndim == 3 and part.shape[2] in (2, 4) else part  # without opacity
            white = max(white, white_of(part))
            if white > 255 or (white > 1 and part.dtype == np.uint8):
                break
        return white

    def _check_not_binary(self) -> None:
        """Raises for masks of 0 and 255 alone: what is meant is 255, which is read as no label."""
        found: set[int] = set()
        for part, where in self._mask_parts():
            found |= set(np.unique(self.reader.ids(part, where)).tolist())
            if not found <= {0, 255}:
                return
        if 255 in found and 0 in found and self.ignore_index == 255:
            raise UserError(
                f'The masks hold only 0 and 255, which looks like binary masks: pass mask_format="binary" '
                f"(`--mask_format binary`); if 255 is no label, none of the {self.num_classes} classes but the first "
                f"is labelled."
            )

    def _count_classes(self) -> int:
        pixels, looked_at = np.zeros(256, np.int64), []
        for part, where in self._mask_parts():
            ids = self.reader.ids(part, where)
            pixels += np.bincount(ids.ravel(), minlength=256)
            if len(looked_at) < _LOOKED_AT:
                looked_at.append(ids)
        found = set(np.flatnonzero(pixels).tolist())
        if found <= {0, 255} and 255 in found:
            raise UserError(
                'The masks hold only 0 and 255, which looks like binary masks: pass mask_format="binary" '
                "(`--mask_format binary`), or the names of the classes if 255 means ignored."
            )
        if looks_gray(pixels):
            raise UserError(
                f"The masks hold {len(found)} values, most pixels near 0 and 255: black and white with grey edges, as "
                f"drawn or saved as JPEG; pass --mask_format binary."
            )
        if looks_like_instances(looked_at, self.ignore_index):
            raise UserError(
                f"The masks hold {len(found)} values, each of one piece of a mask: numbers of objects, it seems, and "
                f"no classes; pass --mask_format instances, or --label_names if they are classes."
            )
        found.discard(self.ignore_index)
        count = max(found, default=0) + 1
        if count < 2 or len(found) < count / 2:
            values = sorted(found)
            raise UserError(
                f"The masks hold the values {', '.join(map(str, values[:12]))}{', …' * (len(values) > 12)}, which are "
                f"not class ids 0, 1, 2, …; name the classes (--label_names, or id2label.json in the dataset) or "
                f"convert the masks (--mask_format)."
            )
        if 0 not in found:
            warn_once(f"The masks hold the values {min(found)} to {max(found)}: no pixel is of class 0.")
        return count


def _is_jpeg(value: Any) -> bool:
    """Whether a cell of masks holds a JPEG file."""
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (value, None)
    if data:
        return data[:2] == b"\xff\xd8"
    return isinstance(path, str) and path.lower().endswith((".jpg", ".jpeg"))


def _load_npy(path: str) -> np.ndarray:
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array ({error}); repair or remove it.") from error
    if mask.dtype.kind not in "biuf" or not mask.size:
        raise UserError(f"{path} holds an array {mask.shape} of {mask.dtype}, and a mask of class ids is needed.")
    return mask
