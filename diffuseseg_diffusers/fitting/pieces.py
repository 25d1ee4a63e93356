# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""In which pieces pictures are read, and at which scales: small pictures whole, large ones in tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.crops import LabeledTiles
from ..datasets.labeled import LabeledImages
from ..heads.views import LONGEST, shapes_of


TILE = 256  # side of the tiles of pictures with a side of more than `LONGEST`, in pixels of the picture
LEAST, MOST = 32, 320  # shorter and longer side in pixels of what a model reads of a piece


@dataclass(frozen=True)
class View:
    """How large a model sees a piece of a picture.

    Args:
        scale (`float`): Pixels of the model for one of the picture.
        size (two `int`): Height and width in pixels of the model.
    """

    scale: float
    size: tuple[int, int]


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
    piece: tuple[int, int],
    multiple: int,
    size: tuple[int, int] | None = None,
    factors: Sequence[float] = (1.0, 0.5, 2.0, 0.25),
) -> list[View]:
    """The scales at which pieces of a size can be read, the usual one first.

    Args:
        piece (two `int`): Height and width in pixels of the picture.
        multiple (`int`): That the sides of what the model reads have to be a multiple of.
        size (two `int`, *optional*): Height and width at which the model reads pieces; their own if not given.
        factors (sequence of `float`): Of that size, to choose from.
    """
    usual, found = size or piece, []
    for factor in factors:
        height, width = (max(multiple, round(side * factor / multiple) * multiple) for side in usual)
        if factor == 1 or (min(height, width) >= LEAST and max(height, width) <= MOST):
            found.append(View(round(min(height / piece[0], width / piece[1]), 4), (height, width)))
    return found
