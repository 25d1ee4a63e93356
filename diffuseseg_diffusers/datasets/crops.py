# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Native-resolution windows of large images: random crops for training, labelled tiles for fitting."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from ..images.channels import InputChannels, percentile_windows
from ..images.formats.aligned import aligned, without_label
from ..images.formats.base import Raster, Window, native_tile, scale_of
from ..images.formats.cells import needs_raster, open_cell
from ..images.formats.orientation import upright_mask
from ..images.masks import Tally
from ..jobs.errors import UserError
from .labeled import RESIZE, LabeledImage, LabeledImages
from .unlabeled import tile_pixels


OPEN = 16  # pictures that are held open
SAMPLE = 256  # side of the windows that intensities are looked at in
SAMPLED = 64  # windows at most
SCANNED = 2048  # side of the windows that masks are searched for labels in


class Pictures:
    """Images in a dataset column, opened lazily; the last few stay open.

    Args:
        dataset (`datasets.Dataset`), column (`str`): Images, not decoded.
        axes, slice_axis: See [`open_raster`].
        masks_of ([`Pictures`], *optional*): The images that these are masks of, on whose grids they are read.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        axes: str | None = None,
        slice_axis: str = "z",
        masks_of: "Pictures | None" = None,
    ):
        self.dataset, self.column, self.axes, self.slice_axis = dataset, column, axes, slice_axis
        self.masks_of = masks_of
        self._open: OrderedDict[int, Raster] = OrderedDict()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Raster:
        if index not in self._open:
            cell = self.dataset[index][self.column]
            raster = open_cell(cell, f"row {index}", self.axes, self.slice_axis)
            if self.masks_of is not None:
                raster = aligned(raster, self.masks_of[index].grid, self.masks_of[index].name)
            self._open[index] = raster
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(index)
        return self._open[index]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": OrderedDict()}  # files stay open in the process that opened them


def measure_windows(
    pictures: Pictures, names: Sequence[str | int] | None, percentiles: tuple[float, float], seed: int = 0
) -> InputChannels:
    """Measures intensity windows: percentiles (0 to 100) over at most 64 random windows of 256 × 256 pixels.

    Raises:
        UserError: A channel is constant or missing, or the percentiles are out of order.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UserError(f"--intensity_percentiles are two of 0 to 100, the low one first, got {percentiles}.")
    rng = np.random.default_rng(seed)
    channels, samples = InputChannels(tuple(names) if names else None), []
    order = rng.permutation(len(pictures))
    for i in np.resize(order, min(SAMPLED, 4 * len(order))):
        raster = pictures[int(i)]
        window = _random_window(raster, (SAMPLE, SAMPLE), rng)
        plane = int(rng.integers(raster.planes))
        values = raster.read(plane, window)[channels.indices(raster.channels, raster.name)]
        flat = values.reshape(len(values), -1)
        gaps = raster.gaps(values, plane, window)
        samples.append(flat if gaps is None else flat[:, ~gaps.ravel()])
    return InputChannels(channels.names, percentile_windows(samples, percentiles))


def read_channels(config: Any, pictures: Callable[[], Pictures], known: InputChannels) -> InputChannels:
    """The channels and intensities of a configuration (`tasks.options.ReadsChannels`, `seed`), else the model's.

    Percentiles are measured on `pictures()`.
    """
    names = config.input_channels or known.names
    if config.intensity_percentiles:
        found = measure_windows(pictures(), names, config.intensity_percentiles, config.seed)
        said = ", ".join(f"{low:g} to {high:g}" for low, high in found.windows)
        print(f"Percentiles {config.intensity_percentiles[0]:g} and {config.intensity_percentiles[1]:g}: {said}.")
        return found
    values = config.intensity_window
    return InputChannels(names, known.windows if values is None else tuple(zip(values[::2], values[1::2])))


def _random_window(raster: Raster, size: tuple[int, int], rng: np.random.Generator) -> Window:
    height, width = min(size[0], raster.height), min(size[1], raster.width)
    top, left = rng.integers(raster.height - height + 1), rng.integers(raster.width - width + 1)
    return Window(int(top), int(left), height, width)


def read_tile(
    raster: Raster, plane: int, top: int, left: int, tile: tuple[int, int], scale: float, channels: InputChannels
) -> np.ndarray:
    """Reads a tile `[C, h, w]` in the file's dtype, at the coarsest level sufficient for a scale.

    Place and size are in pixels of the picture, inside of it; `scale` is the model's pixels for one of the picture.
    """
    level = raster.level_for(scale)
    down = raster.levels[level]
    height, width = max(1, round(tile[0] / down)), max(1, round(tile[1] / down))
    limits = round(raster.height / down) - height, round(raster.width / down) - width
    at = Window(max(0, min(round(top / down), limits[0])), max(0, min(round(left / down), limits[1])), height, width)
    return raster.read(plane, at, level)[channels.indices(raster.channels, raster.name)]


class RandomCrops(torch.utils.data.Dataset):
    """Random crops at native resolution; as many per image as fit into it side by side.

    Crop `i` depends on the seed and on `i` alone, which goes on growing from epoch to epoch. Of formats that allow it,
    no more than the crop is decoded.

    Args:
        pictures ([`Pictures`]): Where from.
        size (two `int`), in_channels (`int`): Height, width and channels of the model's input.
        channels ([`InputChannels`]): Which channels of the pictures are read.
        seed (`int`): Of the places.
        scale (`float`, *optional*), pixel_size (`float`, *optional*): See [`scale_of`].
        skip_unreadable (`bool`): Whether a crop that cannot be read is replaced by the next one that can.

    Raises:
        UserError: A picture cannot be opened; names it.
    """

    fresh = True  # another crop at each index of each epoch

    def __init__(
        self,
        pictures: Pictures,
        size: tuple[int, int],
        in_channels: int,
        channels: InputChannels,
        seed: int,
        scale: float | None = None,
        pixel_size: float | None = None,
        skip_unreadable: bool = False,
    ):
        self.pictures, self.size, self.in_channels, self.channels = pictures, size, in_channels, channels
        self.seed, self.scale, self.pixel_size, self.skip_unreadable = seed, scale, pixel_size, skip_unreadable
        counts, self.unreadable = [], 0
        for i in tqdm(range(len(pictures)), "Looking at pictures", unit="picture", leave=None):
            try:
                raster = pictures[i]
                tile = native_tile(size, scale_of(raster, scale, pixel_size))
                area = raster.height * raster.width / (tile[0] * tile[1])
                counts.append(raster.planes * max(1, round(area)))
            except UserError:
                if not skip_unreadable:
                    raise
                counts.append(0)
                self.unreadable += 1
        if self.unreadable:
            print(f"{self.unreadable} of {len(pictures)} pictures cannot be opened and are left out.")
        self.ends = list(accumulate(counts))  # crops of all pictures up to each
        self.rows = np.arange(self.ends[-1] if self.ends else 0)
        if not len(self.rows):
            raise UserError("None of the pictures can be read.")

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, indices: Sequence[int]) -> "RandomCrops":
        """The crops at these indices of each epoch."""
        chosen = copy.copy(self)
        chosen.rows = self.rows[np.asarray(indices, int)]
        return chosen

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Crop `index`, `[C, H, W]` uint8, or the next that can be read, and how many could not."""
        epoch, place = divmod(index, len(self))
        for skipped in range(len(self)):
            try:
                return self._crop(int(self.rows[(place + skipped) % len(self)]), epoch), skipped
            except UserError as error:
                if not self.skip_unreadable:
                    raise UserError(f"{error} `--skip_unreadable` trains without such pictures.") from error
        raise UserError("None of the pictures can be read.")

    def _crop(self, row: int, epoch: int) -> torch.Tensor:
        rng = np.random.default_rng([self.seed, epoch, row])
        raster = self.pictures[int(np.searchsorted(self.ends, row, side="right"))]
        scale = scale_of(raster, self.scale, self.pixel_size)
        tile = native_tile(self.size, scale)
        window = _random_window(raster, tile, rng)
        plane = int(rng.integers(raster.planes))
        inside = window.height, window.width
        values = read_tile(raster, plane, window.top, window.left, inside, scale, self.channels)
        x = self.channels.encode(values, self.in_channels, raster.name)
        down = raster.levels[raster.level_for(scale)]
        side = max(1, round(tile[0] / down)), max(1, round(tile[1] / down))
        x = np.pad(x, [(0, 0), *((0, max(0, s - n)) for s, n in zip(side, x.shape[1:]))], mode="symmetric")
        return tile_pixels(x, self.size)


class LabeledTiles(LabeledImages):
    """Tiles of large labelled images that contain labels, read lazily.

    Args:
        dataset ([`LabeledImages`]): The pictures and their masks.
        size (two `int`): Height and width of what the model sees of a tile.
        scale (`float`, *optional*), pixel_size (`float`, *optional*): See [`scale_of`].
        max_tiles (`int`, defaults to 200): Tiles at most: of rare classes first, else at random.
        seed (`int`, defaults to 0): Of the choice.

    Raises:
        UserError: A picture or mask cannot be opened, they differ in size, or no tile holds a label.
    """

    def __init__(
        self,
        dataset: LabeledImages,
        size: tuple[int, int],
        scale: float | None = None,
        pixel_size: float | None = None,
        max_tiles: int = 200,
        seed: int = 0,
    ):
        self._take(dataset)
        self._scales = [scale_of(self._pictures[i], scale, pixel_size) for i in range(len(self.dataset))]
        self._tile_size = size
        found, pixels = [], []
        for i in tqdm(range(len(self.dataset)), "Looking for labels", unit="picture", leave=None):
            for place, counts in self._labelled(i):
                found.append((i, *place))
                pixels.append(counts)
        if not found:
            raise UserError(f"No tile of the {len(self.dataset)} pictures holds a label.")
        counts = np.array(pixels)  # [tiles,classes]
        chosen = _choose_tiles(counts, max_tiles, seed)
        self.places = [found[i] for i in chosen]
        self.tiling = {"tiles": True, "scale": float(np.median(self._scales)), "pixel_size": pixel_size}
        left = len(found) - len(chosen)
        said = f"{len(found)} tiles of {len(self.dataset)} pictures hold labels"
        print(f"{said}; {len(chosen)} are taken, {left} are left out (--max_tiles)." if left else f"{said}.")

    def _take(self, dataset: LabeledImages) -> None:
        self.__dict__.update(dataset.__dict__)
        reading = (dataset.axes, dataset.slice_axis)
        self._pictures = Pictures(self.dataset, self.image_column, *reading)
        self._masks = Pictures(self.dataset, self.mask_column, *reading, self._pictures)
        self._whole_mask: tuple[int, np.ndarray] | None = None

    def _opened(self, i: int) -> tuple[Raster, Raster | np.ndarray]:
        """A picture and its mask, of the same size."""
        raster = self._pictures[i]
        mask = self._masks[i] if self._has_raster(i) else self._decoded(i)
        planes, (height, width) = (mask.planes, mask.size) if isinstance(mask, Raster) else (1, mask.shape)
        if (planes, height, width) != (raster.planes, *raster.size):
            raise UserError(
                f"Image and mask differ in size: {raster.name} has {raster.planes} planes of {raster.width} × "
                f"{raster.height}, but its mask has {planes} of {width} × {height}; {RESIZE}"
            )
        return raster, mask

    def _labelled(self, i: int) -> Sequence[tuple[tuple[int, ...], np.ndarray]]:
        """Of tiles with labels: plane, top, left, overlap with earlier tiles (rows, columns); and pixels by class."""
        raster, mask = self._opened(i)
        tile = native_tile(self._tile_size, self._scales[i])
        side = max(1, SCANNED // tile[0]) * tile[0], max(1, SCANNED // tile[1]) * tile[1]
        found, tally = [], Tally(mask.name if isinstance(mask, Raster) else "")
        for plane in range(raster.planes):
            for part in _cells(Window(0, 0, raster.height, raster.width), side):
                ids = self._ids(i, plane, part, tally)
                for cell in _cells(part, tile):
                    own = ids[cell.top - part.top :, cell.left - part.left :][: cell.height, : cell.width]
                    counts = np.bincount(own.ravel(), minlength=256)
                    counts[self.ignore_index] = 0
                    if counts.any():
                        top = max(0, min(cell.top, raster.height - tile[0]))  # the whole tile lies within the image
                        left = max(0, min(cell.left, raster.width - tile[1]))
                        found.append(((plane, top, left, cell.top - top, cell.left - left), counts[: self.num_classes]))
        self.reader.check(tally)
        return found

    def _has_raster(self, i: int) -> bool:
        return needs_raster(self.dataset[i][self.mask_column])

    def _decoded(self, i: int) -> np.ndarray:
        """A mask that is decoded whole, `[H, W]` uint8; the last one is kept."""
        if self._whole_mask is None or self._whole_mask[0] != i:
            mask, raster = self._mask(self.dataset[i][self.mask_column], f"the mask of row {i}")[0], self._pictures[i]
            self._whole_mask = i, upright_mask(mask, raster.size, raster.orientation)
        return self._whole_mask[1]

    def _ids(self, i: int, plane: int, window: Window, tally: Tally | None = None) -> np.ndarray:
        """Class ids of a window of a mask, `[h, w]` uint8, ignored where the picture has no measurement."""
        raster, ids = self._pictures[i], self._given_ids(i, plane, window, tally)
        if not raster.has_gaps or (ids == self.ignore_index).all():
            return ids
        values = raster.read(plane, window)[self.channels.indices(raster.channels, raster.name)]
        gaps = raster.gaps(values, plane, window)
        return ids if gaps is None else np.where(gaps, np.uint8(self.ignore_index), ids)

    def _given_ids(self, i: int, plane: int, window: Window, tally: Tally | None = None) -> np.ndarray:
        """Class ids of a window of a mask, checked as those of whole masks are."""
        if not self._has_raster(i):
            return self._known(self._decoded(i)[window.slices], f"the mask of {self._pictures[i].name}")
        mask = self._masks[i]
        ids = self.as_ids(self._read(mask, plane, window), f"{mask.name} at {window.top}, {window.left}", tally)
        return without_label(mask, ids, plane, window, self.ignore_index)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> LabeledImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        i, plane, top, left, *earlier = self.places[index]
        raster, scale = self._pictures[i], self._scales[i]
        tile = native_tile(self._tile_size, scale)
        height, width = min(tile[0], raster.height), min(tile[1], raster.width)
        values = read_tile(raster, plane, top, left, (height, width), scale, self.channels)
        ids = self._ids(i, plane, Window(top, left, height, width)).copy()
        ids[: earlier[0]] = ids[:, : earlier[1]] = self.ignore_index  # each label is in one tile, and in one fold
        if (height, width) != tile:  # a picture that is smaller: mirrored, and nothing to learn there
            share = [t / n for t, n in zip(tile, (height, width))]
            pad = [(0, round(n * s) - n) for n, s in zip(values.shape[1:], share)]
            values = np.pad(values, [(0, 0), *pad], mode="symmetric")
            more = [(0, t - n) for t, n in zip(tile, ids.shape)]
            ids = np.pad(ids, more, constant_values=self.ignore_index)
        name = f"{raster.name} at {top}, {left}" + (f" of plane {plane}" if raster.planes > 1 else "")
        return LabeledImage(values.transpose(1, 2, 0), ids, name)

    def select(self, indices: Sequence[int]) -> "LabeledTiles":
        """The tiles at these indices."""
        chosen = copy.copy(self)
        chosen.places = [self.places[i] for i in indices]
        return chosen


class LabeledPlanes(LabeledTiles):
    """The planes of stacks and volumes, each an image of its own; images of one plane are as they were.

    Args:
        dataset ([`LabeledImages`]): The pictures and their masks.

    Raises:
        UserError: A picture cannot be opened.
    """

    def __init__(self, dataset: LabeledImages):
        self._take(dataset)
        planes = [self._pictures[i].planes for i in range(len(self.dataset))]
        self.places = [(i, plane, 0, 0) for i, number in enumerate(planes) for plane in range(number)]

    def __getitem__(self, index: int) -> LabeledImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        i, plane, *_ = self.places[index]
        if self._pictures[i].planes == 1:
            return self.read(i)
        raster, _ = self._opened(i)
        window = Window(0, 0, raster.height, raster.width)
        values = raster.read(plane, window)[self.channels.indices(raster.channels, raster.name)]  # [C,H,W]
        values = self.channels.without_nan(values).transpose(1, 2, 0)
        return LabeledImage(values, self._ids(i, plane, window), f"{raster.name}, plane {plane}")


def by_planes(dataset: LabeledImages) -> LabeledImages:
    """The same images, but every plane of stacks and volumes is one."""
    if isinstance(dataset, LabeledTiles) or not any(map(needs_raster, dataset.dataset[dataset.image_column])):
        return dataset
    planes = LabeledPlanes(dataset)
    return planes if len(planes) > len(dataset) else dataset


def pictures_of(pieces: LabeledImages) -> np.ndarray:
    """The number of the picture that each image, tile or plane is of, `[pieces]` int64."""
    places = pieces.places if isinstance(pieces, LabeledTiles) else [(i,) for i in range(len(pieces))]
    return np.array([place[0] for place in places])


def _cells(part: Window, size: tuple[int, int]) -> list[Window]:
    """A part of a picture in cells of a size, the last ones smaller, row by row."""
    return [
        Window(part.top + y, part.left + x, min(size[0], part.height - y), min(size[1], part.width - x))
        for y in range(0, part.height, size[0])
        for x in range(0, part.width, size[1])
    ]


def _choose_tiles(counts: np.ndarray, number: int, seed: int) -> list[int]:
    """Of tiles `[tiles, classes]`, half for the classes, in turn the one with most of each, and half by chance."""
    if len(counts) <= number:
        return list(range(len(counts)))
    rng = np.random.default_rng(seed)
    chosen: dict[int, None] = {}
    rare = [c for c in np.argsort((counts > 0).sum(0)) if counts[:, c].any()]
    orders = {c: [int(i) for i in np.argsort(-counts[:, c], kind="stable") if counts[i, c]] for c in rare}
    for rank in range(max(1, number // (2 * len(rare)))):  # half of them for the classes
        for c in rare:
            if rank < len(orders[c]) and len(chosen) < number:
                chosen[orders[c][rank]] = None
    for i in rng.permutation(len(counts)):
        if len(chosen) >= number:
            break
        chosen[int(i)] = None
    return sorted(chosen)


def read_labels(
    config: Any,
    dataset: LabeledImages,
    validation: LabeledImages | None,
    known: InputChannels,
    tile: tuple[int, int] | None,
) -> tuple[LabeledImages, LabeledImages | None]:
    """Labelled images with the channels, intensities and tiles of a configuration (`tasks.options.ReadsChannels`).

    Args:
        config (`Config`): With `max_tiles` and `seed` too.
        dataset ([`LabeledImages`]), validation ([`LabeledImages`], *optional*): Images to fit and to measure on, which
            are read alike.
        known ([`InputChannels`]): Channels of the model.
        tile (two `int`, *optional*): Height and width of the tiles that the model sees; whole images if not given.
    """
    pictures = partial(Pictures, dataset.dataset, dataset.image_column, config.axes, config.slice_axis)
    dataset.channels = read_channels(config, pictures, known)
    if validation is not None:
        validation.channels = dataset.channels
    if tile is None:
        return by_planes(dataset), None if validation is None else by_planes(validation)
    cut = (tile, config.scale, config.pixel_size, config.max_tiles, config.seed)
    return LabeledTiles(dataset, *cut), None if validation is None else LabeledTiles(validation, *cut)
