# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labelled images from the Hub or from disk, checked as they are read."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset, Image

from ..images.channels import InputChannels, to_rgb
from ..images.formats.aligned import aligned, without_label
from ..images.formats.base import Window, windows_over
from ..images.formats.cells import needs_raster, open_cell
from ..images.grids import Grid
from ..images.image_processor import unnamed_classes
from ..jobs.errors import UserError
from .columns import IMAGE_COLUMNS, MASK_COLUMNS, decode_cell, find_column, load_split
from .folders import read_folder, read_label_file, read_label_names


MASK_FORMATS = ("index", "binary", "rgb")


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
        palette (sequence of `[red, green, blue]`, *optional*): Their colours; needed for masks in colour.
        ignore_index (`int`, defaults to 255): Id of pixels without a label.
        mask_format (`str`, defaults to `"index"`):
            `"index"`: pixel values are class ids. `"binary"`: anything but 0 is class 1. `"rgb"`: colours of the
            palette, others are ignored.
        image_column, mask_column (`str`, *optional*): Columns to use; the usual names are found.
        channels ([`InputChannels`], *optional*): Which channels of the images are read, and between which values.
        axes (`str`, *optional*), slice_axis (`str`): See [`open_raster`].

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
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = 255,
        mask_format: str = "index",
        image_column: str | None = None,
        mask_column: str | None = None,
        channels: InputChannels | None = None,
        axes: str | None = None,
        slice_axis: str = "z",
    ):
        self.channels, self.axes, self.slice_axis = channels or InputChannels(), axes, slice_axis
        if mask_format not in MASK_FORMATS:
            raise UserError(f"`mask_format` is one of {', '.join(MASK_FORMATS)}, got {mask_format!r}.")
        if mask_format == "rgb" and palette is None:
            raise UserError("Masks in colour need the palette of the classes (`--palette`).")
        if palette is not None and not all(map(is_color, palette)):
            raise UserError("A palette is a colour [red, green, blue] for each class, integers 0 to 255.")
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
        for column in (self.image_column, self.mask_column):
            if isinstance(dataset.features[column], Image):
                dataset = dataset.cast_column(column, Image(decode=False))  # so that errors can say where
        self.dataset = dataset
        self.label_names = list(label_names) if label_names else None
        self.palette = [list(c) for c in palette] if palette is not None else None
        self.ignore_index = ignore_index
        self.mask_format = mask_format
        if num_classes is None and label_names:
            num_classes = len(label_names)
        if num_classes is None and mask_format == "rgb":
            num_classes = len(palette)
        if num_classes is None and mask_format == "binary":
            num_classes = 2
        self.num_classes = num_classes or self._count_classes()

    tiling: dict | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> LabeledImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self.dataset[index]
        image, name, grid = self._image(row[self.image_column], f"row {index}")
        mask, mask_name = self._mask(row[self.mask_column], f"the mask of row {index}", grid, name)
        height, width = (image.height, image.width) if isinstance(image, PIL.Image.Image) else image.shape[:2]
        if mask.shape != (height, width):
            raise UserError(
                f"Image and mask differ in size: {name} is {width} × {height}, but {mask_name} is "
                f"{mask.shape[1]} × {mask.shape[0]} (width × height)."
            )
        return LabeledImage(image=image, mask=self._known(mask, mask_name), name=name)

    def _known(self, mask: np.ndarray, mask_name: str) -> np.ndarray:
        """Class ids, if all are of classes."""
        wrong = np.setdiff1d(mask, [*range(self.num_classes), self.ignore_index])
        if len(wrong):
            hint = ""
            if set(np.unique(mask)) <= {0, 255}:
                hint = ' It looks like a binary mask: pass mask_format="binary" (`--mask_format binary`).'
            raise UserError(
                f"The mask value {', '.join(map(str, wrong[:10]))} in {mask_name} is outside of the classes 0 to "
                f"{self.num_classes - 1} (and {self.ignore_index} for ignored pixels).{hint}"
            )
        return mask

    def as_ids(self, mask: np.ndarray, where: str) -> np.ndarray:
        """Class ids of a mask, or a part of one, as it was read: `[H, W]` uint8 from `[H, W]` or `[H, W, C]`.

        Raises:
            UserError: It is not of `mask_format`, or has ids outside the classes.
        """
        return self._known(self._converted(mask, where), where)

    def _image(self, cell: Any, where: str) -> tuple[PIL.Image.Image | np.ndarray, str, Grid | None]:
        """An image, its name and grid: as Pillow opens it, or, of other formats and channels, an array `[H, W, C]`."""
        if self.channels.names is None and not needs_raster(cell):
            return *decode_cell(cell, where), None
        with open_cell(cell, where, self.axes, self.slice_axis) as raster:
            if raster.planes > 1:
                raise UserError(f"{raster.name} has {raster.planes} planes; pass --tile, which reads all of them.")
            values = raster.read(0, Window(0, 0, raster.height, raster.width))
            values = values[self.channels.indices(raster.channels, raster.name)].transpose(1, 2, 0)  # [H,W,C]
            if values.dtype == np.uint8 and values.shape[2] in (1, 3):  # a picture like any other
                values = PIL.Image.fromarray(values[..., 0] if values.shape[2] == 1 else values.copy())
            return values, raster.name, raster.grid

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
        return LabeledImages(
            self.dataset.select(indices),
            self.num_classes,
            self.label_names,
            self.palette,
            self.ignore_index,
            self.mask_format,
            self.image_column,
            self.mask_column,
            self.channels,
            self.axes,
            self.slice_axis,
        )

    def _mask(self, value: Any, where: str, grid: Grid | None = None, image: str = "") -> tuple[np.ndarray, str]:
        """Decodes a mask to `[H, W]` uint8 class ids, on the grid of its image if both have one."""
        if isinstance(value, str) and value.endswith(".npy"):
            mask, where = _load_npy(value), value
        elif isinstance(value, (list, np.ndarray)):
            mask = np.asarray(value)
        elif needs_raster(value):
            with aligned(open_cell(value, where, self.axes, self.slice_axis), grid, image) as raster:
                if raster.planes > 1:
                    raise UserError(f"{raster.name} has {raster.planes} planes; pass --tile, which reads all of them.")
                window = Window(0, 0, raster.height, raster.width)
                mask, where = raster.read(0, window), raster.name
                mask = self._converted(mask[0] if len(mask) == 1 else mask.transpose(1, 2, 0), where)
                return without_label(raster, mask, 0, window, self.ignore_index), where
        else:
            image, where = decode_cell(value, where)
            # Modes "P" and "L" hold numbers; anything else in colour is for the palette to read.
            mask = np.asarray(image.convert("RGB") if self.mask_format == "rgb" else image)
        return self._converted(mask, where), where

    def _converted(self, mask: np.ndarray, where: str) -> np.ndarray:
        """A mask, as `mask_format` says, as `[H, W]` uint8."""
        if self.mask_format == "rgb":
            return self._from_colors(mask, where)
        if mask.ndim == 3 and (mask[..., :1] == mask).all() and mask.shape[-1] in (1, 3):
            mask = mask[..., 0]  # numbers saved as a grey RGB image
        if mask.ndim != 2:
            raise UserError(
                f"{where} has {mask.shape[-1]} channels, but masks have one, of class ids; for masks in colour pass "
                f'mask_format="rgb" with a palette (`--mask_format rgb --palette FILE`).'
            )
        if self.mask_format == "binary":
            return (mask != 0).astype(np.uint8)
        if mask.dtype != bool and (mask.min() < 0 or mask.max() > 255 or (mask != mask.astype(np.uint8)).any()):
            raise UserError(f"{where} holds values from {mask.min()} to {mask.max()}; class ids are integers 0 to 255.")
        return mask.astype(np.uint8)

    def _mask_parts(self, value: Any, where: str) -> Iterator[np.ndarray]:
        """A mask as class ids, of formats that are read by windows part by part."""
        if not needs_raster(value):
            yield self._mask(value, where)[0]
            return
        with open_cell(value, where, self.axes, self.slice_axis) as raster:
            for plane in range(raster.planes):
                for window in windows_over(raster.height, raster.width, 2048):
                    mask = raster.read(plane, window)
                    yield self._converted(mask[0] if len(mask) == 1 else mask.transpose(1, 2, 0), raster.name)

    def _from_colors(self, mask: np.ndarray, where: str) -> np.ndarray:
        keys = mask.astype(np.int64) @ [65536, 256, 1]  # [H,W]
        ids = np.full(keys.shape, self.ignore_index, np.uint8)
        for i, color in enumerate(self.palette):
            ids[keys == np.dot(color, [65536, 256, 1])] = i
        if (ids == self.ignore_index).all():
            found = [f"#{k:06x}" for k in np.unique(keys)[:10]]
            raise UserError(f"No colour of {where} is in the palette; it has {', '.join(found)}.")
        return ids

    def _count_classes(self) -> int:
        found = set()
        for i, value in enumerate(self.dataset[self.mask_column]):
            for part in self._mask_parts(value, f"the mask of row {i}"):
                found |= set(np.unique(part).tolist())
        if found <= {0, 255} and 255 in found:
            raise UserError(
                'The masks hold only 0 and 255, which looks like binary masks: pass mask_format="binary" '
                "(`--mask_format binary`), or the names of the classes if 255 means ignored."
            )
        found.discard(self.ignore_index)
        count = max(found, default=0) + 1
        if count < 2 or len(found) < count / 2:
            raise UserError(
                f"The masks hold the values {', '.join(map(str, sorted(found)))}, which are not class ids 0, 1, 2, …; "
                f"give the names of the classes (id2label.json) or convert the masks (`--mask_format`)."
            )
        return count


def load_labeled_images(
    name: str | os.PathLike,
    config_name: str | None = None,
    split: str = "train",
    label_names: Sequence[str] | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    classes: Sequence[str] | None = None,
    **kwargs,
) -> LabeledImages:
    """Loads labelled images by Hub name or from a local folder.

    A folder may be anything `datasets` reads (Parquet, an image folder with a `metadata.csv` of `file_name` and
    `mask_file_name`), the published layout of the paper's datasets (images beside `.npy` masks of the same name), or
    two folders `images` and `masks`; the last two with or without a folder for each split above them.

    Args:
        name (`str` or path): Hub dataset or local folder.
        config_name (`str`, *optional*): Configuration of the dataset.
        split (`str`, defaults to `"train"`): Which part of it.
        label_names (sequence of `str`, *optional*): Names of the classes; from the dataset's `id2label.json` if there
            is one.
        cache_dir, token, revision: As in `datasets.load_dataset`.
        classes (sequence of `str`, *optional*): Those of a model that the images are for, in place of `label_names`;
            a dataset with other names is refused.
        **kwargs: As in [`LabeledImages`].

    Returns:
        [`LabeledImages`]

    Raises:
        UserError: There is no such dataset or split, it has no images, its masks are not as expected, or it has other
            classes than `classes`.

    Examples:
        >>> from diffuseseg_diffusers import load_labeled_images
        >>> dataset = load_labeled_images("my/labelled/images")
        >>> dataset[0].image.size, dataset[0].mask.shape, dataset.num_classes
    """
    name = os.fspath(name)
    local = os.path.isdir(name)
    if label_names is None:
        label_names = read_label_names(name, local, cache_dir, token, revision)
    if classes is not None:
        unnamed = list(classes) == unnamed_classes(len(classes))
        if label_names and (len(label_names) != len(classes) if unnamed else list(label_names) != list(classes)):
            raise UserError(
                f"{name} has the classes {', '.join(label_names)}, but the model has {', '.join(classes)}; they have "
                f"to be the same, in the same order."
            )
        label_names = list(classes)
    dataset = read_folder(Path(name), split) if local else None
    if dataset is None:
        dataset = load_split(name, config_name, split, cache_dir=cache_dir, token=token, revision=revision)
    return LabeledImages(dataset, label_names=label_names, **kwargs)


def is_color(given: Any) -> bool:
    """Whether this is `[red, green, blue]`, integers 0 to 255."""
    is_triple = isinstance(given, (list, tuple, np.ndarray)) and len(given) == 3
    return is_triple and all(isinstance(x, (int, np.integer)) and 0 <= x <= 255 for x in given)


def _load_npy(path: str) -> np.ndarray:
    try:
        mask = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a NumPy array ({error}); repair or remove it.") from error
    if mask.dtype.kind not in "biuf" or not mask.size:
        raise UserError(f"{path} holds an array {mask.shape} of {mask.dtype}, and a mask of class ids is needed.")
    return mask


def load_data(config: Any, split: str | None = None, ignore_index: int = 255, **kwargs: Any) -> LabeledImages:
    """The labelled images that a configuration with the fields of `tasks.options.ReadsLabels` names.

    Args:
        config (`Config`): The configuration.
        split (`str`, *optional*): Part of the dataset, in place of its `split`.
        ignore_index (`int`, defaults to 255): Id of pixels without a label, if the configuration names none.
        **kwargs: As in [`load_labeled_images`].
    """
    return load_labeled_images(
        config.dataset_name,
        config.dataset_config_name,
        split or config.split,
        cache_dir=config.cache_dir,
        revision=config.dataset_revision,
        palette=read_label_file(config.palette) if config.palette else None,
        ignore_index=ignore_index if config.ignore_index is None else config.ignore_index,
        mask_format=config.mask_format,
        image_column=config.image_column,
        mask_column=config.mask_column,
        **kwargs,
    )


def load_labels(config: Any) -> tuple[LabeledImages, LabeledImages | None]:
    """Labelled images to fit on, and those to measure on, if any.

    Args:
        config (`Config`): With the fields of `tasks.fit.FitConfig`.

    Raises:
        UserError: There are no such images, or both are the same.
    """
    how: dict[str, Any] = {"axes": config.axes, "slice_axis": config.slice_axis}
    dataset = load_data(config, **how)
    if config.validation_fraction is not None:
        return dataset.split(config.validation_fraction, config.seed)
    if not config.validation_split:
        return dataset, None
    validation = load_data(config, config.validation_split, num_classes=dataset.num_classes, **how)
    if validation.same_images(dataset):
        raise UserError(
            f"--split {config.split} and --validation_split {config.validation_split} of {config.dataset_name} are the "
            f"same images; hold some of them out with --validation_fraction."
        )
    return dataset, validation
