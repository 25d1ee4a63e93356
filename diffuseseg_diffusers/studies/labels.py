# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which features matter: the studies of Baranchuk et al. (ICLR 2022), sections 3 and 4, on anyone's labelled images.

Every activation is computed once, into an [`ActivationTable`] of all blocks and timesteps; a cell of a study trains
small classifiers on some of its columns. Classifiers of several folds, or of several draws of labelled images, are the
members of one ensemble and train side by side.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..heads.cross_validation import Classes, fit_groups, score
from ..heads.recipes import RECIPES
from ..heads.table import ActivationTable


def class_sizes(labels: torch.Tensor, classes: Classes) -> tuple[list[float], list[bool]]:
    """Mean share of the labelled area of each class, and whether it is small: below the median (paper, section 3).

    Args:
        labels (`torch.Tensor`): `[N, H, W]` uint8.
        classes ([`Classes`]): What is told apart.
    """
    counts = torch.bincount(labels.flatten().long(), minlength=256)[: classes.number].double()
    shares = counts / counts.sum()
    return shares.tolist(), (shares < shares.quantile(0.5)).tolist()


def label_draws(num_images: int, count: int, draws: int, seed: int = 0) -> list[list[int]]:
    """Which images several draws of `count` labelled ones hold."""
    rng = np.random.default_rng([seed, count])
    return [sorted(rng.permutation(num_images)[:count].tolist()) for _ in range(draws)]


def label_efficiency(
    train: ActivationTable,
    test: ActivationTable,
    blocks: Sequence[int],
    timesteps: Sequence[int],
    classes: Classes,
    count: int,
    draws: int = 5,
    num_members: int = 10,
    seed: int = 0,
) -> dict:
    """Mean IoU on test images with a number of labelled images, drawn several times.

    Args:
        train ([`ActivationTable`]), test ([`ActivationTable`]): Activations and labels of the two splits.
        blocks (sequence of `int`), timesteps (sequence of `int`): What the heads read.
        classes ([`Classes`]): What they tell apart.
        count (`int`): Labelled images of a draw.
        draws (`int`, defaults to 5): How many draws.
        num_members (`int`, defaults to 10): Members of a head.
        seed (`int`): Of the draws and the heads.

    Returns:
        `dict`: `mean_iou`, a list with that of each draw; `images`, what was drawn.
    """
    images = label_draws(len(train.labels), count, draws, seed)
    heads = fit_groups(train, blocks, timesteps, classes, images, num_members, RECIPES["fast"], seed)
    everything = [range(len(test.labels))]
    return {"mean_iou": [score([h], test, everything, classes)["mean_iou"] for h in heads], "images": images}
