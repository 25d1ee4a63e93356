# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Unlabelled images from the Hub or from disk, decoded to tensors of one size."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import psutil
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset, Features, Image, IterableDataset
from tqdm.auto import tqdm

from ..images.channels import InputChannels
from ..images.formats.base import Raster, Window
from ..images.formats.cells import needs_raster, open_cell, raster_picture
from ..images.image_processor import to_eight_bit
from ..jobs.errors import UserError
from .columns import IMAGE_COLUMNS, decode_cell, find_column, load_split
from .layout import ALL, PICTURES, report
from .layouts import find_layout, is_described


RESIZE_MODES = ("crop", "pad")
SHARDS = 64  # of a folder that is streamed, at most
PEEK = 16  # images that are looked at to tell grey-scale from colour
_GATHER_ROWS = 4096
EVERY = InputChannels()  # all channels over their full range
SKIP_HINT = "`--skip_unreadable` trains without such images."


def to_pixels(image: PIL.Image.Image, size: tuple[int, int], channels: int, resize_mode: str = "crop") -> torch.Tensor:
    """An image of any size and mode as `[channels, height, width]` uint8, grey-scale or RGB.

    `"crop"` scales until the image covers the size and cuts the middle out; `"pad"` scales until it fits inside and
    fills the rest with black.
    """
    image = to_eight_bit(image).convert("L" if channels == 1 else "RGB")
    if image.size != size[::-1]:
        fit = PIL.ImageOps.fit if resize_mode == "crop" else PIL.ImageOps.pad
        image = fit(image, size[::-1], method=PIL.Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image))  # [H,W] or [H,W,3]
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def tile_pixels(tile: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """A tile `[C, h, w]` float32 in 0 to 1, from [`InputChannels.encode`], as `[C, *size]` uint8."""
    pixels = torch.from_numpy(tile)
    if tuple(pixels.shape[1:]) != tuple(size):
        pixels = F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)
    return (pixels * 255).round().to(torch.uint8)


def evenly_spread(length: int, number: int) -> list[int]:
    """Positions of so many rows, at most all of `length`, evenly spread over them."""
    number = min(length, number)
    return [i * length // number for i in range(number)]


def spread_images(config: Any) -> tuple[Iterator[PIL.Image.Image], int]:
    """Unlabelled images of a configuration, evenly spread over their dataset, and their number.

    Raises:
        UserError: There is no such dataset, or one of the images cannot be read; found before the first is given.
    """
    where = (config.unlabeled_dataset_name, config.unlabeled_dataset_config_name, config.unlabeled_split)
    dataset, column = load_unlabeled(*where, cache_dir=config.cache_dir)
    rows = evenly_spread(len(dataset), config.max_unlabeled)
    for i in rows:
        image, where = decode_cell(dataset[i][column], f"row {i}")
        try:
            image.load()
        except OSError as error:
            raise UserError(f"The image in {where} cannot be read ({error}); repair or remove it.") from error
    return (decode_cell(dataset[i][column], f"row {i}")[0] for i in rows), len(rows)


def load_unlabeled(
    name: str | None = None,
    config_name: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    image_column: str | None = None,
    streaming: bool = False,
    **kwargs,
) -> tuple[Dataset | IterableDataset, str]:
    """Unlabelled images by Hub name, from anything `datasets` loads, or from a folder of images.

    Masks in folders beside one that is called `images` are left out, and a line says so.

    Args:
        name (`str`, *optional*): Hub dataset or local folder, for `datasets.load_dataset`.
        config_name (`str`, *optional*), split (`str`, defaults to `"train"`): Which part of it.
        data_dir (`str`, *optional*): In place of `name`, a folder with images anywhere below it.
        image_column (`str`, *optional*): Column of images; the usual names are found.
        streaming (`bool`, defaults to `False`): Read while training, without a copy on disk.
        **kwargs: `cache_dir`, `token`, `revision`, as in `datasets.load_dataset`.

    Returns:
        The dataset, whose images are not decoded yet, and the name of its column of images.

    Raises:
        UserError: There is no such dataset, it has no images, or no such column (its columns are named).
    """
    if data_dir is not None and not Path(data_dir).is_dir():
        raise UserError(f"There is no folder {data_dir}.")
    folder, part = (data_dir, None) if data_dir is not None else (name, split)
    plain = config_name is None and image_column is None and split.isidentifier()
    layout = None
    if data_dir is not None or plain and name and Path(name).is_dir() and not is_described(Path(name)):
        layout = find_layout(Path(folder))
    known = layout is not None and (layout.kind != PICTURES or split == "train" or ALL not in layout.names)
    if layout is not None and (data_dir is not None or known and layout.names):
        paths = layout.pictures(part)
        report(layout)
        if not paths:
            raise UserError(f"The folder {folder} has no images in it.")
        features = Features({"image": Image(decode=False)})
        found = Dataset.from_dict({"image": [str(p) for p in paths]}, features=features)
        return (found.to_iterable_dataset(min(len(found), SHARDS)) if streaming else found), "image"
    dataset = load_split(name, config_name, split, streaming=streaming, **kwargs)
    if streaming:
        features = dataset.features or next(iter(dataset.take(1)), None)
        if not features:
            raise UserError(f"The dataset {name} is empty: it has no images.")
    else:
        dataset = dataset.with_format(None)  # decoding and conversion are ours
        features = dataset.features
        if len(dataset) == 0:
            raise UserError(f"The dataset {name} is empty: it has no images.")
    column = find_column(list(features), image_column, IMAGE_COLUMNS, "image")
    if isinstance(features[column], Image):
        dataset = dataset.cast_column(column, Image(decode=False))  # so that errors can say where
    return dataset.select_columns([column]), column


def count_channels(dataset: Dataset | IterableDataset, column: str) -> int:
    """Channels of the first images: 1 if all are grey-scale, of slides and maps as many as they have, else 3.

    Images that cannot be read do not count, and alpha channels neither.
    """
    found = set()
    for i, row in enumerate(islice(dataset, PEEK)):
        try:
            if needs_raster(row[column]):
                with open_cell(row[column], f"row {i}") as raster:
                    found.add(len(EVERY.indices(raster.channels, raster.name)))
            else:
                found.add(len(to_eight_bit(decode_cell(row[column], f"row {i}")[0]).getbands()))
        except UserError:
            continue
    return max(found, default=3)


class UnlabeledImages(torch.utils.data.Dataset):
    """Images of a `datasets.Dataset`, decoded one at a time to uint8 tensors of one size.

    Args:
        dataset (`datasets.Dataset`), column (`str`): From [`load_unlabeled`].
        size (`tuple[int, int]`), channels (`int`), resize_mode (`str`): See [`to_pixels`].
        skip_unreadable (`bool`, defaults to `False`): Whether an image that cannot be read is replaced by the next.
        input_channels ([`InputChannels`], *optional*): Which channels of the images are read.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        size: tuple[int, int],
        channels: int,
        resize_mode: str = "crop",
        skip_unreadable: bool = False,
        input_channels: InputChannels = EVERY,
    ):
        self.dataset, self.column, self.size, self.channels = dataset, column, size, channels
        self.resize_mode, self.skip_unreadable, self.input_channels = resize_mode, skip_unreadable, input_channels

    def __len__(self) -> int:
        return len(self.dataset)

    def decode(self, index: int) -> torch.Tensor:
        """Image `index`, `[C, H, W]` uint8.

        Raises:
            UserError: It cannot be read; names its path or row.
        """
        how = (self.size, self.channels, self.resize_mode, self.input_channels)
        return decode_pixels(self.dataset[index][self.column], f"row {index}", *how)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Image `index`, or the next that can be read, and how many could not."""
        for skipped in range(len(self)):
            try:
                return self.decode((index + skipped) % len(self)), skipped
            except UserError as error:
                if not self.skip_unreadable:
                    raise UserError(f"{error} {SKIP_HINT}") from error
        raise UserError("None of the images can be read.")

    def select(self, indices: Sequence[int]) -> "UnlabeledImages":
        """The images at these indices."""
        options = (self.size, self.channels, self.resize_mode, self.skip_unreadable, self.input_channels)
        return UnlabeledImages(self.dataset.select(indices), self.column, *options)

    def fits_in_memory(self, limit_gb: float | None = None) -> bool:
        """Whether all images, decoded, fit into `limit_gb` GiB (default: half of the free memory) on each process."""
        free = psutil.virtual_memory().available / 2 if limit_gb is None else limit_gb * 2**30
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # on this machine
        return len(self) * self.channels * self.size[0] * self.size[1] * processes <= free

    def load(self) -> tuple[torch.Tensor, int]:
        """Decodes all images, shared by the processes: `[N, C, H, W]` uint8, and how many could not be read.

        Raises:
            UserError: An image cannot be read, and `skip_unreadable` is off; or none can.
        """
        state = PartialState()
        mine = range(state.process_index, len(self), state.num_processes)
        rows = -(-len(self) // state.num_processes)
        pixels = torch.zeros(rows, self.channels, *self.size, dtype=torch.uint8)
        readable = torch.zeros(rows, dtype=torch.bool)

        def load(row: int) -> None:
            try:
                pixels[row] = self.decode(mine[row])
                readable[row] = True
            except UserError as error:
                if not self.skip_unreadable:
                    raise UserError(f"{error} {SKIP_HINT}") from error

        # Pillow decodes and scales outside of Python's lock, so threads do.
        with ThreadPoolExecutor() as pool:
            done = pool.map(load, range(len(mine)))
            for _ in tqdm(done, "Decoding", len(mine), unit="image", disable=not state.is_main_process, leave=False):
                pass
        if state.num_processes > 1:
            pixels, readable = _gather_rows(pixels, state), _gather_rows(readable, state)
        pixels, readable = pixels[: len(self)], readable[: len(self)]
        unreadable = int((~readable).sum())
        if unreadable == len(self):
            raise UserError("None of the images can be read.")
        return (pixels[readable] if unreadable else pixels), unreadable


def decode_pixels(
    value: object, where: str, size: tuple[int, int], channels: int, resize_mode: str, chosen: InputChannels = EVERY
) -> torch.Tensor:
    """A cell of an image column (`where` in messages) as [`to_pixels`] gives it; of any format and channels.

    Raises:
        UserError: It cannot be read.
    """
    special = chosen.config is not None or channels not in (1, 3)
    if special or needs_raster(value):
        with open_cell(value, where) as raster:
            picture = None if special or raster.dtype != np.uint8 else raster_picture(raster)
            if picture is None:
                return _raster_pixels(raster, size, channels, chosen, resize_mode)
            image, where = picture, raster.name
    else:
        image, where = decode_cell(value, where)
    try:
        return to_pixels(image, size, channels, resize_mode)
    except UserError as error:
        raise UserError(f"The image in {where} cannot be read ({error}); repair or remove it.") from error


def _raster_pixels(
    raster: Raster, size: tuple[int, int], channels: int, chosen: InputChannels, resize_mode: str
) -> torch.Tensor:
    """A picture of one plane and any channels, `[channels, height, width]` uint8, resized as [`to_pixels`] does."""
    if raster.planes > 1:
        raise UserError(f"{raster.name} has {raster.planes} planes; --crop random takes crops of all of them.")
    values = raster.read(0, Window(0, 0, raster.height, raster.width))
    values = values[chosen.indices(raster.channels, raster.name)]
    pixels = torch.from_numpy(chosen.encode(values, channels, raster.name))[None]  # [1,C,H,W]
    ratios = [target / own for target, own in zip(size, raster.size)]
    ratio = max(ratios) if resize_mode == "crop" else min(ratios)
    scaled = [max(1, round(ratio * own)) for own in raster.size]
    if list(raster.size) != scaled:
        pixels = F.interpolate(pixels, scaled, mode="bicubic", antialias=True).clamp(0, 1)
    for axis, (own, target) in enumerate(zip(scaled, size), 2):
        if own > target:
            pixels = pixels.narrow(axis, (own - target) // 2, target)
        elif own < target:
            before = (target - own) // 2
            pad = [before, target - own - before] if axis == 3 else [0, 0, before, target - own - before]
            pixels = F.pad(pixels, pad)
    return (pixels[0] * 255).round().to(torch.uint8)


def _gather_rows(mine: torch.Tensor, state: PartialState) -> torch.Tensor:
    """Row `i` of process `p` becomes row `i * P + p`; in chunks, because NCCL needs them on the GPU."""
    chunks = []
    for chunk in mine.split(_GATHER_ROWS):
        gathered = gather(chunk.to(state.device)).cpu()  # [P*rows,...], process after process
        chunks.append(gathered.unflatten(0, (state.num_processes, -1)).transpose(0, 1).flatten(0, 1))
    return torch.cat(chunks)
