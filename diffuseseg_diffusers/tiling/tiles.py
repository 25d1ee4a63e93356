# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Large pictures at their own resolution: overlapping tiles, blended, one block after another.

A picture has one grid of tiles. A block is what is in memory at a time: every tile that touches it goes through the
model, and what it says of the block is added up in the order of the grid. So what a block becomes depends neither on
the other blocks nor on who computes them, and tiles that lie across the border of two blocks are computed for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from ..heads.decisions import winners
from ..images.channels import InputChannels
from ..images.formats.base import Raster, Window, native_tile, scale_of
from ..jobs.errors import UserError
from ..pipelines.segmenter import Segmenter
from .options import BLENDS
from .regions import Region


LARGE = 4.0  # a picture is tiled by itself if it is this many times as high and as wide as what the model sees
SMALLEST_BLOCK, LARGEST_BLOCK = 256, 2048  # sides in pixels
UNCERTAINTY_BINS = 4096


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut into tiles.

    Args:
        size (two `int`): Height and width of what the model sees of a tile, in its own pixels.
        scale (`float`, defaults to 1): Pixels of the model for one of the picture; 0.5 shows it at half its size.
        overlap (`float`, defaults to 0.25): Part of a tile that its neighbour along an axis covers too, 0 to 0.75.
        blend (`str`, defaults to `"gaussian"`):
            `"gaussian"` weighs what a tile says by a normal distribution around its middle, whose standard deviation is
            an eighth of its side (nnU-Net's); `"crop"` takes each pixel from the tile whose middle is nearest.

    Raises:
        UserError: A number is out of range.
    """

    size: tuple[int, int]
    scale: float = 1.0
    overlap: float = 0.25
    blend: str = "gaussian"

    def __post_init__(self):
        if not 0 <= self.overlap <= 0.75:
            raise UserError(f"The overlap of tiles lies in 0 to 0.75, got {self.overlap:g}.")
        if not 1 / 64 <= self.scale <= 64:
            raise UserError(f"Tiles are shown at a scale of 1/64 to 64, got {self.scale:g}; check the pixel sizes.")
        if self.blend not in BLENDS:
            raise UserError(f"Tiles are blended by {' or '.join(BLENDS)}, got {self.blend!r}.")

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of a tile in pixels of the picture."""
        return native_tile(self.size, self.scale)

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels of the picture from one tile to the next."""
        return max(1, round(self.tile[0] * (1 - self.overlap))), max(1, round(self.tile[1] * (1 - self.overlap)))

    @cached_property
    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of a tile's rows `[h]` and columns `[w]`, float32; a pixel's is their product."""
        return _profile(self.tile[0], self.stride[0], self.blend), _profile(self.tile[1], self.stride[1], self.blend)

    def starts(self, length: int, axis: int) -> list[int]:
        """Where tiles begin along an axis of `length` pixels: strides from 0 on, the last one at the end."""
        tile, stride = self.tile[axis], self.stride[axis]
        return [*range(0, length - tile, stride), max(0, length - tile)]

    def sums(self, length: int, axis: int) -> torch.Tensor:
        """The weights of all tiles at each of `length` pixels of an axis, `[length]` float32, in the grid's order."""
        tile, total = self.tile[axis], torch.zeros(max(length, self.tile[axis]))
        for start in self.starts(length, axis):
            total[start : start + tile] += self.weights[axis]
        return total[:length]

    def blocks(self, height: int, width: int, side: int) -> list[Window]:
        """Blocks that cover a picture, row after row."""
        sides = [max(tile, side // stride * stride) for tile, stride in zip(self.tile, self.stride)]
        return [
            Window(top, left, min(sides[0], height - top), min(sides[1], width - left))
            for top in range(0, height, sides[0])
            for left in range(0, width, sides[1])
        ]


def _profile(tile: int, stride: int, blend: str) -> torch.Tensor:
    at = torch.arange(tile) - (tile - 1) / 2  # from the middle
    if blend == "gaussian":
        return torch.exp(-0.5 * (at / (tile / 8)) ** 2)
    # Where the middles of two neighbours are equally far, both count; at the ends of a picture all of a tile may be
    # needed, with a weight that is nothing beside a nearer one's.
    return torch.where(at.abs() <= stride / 2, 1.0, 1e-6)


def block_side(num_classes: int, channels: int, itemsize: int, max_memory: float) -> int:
    """Side of the largest blocks that fit into a limit.

    Args:
        num_classes (`int`), channels (`int`), itemsize (`int`): Of the model, and of the picture and its values.
        max_memory (`float`): Limit in GiB, of which blocks may take half; the model's passes need the rest.

    Returns:
        `int`: Pixels, 256 to 2048.

    Raises:
        UserError: The smallest block takes more than the limit.
    """
    each = 4 * (num_classes + 3) + 2 * channels * (itemsize + 4) + 16  # bytes a pixel
    side = math.isqrt(int(max_memory * 2**30 / 2 / each))
    if side < SMALLEST_BLOCK:
        needed = 2 * each * SMALLEST_BLOCK**2 / 2**30
        raise UserError(
            f"Blocks of {num_classes} classes need {needed:.2g} GiB at least, got --max_memory {max_memory}."
        )
    return min(LARGEST_BLOCK, side)


def plan_blocks(pipe: Segmenter, raster: Raster, tiling: Tiling, max_memory: float) -> list[Window]:
    """The blocks of a picture that fit into a limit.

    Raises:
        UserError: A tile alone does not.
    """
    side = block_side(len(pipe.label_names), len(raster.channels), raster.dtype.itemsize, max_memory)
    if max(tiling.tile) > side and max(tiling.tile) > SMALLEST_BLOCK:
        tile = " × ".join(map(str, tiling.tile[::-1]))
        raise UserError(
            f"A tile of {raster.name} has {tile} pixels at a scale of {tiling.scale:.3g}, more than --max_memory "
            f"{max_memory:g} allows; raise that, or the scale."
        )
    return tiling.blocks(raster.height, raster.width, side)


@dataclass
class BlockResult:
    """What is found in a block.

    Args:
        labels (`np.ndarray`): `[h, w]` uint8; the ignored id where there is no measurement.
        uncertainty (`np.ndarray`, *optional*): `[h, w]` float32 in nats, without blending none.
        probabilities (`np.ndarray`, *optional*): `[C, h, w]` float32, if asked for.
    """

    labels: np.ndarray
    uncertainty: np.ndarray | None = None
    probabilities: np.ndarray | None = None


@torch.no_grad()
def segment_block(
    pipe: Segmenter,
    raster: Raster,
    plane: int,
    block: Window,
    tiling: Tiling,
    channels: InputChannels,
    batch_size: int = 8,
    return_probabilities: bool = False,
) -> BlockResult:
    """Segments a block of a picture by tiles.

    Args:
        pipe ([`Segmenter`]): The model.
        raster ([`Raster`]): The picture.
        plane (`int`), block ([`Window`]): Which part of it.
        tiling ([`Tiling`]): How it is cut.
        channels ([`InputChannels`]): What the model reads of it.
        batch_size (`int`, defaults to 8): Tiles that go through the model at once.
        return_probabilities (`bool`, defaults to `False`): Whether to return mean class probabilities.

    Raises:
        UserError: The picture is broken there, or does not fit the model.
    """
    corners = [
        (top, left)
        for top in _touching(tiling.starts(raster.height, 0), tiling.tile[0], block.top, block.height)
        for left in _touching(tiling.starts(raster.width, 1), tiling.tile[1], block.left, block.width)
    ]
    level = 0 if pipe.guided else raster.level_for(tiling.scale)  # a guide is the picture itself
    region = Region(raster, plane, level, tiling.tile, corners, channels, pipe.in_channels)
    valid = region.valid(block)
    labels = np.full((block.height, block.width), pipe.ignore_index, np.uint8)
    if valid is not None and not valid.any():
        return BlockResult(labels, np.zeros(labels.shape, np.float32))
    total = torch.zeros(len(pipe.label_names), block.height, block.width)  # [C,H,W]
    doubt: torch.Tensor | None = torch.zeros(block.height, block.width)  # [H,W]
    weight = tiling.weights[0][:, None] * tiling.weights[1]  # [h,w]
    for start in range(0, len(corners), batch_size):
        own = [corner for corner in corners[start : start + batch_size] if region.measured(*corner)]
        if not own:
            continue
        pixels = torch.stack([region.tile(*corner, tiling.size) for corner in own]) * 2 - 1  # [N,C,h,w]
        found = pipe.segment_batch(pixels, [tiling.tile] * len(own), return_probabilities=True)
        guides = [region.tile(*corner, tiling.tile) for corner in own if pipe.guided]
        found = pipe.refine(found, guides, return_probabilities=True)
        for i, (top, left) in enumerate(own):
            inside, part = _overlap(block, top, left, tiling.tile)
            total[(slice(None), *inside)] += found.probabilities[i][(slice(None), *part)] * weight[part]
            if found.uncertainty is None:
                doubt = None
            elif doubt is not None:
                doubt[inside] += found.uncertainty[i][part] * weight[part]
    rows, columns = block.slices
    sums = tiling.sums(raster.height, 0)[rows, None] * tiling.sums(raster.width, 1)[columns]  # [H,W]
    best = winners(total if pipe.decisions is None else total / sums, pipe.decisions, 0).to(torch.uint8).numpy()
    labels = best if valid is None else np.where(valid, best, labels)
    return BlockResult(
        labels,
        None if doubt is None else (doubt / sums).numpy(),
        (total / sums).numpy() if return_probabilities else None,
    )


def _touching(starts: Sequence[int], tile: int, begin: int, length: int) -> list[int]:
    """Those of the tiles along an axis that share a pixel with a block."""
    return [start for start in starts if start < begin + length and start + tile > begin]


def _overlap(
    block: Window, top: int, left: int, tile: tuple[int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a tile and a block overlap: rows and columns of the block, and of the tile."""
    rows = max(top, block.top), min(top + tile[0], block.top + block.height)
    columns = max(left, block.left), min(left + tile[1], block.left + block.width)
    inside = slice(rows[0] - block.top, rows[1] - block.top), slice(columns[0] - block.left, columns[1] - block.left)
    part = slice(rows[0] - top, rows[1] - top), slice(columns[0] - left, columns[1] - left)
    return inside, part


def segment_whole(
    pipe: Segmenter,
    raster: Raster,
    plane: int,
    channels: InputChannels,
    return_probabilities: bool = False,
) -> BlockResult:
    """Segments a plane of a picture at once, resized to what the model sees."""
    window = Window(0, 0, raster.height, raster.width)
    values = raster.read(plane, window)[channels.indices(raster.channels, raster.name)]
    picture = torch.from_numpy(channels.encode(values, pipe.in_channels, raster.name))  # [C,H,W]
    pixels = picture[None]
    if raster.size != pipe.image_size:
        pixels = F.interpolate(pixels, pipe.image_size, mode="bilinear", antialias=True).clamp(0, 1)
    need = return_probabilities or pipe.guided is not None
    found = pipe.refine(
        pipe.segment_batch(pixels * 2 - 1, [raster.size], return_probabilities=need), [picture], return_probabilities
    )
    labels = found.masks[0].numpy()
    empty = raster.gaps(values, plane, window)
    if empty is not None:
        labels = np.where(empty, np.uint8(pipe.ignore_index), labels)
    return BlockResult(
        labels,
        None if found.uncertainty is None else found.uncertainty[0].numpy(),
        None if found.probabilities is None else found.probabilities[0].numpy(),
    )


def choose_tiling(
    pipe: Segmenter,
    raster: Raster,
    tile: bool | None = None,
    overlap: float = 0.25,
    blend: str = "gaussian",
    scale: float | None = None,
    pixel_size: float | None = None,
) -> Tiling | None:
    """How a picture is cut, or `None` if the model sees it whole.

    Args:
        pipe ([`Segmenter`]): The model.
        raster ([`Raster`]): The picture.
        tile (`bool`, *optional*): Whether to cut it; if not given, as the head was fitted, and where a picture is at
            least four times as high and as wide as what the model sees at the scale of its labelled images. Of models
            of which that scale is not known, none.
        overlap (`float`), blend (`str`): See [`Tiling`].
        scale (`float`, *optional*): Pixels of the model for one of the picture; if not given, as `pixel_size` says, or
            as the head was fitted.
        pixel_size (`float`, *optional*): Side in micrometres of what the model takes for a pixel.

    Raises:
        UserError: A pixel size was asked for, and the picture does not say its own.

    Examples:
        >>> from diffuseseg_diffusers import AutoDiffuseSegPipeline, choose_tiling, open_raster
        >>> pipe, raster = AutoDiffuseSegPipeline.from_pretrained("out/model"), open_raster("photo.jpg")
        >>> tiling = choose_tiling(pipe, raster)  # None: shown whole
    """
    fitted = getattr(pipe, "fitted_tiles", None) or {}
    if scale is None:
        wanted = pixel_size or fitted.get("pixel_size")
        scale = scale_of(raster, fitted.get("scale"), wanted)
    if tile is None:
        tile = bool(fitted.get("tiles")) or (bool(fitted) and is_large(pipe, raster, scale))
    return Tiling(pipe.image_size, scale, overlap, blend) if tile else None


def is_large(pipe: Segmenter, raster: Raster, scale: float = 1.0) -> bool:
    """Whether a picture is at least four times as high and as wide as what the model sees at a scale."""
    return min(side * scale / own for side, own in zip(raster.size, pipe.image_size)) >= LARGE


def segment_tiled(
    pipe: Segmenter,
    image: Raster,
    tiling: Tiling,
    plane: int = 0,
    channels: InputChannels | None = None,
    batch_size: int = 8,
    max_memory: float = 1.0,
    return_probabilities: bool = False,
) -> BlockResult:
    """Segments a plane of a picture by tiles, in memory; files of any size are what `diffuseseg segment` is for.

    Args:
        pipe ([`Segmenter`]): The model.
        image ([`Raster`]): The picture; [`open_raster`] opens a file, [`ArrayRaster`] takes an array.
        tiling ([`Tiling`]): How it is cut, see [`choose_tiling`].
        plane (`int`, defaults to 0): Which page or slice.
        channels ([`InputChannels`], *optional*): What the model reads; as it was fitted if not given.
        batch_size (`int`, defaults to 8): Tiles that go through the model at once.
        max_memory (`float`, defaults to 1): Limit in GiB for a block, see [`block_side`].
        return_probabilities (`bool`, defaults to `False`): Whether to return mean class probabilities.

    Returns:
        [`BlockResult`] of the whole plane.

    Raises:
        UserError: The picture is broken, or does not fit the model.

    Examples:
        >>> from diffuseseg_diffusers import AutoDiffuseSegPipeline, choose_tiling, open_raster, segment_tiled
        >>> pipe, raster = AutoDiffuseSegPipeline.from_pretrained("out/model"), open_raster("photo.jpg")
        >>> found = segment_tiled(pipe, raster, choose_tiling(pipe, raster, tile=True))
        >>> found.labels.shape
    """
    channels = channels or pipe.channels
    labels = np.empty(image.size, np.uint8)
    uncertainty: np.ndarray | None = np.empty(image.size, np.float32)
    probabilities = np.empty((len(pipe.label_names), *image.size), np.float32) if return_probabilities else None
    with pipe.prepared():
        for block in plan_blocks(pipe, image, tiling, max_memory):
            found = segment_block(pipe, image, plane, block, tiling, channels, batch_size, return_probabilities)
            labels[block.slices] = found.labels
            if found.uncertainty is None:
                uncertainty = None
            elif uncertainty is not None:
                uncertainty[block.slices] = found.uncertainty
            if probabilities is not None:
                probabilities[(slice(None), *block.slices)] = found.probabilities
    return BlockResult(labels, uncertainty, probabilities)


def uncertainty_histogram(uncertainty: np.ndarray, labels: np.ndarray, ignored: int) -> np.ndarray:
    """How often each uncertainty occurs among measured pixels, in 4,096 bins of 0 to 4 nats, `[4096]` int64."""
    bins = (uncertainty[labels != ignored] * (UNCERTAINTY_BINS / 4)).astype(np.int64).clip(0, UNCERTAINTY_BINS - 1)
    return np.bincount(bins, minlength=UNCERTAINTY_BINS)


def histogram_score(histogram: np.ndarray) -> float | None:
    """[`image_uncertainty`] of a histogram, to a thousandth of a nat: the mean of its uppermost tenth; else `None`."""
    total = int(histogram.sum())
    if not total:
        return None
    wanted = max(1, total // 10)
    taken = np.diff(np.minimum(np.cumsum(histogram[::-1]), wanted), prepend=0)  # from the uppermost bin down
    nats = (np.arange(UNCERTAINTY_BINS)[::-1] + 0.5) * 4 / UNCERTAINTY_BINS
    return float(taken @ nats / wanted)
