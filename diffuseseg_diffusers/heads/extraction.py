# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs labelled images and augmented views of them through a frozen model, once, into a table of activations."""

import os
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from tqdm.auto import tqdm

from ..datasets.augmentation import IGNORED, augment
from ..datasets.labeled import LabeledImages
from ..features.base import FeatureExtractor
from ..images.image_processor import DiffuseSegImageProcessor
from ..jobs.seeds import mixed_seed_32
from .table import ActivationTable


PIXELS_PER_PASS = 2**16


def extract_activations(
    extractor: FeatureExtractor,
    dataset: LabeledImages,
    min_label_fraction: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    show_progress: bool = True,
    augmented_views: int = 0,
    flip: bool = False,
    mirror: bool = False,
) -> ActivationTable:
    """Runs labelled images through a frozen model and keeps what training needs of them.

    Args:
        extractor ([`FeatureExtractor`]): What to extract: `pipe.features(blocks, timesteps)`.
        dataset ([`LabeledImages`]): Of what to extract it.
        min_label_fraction (`float`): Classes with a smaller share of an image's area are ignored there.
        seed (`int`): Of fresh noise, if the extractor does not share one, and of augmentation.
        batch_size (`int`, *optional*): Images in a pass; see [`images_per_pass`] if not given.
        cache_dir (path, *optional*): See [`ActivationTable`].
        show_progress (`bool`): Whether to show a progress bar.
        augmented_views (`int`, defaults to 0): Augmented views of each image, which follow it in the table.
        flip (`bool`, defaults to `False`): Whether augmented views may be mirrored.
        mirror (`bool`, defaults to `False`): Extract from the mirror images, left and right exchanged.

    Returns:
        [`ActivationTable`] of `len(dataset) * (1 + augmented_views)` images.

    Examples:
        >>> from diffuseseg_diffusers import DiffuseSegPipeline, extract_activations
        >>> from diffuseseg_diffusers import load_labeled_images, recipe_extractor
        >>> extractor = recipe_extractor(DiffuseSegPipeline.from_pretrained("MODEL"))
        >>> table = extract_activations(extractor, load_labeled_images("my/labelled/images"))
    """
    total, batch_size = len(dataset) * (1 + augmented_views), batch_size or images_per_pass(extractor)
    dtype = torch.bfloat16 if extractor.dtype == torch.bfloat16 else torch.float16
    table = ActivationTable(extractor.feature_info(), total, extractor.size, dtype, cache_dir, extractor.device)
    generator = torch.Generator().manual_seed(seed)
    examples = labeled_examples(dataset, extractor, min_label_fraction, seed, augmented_views, flip)
    with tqdm(total=total, desc="Extracting features", unit="image", disable=not show_progress, leave=None) as bar:
        for start in range(0, total, batch_size):
            pixels, labels = map(torch.stack, zip(*islice(examples, batch_size)))  # [N,C,H,W], [N,H,W]
            if mirror:
                pixels, labels = pixels.flip(-1), labels.flip(-1)
            table.put(start, extractor(pixels, generator=generator).activations, labels)
            bar.update(len(labels))
    return table


def images_per_pass(extractor: FeatureExtractor) -> int:
    """How many images go through a model at once, each at every timestep: those of `PIXELS_PER_PASS` together, four at
    least; small ones alone would not keep it busy."""
    height, width = extractor.size
    return max(4, PIXELS_PER_PASS // (height * width * max(1, len(extractor.timesteps))))


def labeled_examples(
    dataset: LabeledImages,
    extractor: FeatureExtractor,
    min_label_fraction: float = 0.0,
    seed: int = 0,
    augmented_views: int = 0,
    flip: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every image with its labels, and after it its augmented views, as [`extract_activations`] sees them.

    Other labels of the same images get the same augmentation, so that they can replace those of a table.

    Yields:
        `[C, H, W]` float32 in [-1, 1], and `[H, W]` uint8.
    """
    processor = DiffuseSegImageProcessor(extractor.in_channels, dataset.channels)
    for i in range(len(dataset)):
        example = dataset[i]
        pixels = processor.preprocess(processor.load([example.image]), *extractor.size)  # [1,C,H,W]
        labels = resize_mask(example.mask, extractor.size)  # [H,W]
        ids, counts = np.unique(labels, return_counts=True)
        labels[np.isin(labels, ids[counts < min_label_fraction * labels.size])] = dataset.ignore_index
        labels = torch.from_numpy(labels)
        yield pixels[0], labels
        if augmented_views:
            ids = labels.long()
            ids[labels == dataset.ignore_index] = IGNORED
            own = torch.Generator().manual_seed(mixed_seed_32(seed, i))
            many = pixels.expand(augmented_views, -1, -1, -1) / 2 + 0.5
            # Half of the changes each: all at once cost a little on images like the labelled ones.
            lit, moved = augment(many, ids.expand(augmented_views, -1, -1), own, flip, p=0.5)
            moved[moved == IGNORED] = dataset.ignore_index
            yield from zip(lit * 2 - 1, moved.to(torch.uint8))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of class ids, `[h, w]` to `[H, W]` uint8; pixel centres are aligned."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask.shape))
    return mask[rows[:, None], columns]
