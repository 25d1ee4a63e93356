# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Learning from scribbles.

Scribbles do not reflect class frequencies: eyes get as many pixels as skin, so a head trained on them alone
over-predicts rare classes. Class priors are therefore estimated on the unlabelled pixels by expectation maximisation
(Saerens, Latinne and Decaestecker, Neural Computation 14, 2002); confident predictions under these priors become
pseudo-labels for the final head (self-training). Figures: docs/labeling.md.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ..datasets.labeled import LabeledImage, LabeledImages
from ..jobs.errors import UserError
from .ensemble import PixelClassifierEnsemble
from .extraction import resize_mask
from .recipes import Recipe
from .table import ActivationTable


CONFIDENCE = 0.8  # from which on a prediction becomes a label
EVEN = 0.02  # of the shares that all classes have alike, so that none is thought to be absent


class Relabeled(LabeledImages):
    """Labelled images with other masks, `[H, W]` uint8 of any size."""

    def __init__(self, images: LabeledImages, masks: Sequence[np.ndarray]):
        self.__dict__.update(images.__dict__)
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, index: int) -> LabeledImage:
        return replace(self.images[index], mask=self.masks[index])


def with_strokes(dataset: LabeledImages, size: tuple[int, int]) -> Relabeled:
    """Labelled images with masks resized to `(height, width)` so that thin strokes survive.

    Raises [`UserError`] if fewer than two classes are labelled.
    """
    masks = [resize_strokes(dataset[i].mask, size, dataset.ignore_index) for i in range(len(dataset))]
    present = {int(label) for mask in masks for label in np.unique(mask)} - {dataset.ignore_index}
    if len(present) < 2:
        raise UserError(f"Pixels of two classes have to be labelled at least, found {sorted(present) or 'none'}.")
    return Relabeled(dataset, masks)


def resize_strokes(mask: np.ndarray, size: tuple[int, int], ignore_index: int) -> np.ndarray:
    """Nearest-neighbour resize of class ids, `[h, w]` to `[H, W]` uint8, that keeps thin labels."""
    resized = resize_mask(mask, size)
    y, x = np.nonzero(mask != ignore_index)
    at = (y * size[0] // mask.shape[0], x * size[1] // mask.shape[1])
    scattered = np.full(size, ignore_index, np.uint8)
    scattered[at] = mask[y, x]
    return np.where(resized == ignore_index, scattered, resized)


def pseudo_labels(
    head: PixelClassifierEnsemble,
    table: ActivationTable,
    mirrored: ActivationTable | None,
    strokes: LabeledImages,
    recipe: Recipe,
) -> Relabeled:
    """Extends strokes by confident predictions of a head fitted on them, under estimated class priors.

    Args:
        head ([`PixelClassifierEnsemble`]): Fitted on `table` by `recipe`.
        table ([`ActivationTable`]): The strokes' images, each with its augmented views after it.
        mirrored ([`ActivationTable`], *optional*): Of the mirror images alone, if the head sees them.
        strokes ([`LabeledImages`]): See [`with_strokes`].
        recipe ([`Recipe`]): How the head was trained.
    """
    entries, every = range(len(table.info)), len(table.labels) // len(strokes)
    found = []
    for i in range(len(strokes)):
        other = mirrored.image(i, entries, head.device) if mirrored is not None else None
        output = head.predict(table.image(i * every, entries, head.device), None, True, mirrored=other)
        found.append(output.probabilities[0].cpu())
    probabilities = torch.stack(found)  # [N,C,H,W]
    counts = torch.bincount(table.labels.flatten().long(), minlength=256)[: probabilities.shape[1]].float().cpu()
    present = counts.nonzero().flatten()  # a class that no stroke has cannot be told from the others
    assumed = (counts[present] / counts.sum()) ** (1 - recipe.balance)
    confidence, best = correct_shares(probabilities[:, present], assumed / assumed.sum()).max(1)
    best = present[best]
    masks = []
    for i, (sure, label) in enumerate(zip(confidence.numpy() >= CONFIDENCE, best.numpy())):
        mask = strokes[i].mask
        free = (mask == strokes.ignore_index) & sure
        masks.append(np.where(free, label, mask).astype(np.uint8))
    return Relabeled(strokes, masks)


def correct_shares(probabilities: torch.Tensor, assumed: torch.Tensor) -> torch.Tensor:
    """Corrects probabilities `[N, C, H, W]` to the class priors that [`estimate_shares`] finds in them."""
    flat = probabilities.movedim(1, -1).flatten(0, -2)  # [N*H*W,C]
    shares = estimate_shares(flat[:: max(1, len(flat) // 2**17)], assumed)
    corrected = probabilities * (shares / assumed)[:, None, None]
    return corrected / corrected.sum(1, keepdim=True).clamp(min=1e-12)


def estimate_shares(probabilities: torch.Tensor, assumed: torch.Tensor, iterations: int = 60) -> torch.Tensor:
    """Estimates class priors on unlabelled pixels by expectation maximisation; no class is assumed absent.

    Args:
        probabilities (`torch.Tensor`): `[U, C]`, of a classifier trained with the class priors `assumed`.
        assumed (`torch.Tensor`): `[C]`, above 0, 1 in sum; what is returned is so too.
        iterations (`int`): Of the algorithm.
    """
    shares = assumed
    for _ in range(iterations):
        corrected = probabilities * (shares / assumed)
        found = (corrected / corrected.sum(1, keepdim=True).clamp(min=1e-12)).mean(0)
        shares = (1 - EVEN) * found + EVEN / len(found)
    return shares
