# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which generated samples are kept: certain ones, rare classes, no duplicates."""

import numpy as np
import PIL.Image
from datasets import Dataset
from tqdm.auto import tqdm

from ..datasets.columns import decode_cell
from ..jobs.errors import UserError
from .shards import Samples


DISTANCE_SIDE = 16  # images are compared at this size
COMPARED = 2000  # generated images whose nearest neighbours are looked for, at most


def thumbnail(image: PIL.Image.Image, mode: str) -> np.ndarray:
    """An image as `[16 * 16 * C]` float32 in [0, 1], for [`distances`]; `mode` is "L" or "RGB"."""
    small = image.convert(mode).resize((DISTANCE_SIDE,) * 2, PIL.Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def thumbnails(samples: Samples, indices: np.ndarray) -> np.ndarray:
    """The images of samples at these ascending indices for [`distances`], `[n, D]`."""
    return np.stack([thumbnail(image, image.mode) for g in samples.groups(indices) for image in samples.images(g)])


def reference_thumbnails(dataset: Dataset, column: str, mode: str) -> np.ndarray:
    """Training images of [`load_unlabeled`] for [`distances`], `[M, D]`, in the mode of the samples, "L" or "RGB"."""
    images = (decode_cell(row[column], f"row {i}")[0] for i, row in enumerate(dataset))
    return np.stack([thumbnail(x, mode) for x in tqdm(images, "Training images", len(dataset), leave=False)])


def distances(queries: np.ndarray, references: np.ndarray, skip_self: bool = False) -> np.ndarray:
    """Distance of each query to its nearest reference or to the mirror image of one: root mean squared difference.

    Args:
        queries (`np.ndarray`): `[N, D]` of [`thumbnail`].
        references (`np.ndarray`): `[M, D]`.
        skip_self (`bool`, defaults to `False`): The two are the same set, and an image is not its own neighbour.

    Returns:
        `np.ndarray`: `[N]`, 0 (the same) to 1, at 16 × 16 pixels.
    """
    side = DISTANCE_SIDE
    mirrored = references.reshape(len(references), side, side, -1)[:, :, ::-1].reshape(references.shape)
    nearest = np.full(len(queries), np.inf)
    for others in (references, mirrored):
        squares = (others**2).sum(1)
        for start in range(0, len(queries), 1024):
            block = queries[start : start + 1024]
            d = (block**2).sum(1)[:, None] + squares - 2 * block @ others.T  # [n,M]
            if skip_self:
                d[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
            nearest[start : start + len(block)] = np.minimum(nearest[start : start + len(block)], d.min(1))
    return np.sqrt(nearest.clip(min=0) / queries.shape[1])


def keep_certain(samples: Samples, kept: np.ndarray, fraction: float) -> np.ndarray:
    """Leaves out the most uncertain fraction (the paper's 0.1), the later of equals first; `kept` is `[n]` indices."""
    count = len(kept) - round(fraction * len(kept))
    order = np.argsort(samples.uncertainty[kept], kind="stable")[:count]
    return np.sort(kept[order])


def keep_balanced(samples: Samples, kept: np.ndarray, fraction: float) -> np.ndarray:
    """Leaves out the fraction that shows the least of rare classes: class shares over the mean share, summed."""
    shares = samples.pixels[kept] / samples.pixels[kept].sum(1, keepdims=True)  # [n,C]
    mean = shares.mean(0)
    rarity = shares[:, mean > 0] @ (1 / mean[mean > 0])
    count = len(kept) - round(fraction * len(kept))
    return np.sort(kept[np.argsort(-rarity, kind="stable")[:count]])


def keep_distinct(
    images: np.ndarray, kept: np.ndarray, least: float, references: np.ndarray | None = None
) -> np.ndarray:
    """Leaves out images that are nearer than `least` to a reference, or to one that is kept and comes before.

    `images` are `[N, D]` of [`thumbnail`] of all samples, `kept` `[n]` indices, `references` `[M, D]` training images.
    """
    if references is not None:
        kept = kept[distances(images[kept], references) >= least]
    distinct: list[int] = []
    for i in kept:
        if not distinct or distances(images[i : i + 1], images[distinct])[0] >= least:
            distinct.append(i)
    return np.array(distinct, dtype=int)


def select(
    samples: Samples,
    drop_uncertain: float = 0.0,
    drop_common: float = 0.0,
    min_distance: float = 0.0,
    references: np.ndarray | None = None,
) -> np.ndarray:
    """Indices of the samples that are kept, `[n]`, ascending.

    Args:
        samples ([`Samples`]): All there are.
        drop_uncertain (`float`, defaults to 0): The most uncertain fraction, see [`keep_certain`].
        drop_common (`float`, defaults to 0): The fraction that shows the least of rare classes, [`keep_balanced`].
        min_distance (`float`, defaults to 0): Images nearer than this to others, see [`keep_distinct`].
        references (`np.ndarray`, *optional*): `[M, D]` of [`thumbnail`], images of the training set.

    Raises:
        UserError: None is kept.
    """
    kept = keep_certain(samples, np.arange(samples.num_samples), drop_uncertain)
    if drop_common and len(kept):
        kept = keep_balanced(samples, kept, drop_common)
    if min_distance and len(kept):
        images = thumbnails(samples, np.arange(samples.num_samples))
        kept = keep_distinct(images, kept, min_distance, references)
    if not len(kept):
        raise UserError(
            f"Nothing of {samples.num_samples} images would be left with --drop_uncertain {drop_uncertain}, "
            f"--drop_common {drop_common} and --min_distance {min_distance}; the batches are kept."
        )
    return kept


def nearest_neighbours(samples: Samples, kept: np.ndarray, references: np.ndarray | None = None) -> dict[str, dict]:
    """How far the samples that are kept are from each other and from training images, see [`select`]: `median` and
    `least` of the [`distances`] for each pair of sets that there is."""
    some, measured = thumbnails(samples, kept[:COMPARED]), {}
    if len(some) > 1:
        measured["generated to generated"] = distances(some, some, skip_self=True)
    if references is not None:
        measured["generated to training"] = distances(some, references)
        measured["training to training"] = distances(references[:COMPARED], references, skip_self=True)
    return {name: {"median": float(np.median(d)), "least": float(d.min())} for name, d in measured.items()}
