# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which candidates vote, and with which weight, by what they say of pictures that they did not learn from.

Greedy selection of ensembles with replacement (Caruana et al., "Ensemble Selection from Libraries of Models", ICML
2004) for the mean IoU of mean probabilities, and an estimate of it by nested cross-validation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


ROUNDS = 8  # votes that are given out
WORTH = 0.002  # mean IoU that a further candidate has to bring
RESAMPLED = 1000  # bootstrap samples of an interval
FEW = (
    5  # pictures, of which even the range holds the truth less often than an interval should: of four, in 7 of 8 cases
)


@dataclass
class HeldOut:
    """What candidates say of labelled pixels that were held out from each of them.

    Args:
        probabilities (`np.ndarray`): `[candidates, pixels, classes]` float32.
        labels (`np.ndarray`): `[pixels]` int64, the class of each.
        pieces (`np.ndarray`): `[pixels]` int64, the picture or tile that a pixel is of.
        folds (`np.ndarray`): `[pixels]` int64, the fold that it was held out in.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    pieces: np.ndarray
    folds: np.ndarray


@dataclass
class Estimate:
    """What a choice is expected to be worth on pictures that nobody labelled.

    Args:
        mean_iou (`float`): 0 to 1, by nested cross-validation: of each fold by the choice made on the others.
        low, high (`float`): 95 % interval, by resampling whole pictures, or tiles where there are fewer than three; of
            fewer than `FEW` about their range, which is too narrow.
        per_class_iou (list of `float` or `None`): Of each class; `None` where no pixel has it.
        units (`int`): How many pictures or tiles were resampled.
    """

    mean_iou: float
    low: float
    high: float
    per_class_iou: list[float | None]
    units: int


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class that were taken for each, `[classes, classes]` int64, rows by label."""
    counts = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def ious(matrix: np.ndarray) -> np.ndarray:
    """IoU of each class of a confusion matrix `[..., classes, classes]`; NaN for a class that nobody labelled."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    labelled, predicted = matrix.sum(-1), matrix.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(labelled > 0, hits / (labelled + predicted - hits), np.nan)


def mean_iou(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean IoU, 0 to 1, of the likeliest classes `[pixels, classes]` over the classes that are labelled."""
    matrix = confusion(labels, probabilities.argmax(1), probabilities.shape[1])
    return float(np.nanmean(ious(matrix)))


def choose_votes(
    labels: np.ndarray, probabilities: np.ndarray, rounds: int = ROUNDS, worth: float = WORTH
) -> np.ndarray:
    """Votes of each candidate, `[candidates]` int64: the best alone, then the one after the other that helps most.

    Args:
        labels (`np.ndarray`): `[pixels]` int64.
        probabilities (`np.ndarray`): `[candidates, pixels, classes]`.
        rounds (`int`): Votes at most.
        worth (`float`): Gain in mean IoU for which a candidate joins that has no vote yet; one that has needs any.
    """
    votes = np.zeros(len(probabilities), np.int64)
    total, best = np.zeros_like(probabilities[0]), 0.0
    for given in range(rounds):
        scores = np.array([mean_iou(labels, total + own) for own in probabilities])
        # The first candidates are the plainest: of equals they are taken.
        needed = np.where(votes > 0, 0.0, worth) if given else np.zeros(len(votes))
        gains = scores - best - needed
        chosen = int(gains.argmax())
        if given and gains[chosen] <= 0:
            break
        votes[chosen] += 1
        total, best = total + probabilities[chosen], scores[chosen]
    return votes


def vote(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Weighted mean of candidates, `[pixels, classes]`."""
    return np.tensordot(votes / votes.sum(), probabilities, axes=1)


def estimate(
    held_out: HeldOut, choose: Callable[[np.ndarray, np.ndarray], np.ndarray] = choose_votes, seed: int = 0
) -> Estimate:
    """What the procedure is worth: each fold by the votes that were chosen on all others.

    Args:
        held_out ([`HeldOut`]): Of all candidates.
        choose (`Callable`): Labels and probabilities to votes.
        seed (`int`): Of the resampling.
    """
    number = held_out.probabilities.shape[2]
    matrices: dict[int, np.ndarray] = {}
    for fold in np.unique(held_out.folds):
        inside = held_out.folds == fold
        rest = ~inside if (~inside).any() else inside
        votes = choose(held_out.labels[rest], held_out.probabilities[:, rest])
        predicted = vote(held_out.probabilities[:, inside], votes).argmax(1)
        for piece in np.unique(held_out.pieces[inside]):
            own = held_out.pieces[inside] == piece
            matrices[int(piece)] = confusion(held_out.labels[inside][own], predicted[own], number)
    each = np.stack(list(matrices.values()))  # [units,C,C]
    per_class = ious(each.sum(0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(each), np.full(len(each), 1 / len(each)), RESAMPLED)  # [samples,units]
    sampled = np.tensordot(drawn, each, axes=1)  # [samples,C,C]
    low, high = np.percentile(np.nanmean(ious(sampled), axis=-1), (tail(len(each)), 100 - tail(len(each))))
    shown = [None if np.isnan(x) else float(x) for x in per_class]
    return Estimate(float(np.nanmean(per_class)), float(low), float(high), shown, len(each))


def tail(units: int) -> float:
    """Percentile at which a 95 % interval of resampled means of so many units begins: 2.5 of many, less of few.

    Plain percentiles are too narrow for few units; these are Hesterberg's expanded ones ("What Teachers Should Know
    About the Bootstrap", The American Statistician, 2015), as wide as those of Student's t.
    """
    free, z = max(1, units - 1), NormalDist().inv_cdf(0.975)
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)  # Cornish and Fisher
    return 100 * NormalDist().cdf(-math.sqrt(units / free) * t)


def sample_pixels(masks: Sequence[np.ndarray], ignore_index: int, limit: int, seed: int = 0) -> list[np.ndarray]:
    """Places of labelled pixels in the flattened masks, at random, about `limit` in all; every pixel is as likely."""
    rng = np.random.default_rng(seed)
    labelled = [np.flatnonzero(mask.ravel() != ignore_index) for mask in masks]
    share = min(1.0, limit / max(1, sum(map(len, labelled))))
    return [np.sort(rng.choice(own, round(share * len(own)), replace=False)) for own in labelled]
