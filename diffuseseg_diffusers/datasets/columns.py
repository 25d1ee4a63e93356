# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Datasets by name, their columns, and the images in a cell."""

import io
import logging
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
from datasets import Dataset, Image, IterableDataset, get_dataset_config_names, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from ..images.channels import InputChannels
from ..images.formats.base import Window
from ..images.formats.cells import needs_raster, open_cell, raster_picture
from ..images.grids import Grid
from ..images.image_processor import ORIENTATION, decode_image, open_image
from ..jobs.contents import BY_NAME, bytes_contents, contents_of, listed
from ..jobs.errors import UserError
from ..jobs.hub_errors import LOG_IN, explain_hub_error
from .annotations.shapes import is_cell
from .layouts import check_no_model


logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("image", "img", "pixel_values")
MASK_COLUMNS = ("mask", "label", "annotation", "labels", "segmentation_mask")


class MissingColumnError(UserError):
    """A dataset has no such column; names those that it has."""


def load_split(name: str, config_name: str | None, split: str | None, **kwargs) -> Dataset | IterableDataset:
    """`datasets.load_dataset` for one split of a Hub dataset or local folder, with errors that say what to do.

    Args:
        name (`str`): Hub dataset or local folder.
        config_name (`str`, *optional*), split (`str`): Which part of it.
        **kwargs: As in `datasets.load_dataset`.

    Raises:
        UserError: There is no such dataset, configuration or split, or a file of it is broken.
    """
    local = os.path.isdir(name)
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"There is no folder {name}.")
    if local and not any(Path(name).rglob("*.*")):
        raise UserError(f"The folder {name} has no images in it.")
    check_no_model(name)
    try:
        return load_dataset(name, config_name, split=split, **kwargs)
    except Exception as error:
        reason = None if local else explain_hub_error(error)
        if reason is None and not local and isinstance(error, DatasetNotFoundError):
            reason = f"{str(error).splitlines()[0].rstrip('.')}; to see private and gated ones, {LOG_IN}"
        if isinstance(error, DatasetGenerationError):  # of a broken file; the cause says in what way
            reason = reason or error.__cause__
        if reason is None and "Config name is missing" in str(error):
            where = {key: value for key, value in kwargs.items() if key in ("cache_dir", "token", "revision")}
            known = ", ".join(sorted(get_dataset_config_names(name, **where)))
            reason = (
                f"it has several configurations ({known}), and one has to be named: `--dataset_config_name`, or "
                f"that of the dataset in question, such as `--unlabeled_dataset_config_name`; `config_name` in Python"
            )
        if reason is None and not isinstance(error, (ValueError, OSError, tarfile.TarError)):
            raise
        where = "" if local else f"There is no folder {name}, and "
        raise UserError(
            f"{where}{'T' if local else 't'}he dataset {name} cannot be loaded: {str(reason or error).rstrip('.')}."
        ) from error


def split_names(name: str, config_name: str | None, **kwargs) -> list[str]:
    """Names of the splits of a Hub dataset or local folder.

    Args:
        name (`str`), config_name (`str`, *optional*), **kwargs: As in [`load_split`].

    Raises:
        UserError: There is no such dataset or configuration, or it cannot be read.
    """
    check_no_model(name)
    try:
        return get_dataset_split_names(name, config_name, **kwargs)
    except Exception:
        return list(load_split(name, config_name, None, **kwargs))  # which says what is wrong


def describe_dataset(name: str, config_name: str | None, split: str | None) -> dict:
    """Name of a dataset for reports: the Hub name, or the last part of a local path."""
    local = os.path.isdir(name)
    name = os.path.basename(os.path.abspath(name)) if local else name
    return {"name": name, "on_hub": not local, "config": config_name, "split": split}


def find_column(columns: Sequence[str], wanted: str | None, aliases: Sequence[str], kind: str) -> str:
    """The requested column, or the first of the usual names that exists.

    Raises:
        MissingColumnError: There is no such column; names those there are.
    """
    candidates = [wanted] if wanted else aliases
    found = next((c for c in candidates if c in columns), None)
    if found is None:
        raise MissingColumnError(
            f"The dataset has no column {' or '.join(repr(c) for c in candidates)}; it has "
            f"{', '.join(map(repr, columns))}. Name the column of {kind}s with `--{kind}_column`."
        )
    return found


def cell_name(cell: object, where: str) -> str:
    """The path of an image, or `where` if it has none."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return path if isinstance(path, str) else where


def decode_cell(value: object, where: str) -> tuple[PIL.Image.Image, str]:
    """Opens a cell of an image column; returns the image with where it came from.

    Args:
        value (`PIL.Image.Image`, `str` or mapping): An image, its path, or `path` and `bytes` as `datasets` keeps them.
        where (`str`): What to call it in messages, if it has no path.

    Raises:
        UserError: It cannot be read; names its path, or `where`.
    """
    if isinstance(value, PIL.Image.Image):
        return decode_image(value, f"The image in {where}"), where
    if needs_raster(value):
        with open_cell(value, where) as raster:
            image = raster_picture(raster)
            if image is None:
                kind = f"{raster.planes} planes of {len(raster.channels)} channels of {raster.dtype}"
                raise UserError(f"{raster.name} has {kind}, and one plane of 8 bits, grey or RGB, is needed here.")
            return image, raster.name
    if isinstance(value, str):
        return open_image(value), value
    path, data = (value.get("path"), value.get("bytes")) if isinstance(value, Mapping) else (None, None)
    if data is None and path is None:
        raise UserError(f"There is no image in {where}, but {value!r:.40}.")
    if data is None:
        return open_image(path), path
    where = f"{path} ({where})" if path else where
    return decode_image(io.BytesIO(data), f"The image in {where}"), where


class ReadImage(NamedTuple):
    """An image as a model reads it; `gaps` `[H, W]` are pixels without a measurement, `channels` the names of those of
    an array."""

    image: PIL.Image.Image | np.ndarray
    name: str
    grid: Grid | None = None
    orientation: int = 1
    gaps: np.ndarray | None = None
    channels: tuple[str, ...] = ()


def read_image(
    cell: object, where: str, channels: InputChannels, axes: str | None = None, slice_axis: str = "z"
) -> ReadImage:
    """An image of one plane: as Pillow opens it, or, of other formats and channels, an array `[H, W, C]`.

    Args:
        cell (`PIL.Image.Image`, `str` or mapping), where (`str`): See [`decode_cell`].
        channels ([`InputChannels`]): Which channels are read.
        axes, slice_axis: See [`open_raster`].

    Raises:
        UserError: It cannot be read, has several planes, or lacks a channel.
    """
    if channels.names is None and not needs_raster(cell):
        image, name = decode_cell(cell, where)
        return ReadImage(image, name, orientation=image.info.get(ORIENTATION, 1))
    with open_cell(cell, where, axes, slice_axis) as raster:
        if raster.planes > 1:
            raise UserError(f"{raster.name} has {raster.planes} planes, and images of one are read here; split it.")
        window = Window(0, 0, raster.height, raster.width)
        chosen = channels.indices(raster.channels, raster.name)
        values = raster.read(0, window)[chosen]  # [C,H,W]
        gaps = raster.gaps(values, 0, window)
        values = channels.without_nan(values).transpose(1, 2, 0)  # [H,W,C]
        if values.dtype == np.uint8 and values.shape[2] in (1, 3):  # a picture like any other
            values = PIL.Image.fromarray(values[..., 0] if values.shape[2] == 1 else values.copy())
        names = tuple(raster.channels[i] for i in chosen)
        return ReadImage(values, raster.name, raster.grid, raster.orientation, gaps, names)


def dataset_contents(dataset: Dataset | IterableDataset, *columns: str | None) -> dict[str, str]:
    """Sizes and SHA-256 of the encoded images and other cells of each row, in their order; nothing is decoded.

    Every byte is read once, about a gigabyte a second from a fast disk, in constant memory. Of more than `LISTED` rows
    one hash over all is kept. Of streamed datasets the source is known by name alone, and a warning says so.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Labelled or unlabelled images.
        columns (`str`): Columns that are read, or `None`; cells are images, paths of files or folders, or lists.

    Returns:
        `dict[str, str]`: For the record of a run, see [`open_run`].

    Examples:
        >>> reads = {"dataset_name": dataset_contents(labels.dataset, labels.image_column, labels.mask_column)}
    """
    names = [column for column in columns if column is not None]
    if isinstance(dataset, IterableDataset):
        logger.warning("Images that are streamed are %s: changes there do not keep a run from being resumed.", BY_NAME)
        return {"streamed": BY_NAME}
    dataset = dataset.with_format(None).select_columns(names)
    for name in names:
        if isinstance(dataset.features[name], Image):
            dataset = dataset.cast_column(name, Image(decode=False))
    found = {}
    for i, row in enumerate(dataset):
        cells = [_cell_contents(row[name]) for name in names]
        shown = next((path for path, _ in cells if path), "")
        found[f"row {i} {shown}".rstrip()] = " + ".join(f"{path} {content}".lstrip() for path, content in cells)
    return listed(found)


def _cell_contents(cell: object) -> tuple[str, str]:
    """Base name of a cell's file, empty without one, and the size and hash of what is in it."""
    path, data = (cell.get("path"), cell.get("bytes")) if isinstance(cell, Mapping) else (cell, None)
    if is_cell(path):
        return "", bytes_contents(str(path).encode())
    name = os.path.basename(path.rstrip("/")) if isinstance(path, str) else ""
    if isinstance(cell, Mapping) and cell.get("plane") is not None:
        name += f", plane {cell['plane'] + 1}"
    if data is None and isinstance(path, str) and os.path.exists(path):
        content = contents_of([path])[path]
        return name, content if isinstance(content, str) else bytes_contents(repr(content).encode(errors="replace"))
    return name, bytes_contents(data if isinstance(data, bytes) else repr(cell).encode(errors="replace"))
