# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a head on images of which only strokes are labelled.

Strokes are nothing like the shares of the classes in a picture: eyes get as many as skin, so a head that learns from
them alone finds eyes everywhere. What can be known of the shares is in the pixels without a label. A first head is
moved to the shares that explain them best (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002); what it is
then sure of becomes labels for the head that is kept (self-training). Each step was measured: see docs/labeling.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..data.labeled import LabeledImage, LabeledImages
from ..runs.errors import UserError
from .classes import Classes
from .ensemble import PixelClassifierEnsemble
from .extraction import extract_activations, labeled_examples, resize_mask
from .fit import fit_head, recipe_extractor, record_reading
from .recipes import Recipe, find_recipe


CONFIDENCE = 0.8  # from which on a prediction becomes a label
EVEN = 0.02  # of the shares that all classes have alike, so that none is thought to be absent
SPARSE = 0.9  # from this share of labelled pixels on, nothing is left to be learnt from the others


class _Relabeled:
    """Labelled images with other masks."""

    def __init__(self, dataset: LabeledImages, masks: Sequence[np.ndarray]):
        self.dataset, self.masks = dataset, masks
        self.ignore_index, self.channels = dataset.ignore_index, dataset.channels

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> LabeledImage:
        return replace(self.dataset[index], mask=self.masks[index])

    def __iter__(self) -> Iterator[LabeledImage]:
        return (self[i] for i in range(len(self)))


def fit_sparse_head(
    pipe: Any,
    dataset: LabeledImages,
    recipe: str | Recipe = "default",
    first_masks: Sequence[np.ndarray] | None = None,
    num_members: int = 10,
    seed: int = 0,
    batch_size: int = 4,
    show_progress: bool = True,
) -> PixelClassifierEnsemble:
    """Fits a segmentation head on strokes, and on what the pixels around them tell.

    Args:
        pipe ([`DiffuseSegPipeline`] or another [`HeadSegmenter`]): The frozen model; set `pipe.segmentation_head` to
            the result.
        dataset ([`LabeledImages`]): Images with masks that are mostly `ignore_index`.
        recipe (`str` or [`Recipe`], defaults to `"default"`): Features and training, as in [`fit_segmentation_head`].
        first_masks (sequence of `np.ndarray`, *optional*): `[H, W]` uint8 each, what the first head learns from, if not
            all labels: the same number of pixels of every stroke, say.
        num_members (`int`, defaults to 10), seed (`int`), batch_size (`int`): As in [`fit_segmentation_head`].
        show_progress (`bool`): Whether to show progress bars.

    Returns:
        [`PixelClassifierEnsemble`] in float32, on the model's device, in evaluation mode.

    Raises:
        UserError: Fewer than two classes are labelled.
    """
    recipe = find_recipe(recipe)
    classes = Classes.of(dataset)
    flip = recipe.flip and not classes.tell_sides
    extractor = recipe_extractor(pipe, recipe)
    views = recipe.num_views(len(dataset))
    labels = [resize_mask(example.mask, extractor.size) for example in dataset]
    present = np.unique(np.concatenate([np.unique(mask) for mask in labels]))
    if len(present[present != dataset.ignore_index]) < 2:
        raise UserError("Fewer than two classes are labelled; label a second one.")

    # 1. A head on the strokes.
    begin: Any = dataset if first_masks is None else _Relabeled(dataset, first_masks)
    table = extract_activations(
        extractor, begin, 0.0, seed, batch_size, None, show_progress, augmented_views=views, flip=flip
    )
    dense = np.mean([(mask != dataset.ignore_index).mean() for mask in labels]) >= SPARSE
    if not dense:
        head = fit_head(table, extractor, classes, recipe, num_members, flip, seed)

        # 2. What it thinks of every pixel, once it knows how frequent the classes are.
        mirrored = extract_activations(extractor, dataset, 0.0, seed, batch_size, None, False, mirror=True)
        entries = range(len(table.info))
        found = []
        for i in range(len(dataset)):
            other = mirrored.image(i, entries) if flip else None
            output = head.predict(table.image(i * (1 + views), entries), None, True, mirrored=other)
            found.append(output.probabilities[0].cpu())
        probabilities = torch.stack(found)  # [N,C,H,W]
        counts = torch.bincount(table.labels.flatten().long(), minlength=256)[: classes.number].float().cpu()
        assumed = (counts / counts.sum()).clamp(min=1e-9) ** (1 - recipe.balance)
        corrected = correct_shares(probabilities, assumed / assumed.sum())

        # 3. What it is sure of are labels, unless a hand drew others.
        confidence, best = corrected.max(1)
        for i, mask in enumerate(labels):
            sure = np.where((confidence[i] >= CONFIDENCE).numpy(), best[i].numpy(), dataset.ignore_index)
            labels[i] = np.where(mask == dataset.ignore_index, sure, mask).astype(np.uint8)
    again: Any = _Relabeled(dataset, labels)
    table.labels = torch.stack([m for _, m in labeled_examples(again, extractor, 0.0, seed, views, flip)])
    head = fit_head(table, extractor, classes, recipe, num_members, flip, seed, in_place=True)
    record_reading(head, dataset, extractor.size)
    return head


def correct_shares(probabilities: torch.Tensor, assumed: torch.Tensor) -> torch.Tensor:
    """Probabilities under the shares of the classes that explain them best.

    Args:
        probabilities (`torch.Tensor`): `[N, C, H, W]`, of a classifier that took classes to have the shares `assumed`.
        assumed (`torch.Tensor`): `[C]`, above 0, 1 in sum.

    Returns:
        `torch.Tensor` `[N, C, H, W]`, 1 in sum over the classes.
    """
    flat = probabilities.movedim(1, -1).flatten(0, -2)  # [N*H*W,C]
    shares = estimate_shares(flat[:: max(1, len(flat) // 2**17)], assumed)
    corrected = probabilities * (shares / assumed)[:, None, None]
    return corrected / corrected.sum(1, keepdim=True).clamp(min=1e-12)


def estimate_shares(probabilities: torch.Tensor, assumed: torch.Tensor, iterations: int = 60) -> torch.Tensor:
    """How frequent classes are where there are no labels, by expectation maximisation; none is thought to be absent.

    Args:
        probabilities (`torch.Tensor`): `[U, C]`, what a classifier thinks that took classes to have the shares
            `assumed`.
        assumed (`torch.Tensor`): `[C]`, above 0, 1 in sum.
        iterations (`int`): Of the algorithm.

    Returns:
        `torch.Tensor` `[C]`, 1 in sum.
    """
    shares = assumed
    for _ in range(iterations):
        corrected = probabilities * (shares / assumed)
        found = (corrected / corrected.sum(1, keepdim=True).clamp(min=1e-12)).mean(0)
        shares = (1 - EVEN) * found + EVEN / len(found)
    return shares
