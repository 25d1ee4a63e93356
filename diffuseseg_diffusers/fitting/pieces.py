# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""In which pieces pictures are read, at which scales and timesteps: small pictures whole, large ones in tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.crops import LabeledTiles
from ..datasets.labeled import LabeledImages
from ..heads.recipes import RECIPES
from ..heads.views import LONGEST, shapes_of


TILE = LONGEST  # side of tiles in pixels of the picture: attention takes most of the time of larger ones
LEAST, MOST = 32, 320  # shorter and longer side in pixels of what a model reads of a piece


# What the denoiser is told, of the paper's schedule of 1,000 steps, of pictures without noise: what suits a denoiser of
# the same kind of pictures, and what suits one of others.
TIMESTEPS = (tuple(RECIPES["default"].timesteps), (200,), (100,))


@dataclass(frozen=True)
class View:
    """How large a model sees a piece of a picture, without noise, and what it is told of noise.

    Args:
        scale (`float`): Pixels of the model for one of the picture.
        size (two `int`): Height and width in pixels of the model.
        timesteps (sequence of `int`): Diffusion timesteps of a schedule of 1,000, see [`Recipe`].
    """

    scale: float
    size: tuple[int, int]
    timesteps: tuple[int, ...] = TIMESTEPS[0]

    @property
    def area(self) -> int:
        """Pixels that the model reads of a piece, at all timesteps."""
        return self.size[0] * self.size[1] * len(self.timesteps)


def in_pieces(dataset: LabeledImages, tiles: bool | None = None, max_tiles: int = 200, seed: int = 0) -> LabeledImages:
    """Labelled pictures in the pieces in which they will be read: whole, or as tiles of `TILE` pixels.

    Args:
        dataset ([`LabeledImages`]): Pictures; tiles stay as they are.
        tiles (`bool`, *optional*): Whether to cut them; if not given, where the longer side is over `LONGEST` pixels.
        max_tiles (`int`), seed (`int`): As in [`LabeledTiles`].
    """
    if dataset.tiling is not None:
        return dataset
    if tiles is None:
        tiles = max(piece_size(dataset)) > LONGEST
    return LabeledTiles(dataset, (TILE, TILE), None, None, max_tiles, seed) if tiles else dataset


def piece_size(pieces: LabeledImages) -> tuple[int, int]:
    """Median height and width in pixels."""
    height, width = np.median(np.array(shapes_of(pieces)), axis=0)
    return int(height), int(width)


def views_of(
    piece: tuple[int, int], multiple: int, size: tuple[int, int] | None = None, timesteps: Sequence[int] = TIMESTEPS[0]
) -> list[View]:
    """How pieces of a size can be read, the usual view first, then those that most often help.

    Args:
        piece (two `int`): Height and width in pixels of the picture.
        multiple (`int`): That the sides of what the model reads have to be a multiple of.
        size (two `int`, *optional*): Height and width at which the model reads pieces; their own if not given.
        timesteps (sequence of `int`): The usual ones.
    """
    usual, first = size or piece, tuple(timesteps)
    second, *more = (steps for steps in TIMESTEPS if steps != first)
    found = []
    for factor, steps in (
        (1, first),
        (1, second),
        (0.5, first),
        (2, first),
        *((1, own) for own in more),
        (0.25, first),
    ):
        height, width = (max(multiple, round(side * factor / multiple) * multiple) for side in usual)
        if factor == 1 or (min(height, width) >= LEAST and max(height, width) <= MOST):
            found.append(View(round(min(height / piece[0], width / piece[1]), 4), (height, width), steps))
    return found
