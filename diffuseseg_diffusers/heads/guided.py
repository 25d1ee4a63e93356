# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Masks that follow the edges of the picture: class probabilities, filtered with the picture as the guide.

This is the joint bilateral filter (Petschnigg et al. and Eisemann and Durand, SIGGRAPH 2004). On probabilities that
were upsampled from a model's lower resolution, it is joint bilateral upsampling (Kopf et al., SIGGRAPH 2007).
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..jobs.errors import UserError
from .decisions import Decisions, winners


STRIP = 2**18  # pixels of the classes that a strip holds: 1 MB of float32 stays in the cache of a CPU
SPATIAL, COLOR = (1.0, 2.0, 4.0), (0.03, 0.06, 0.12, 0.25)  # what is tried
LEAST_GAIN = 0.002  # in mean IoU, for which the filter's time is spent


def joint_bilateral(probabilities: torch.Tensor, picture: torch.Tensor, spatial: float, color: float) -> torch.Tensor:
    """The joint bilateral filter: each pixel becomes a weighted mean of those around it that look alike.

    A neighbour at distance `d` whose channels differ by `e`, root mean square over the channels, has the weight
    `exp(-d² / 2 spatial² - e² / 2 color²)`. Neighbours are those up to `2 * spatial` rows and columns away that lie in
    the picture.

    Args:
        probabilities (`torch.Tensor`): `[C, H, W]`.
        picture (`torch.Tensor`): `[c, H, W]` in [0, 1], of any number of channels.
        spatial (`float`): Standard deviation over space, in pixels.
        color (`float`): Standard deviation over differences of values, which are in [0, 1].

    Returns:
        `torch.Tensor`: `[C, H, W]` float32; probabilities still add up to 1.
    """
    classes, height, width = probabilities.shape
    radius = max(1, math.floor(2 * spatial + 0.5))
    rows = max(2 * radius, STRIP // (classes * width))
    found = torch.empty(classes, height, width, dtype=torch.float32, device=probabilities.device)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(0, top - radius)
        strip = slice(first, min(height, bottom + radius))
        p, x = probabilities[:, strip].float(), picture[:, strip].float()
        total, weights = p.clone(), torch.ones_like(x[0])  # a pixel's own weight is 1
        for dy, dx in _shifts(radius):
            here, there = _overlap(p.shape[1:], dy, dx)
            difference = (x[:, *here] - x[:, *there]).square_().mean(0)  # [h,w]
            space = (dy * dy + dx * dx) / (2 * spatial**2)
            weight = difference.mul_(-1 / (2 * color**2)).sub_(space).exp_()  # [h,w], the same both ways
            total[:, *here].addcmul_(weight, p[:, *there])
            total[:, *there].addcmul_(weight, p[:, *here])
            weights[here] += weight
            weights[there] += weight
        own = slice(top - first, bottom - first)
        torch.div(total[:, own], weights[own], out=found[:, top:bottom])
    return found


def _shifts(radius: int) -> Iterator[tuple[int, int]]:
    """One of each pair of opposite shifts within a window."""
    for dy, dx in itertools.product(range(radius + 1), range(-radius, radius + 1)):
        if (dy, dx) > (0, 0):
            yield dy, dx


def _overlap(size: Sequence[int], dy: int, dx: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rows and columns of the pixels whose neighbour `dy` below and `dx` to the right exists, and of the neighbours."""
    height, width = size
    dy = min(dy, height)
    dx = max(-width, min(dx, width))
    here = slice(0, height - dy), slice(max(0, -dx), width - max(0, dx))
    there = slice(dy, height), slice(max(0, dx), width - max(0, -dx))
    return here, there


def check_guided(widths: Any) -> tuple[float, float] | None:
    """Widths as a config holds them, `[spatial, color]` or `None`; raises [`UserError`] for anything else."""
    if widths is None:
        return None
    try:
        spatial, color = map(float, widths)
        valid = 0.1 <= spatial <= 32 and 1e-3 <= color <= 100
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise UserError(
            f"The widths of the guided masks are [spatial, color], 0.1 to 32 pixels and 0.001 to 100, got "
            f"{widths!r:.60}; repair or remove them."
        )
    return spatial, color


@torch.no_grad()
def choose_guided(
    probabilities: Sequence[torch.Tensor],
    pictures: Sequence[torch.Tensor],
    masks: Sequence[torch.Tensor | np.ndarray],
    ignore_index: int = 255,
    decisions: Decisions | None = None,
) -> tuple[float, float] | None:
    """The widths of [`joint_bilateral`] that give held-out images the highest mean IoU, or `None`: 0.002 is too little.

    Args:
        probabilities (sequence of `torch.Tensor`): `[C, H, W]` each, of a model that has not seen the image.
        pictures (sequence of `torch.Tensor`): `[c, H, W]` each in [0, 1].
        masks (sequence of `torch.Tensor` or `np.ndarray`): `[H, W]` class ids each.
        ignore_index (`int`, defaults to 255): Id of pixels without a label.
        decisions ([`Decisions`], *optional*): Which class a pixel gets, if not the likeliest.
    """
    labels = [torch.as_tensor(mask).long() for mask in masks]
    best, highest = None, _mean_iou(probabilities, labels, ignore_index, decisions) + LEAST_GAIN
    for spatial, color in itertools.product(SPATIAL, COLOR):
        filtered = [joint_bilateral(p, x, spatial, color) for p, x in zip(probabilities, pictures, strict=True)]
        score = _mean_iou(filtered, labels, ignore_index, decisions)
        if score > highest:
            best, highest = (spatial, color), score
    return best


def _mean_iou(
    probabilities: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    ignore_index: int,
    decisions: Decisions | None,
) -> float:
    """Mean IoU over the classes that occur in labels or masks."""
    classes = len(probabilities[0])
    counts = torch.zeros(classes, classes, dtype=torch.int64)  # [label,found]
    for p, own in zip(probabilities, labels, strict=True):
        known = own != ignore_index
        found = winners(p, decisions, 0).cpu()[known]
        counts += torch.bincount(own[known] * classes + found, minlength=classes**2).view(classes, classes)
    inside, union = counts.diag(), counts.sum(0) + counts.sum(1) - counts.diag()
    return float((inside / union)[union > 0].mean())
