# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Operating points: weights of classes with which one is found as often, or as surely, as it is asked for.

For rare classes mean IoU is not always what counts: an inspection may have to find nine defects of ten. Weights are
chosen on the labelled pictures, each segmented by a head that did not learn from it, because a head is overconfident on
pictures that it learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..datasets.crops import pictures_of
from ..datasets.labeled import LabeledImages
from ..jobs.errors import UserError
from .classes import Classes
from .cross_validation import WITHIN, Folds, LabeledActivations, fit_groups, held_out_probabilities, others
from .decisions import Decisions, winners
from .recipes import Recipe


MEASURES = ("recall", "precision")
FOLDS = 5  # at most
LARGEST = 1e6  # ratio of two weights at most
ROUNDS = 5  # over the targets of several classes, each of which moves the others


@dataclass(frozen=True)
class Target:
    """What is asked of a class: a share of its pixels that are found (recall), or of those given to it that are its
    own (precision)."""

    id: int
    measure: str  # one of `MEASURES`
    value: float  # above 0 and below 1

    @classmethod
    def parse(cls, text: str, classes: Classes) -> "Target":
        """From `recall=0.9`, of the second of two classes, or `NAME:recall=0.9`.

        Raises:
            UserError: It is none, or of no class.
        """
        name, colon, rest = text.rpartition(":")
        measure, _, number = rest.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if measure not in MEASURES or not 0 < value < 1:
            raise UserError(f"--target is recall=SHARE or precision=SHARE, above 0 and below 1, got {text!r}.")
        if not colon and classes.number == 2:
            return cls(1, measure, value)
        if name not in classes.names:
            raise UserError(f"--target {text} is of no class; write NAME:{rest}, of {', '.join(classes.names)}.")
        return cls(list(classes.names).index(name), measure, value)


def parse_targets(texts: Sequence[str], dataset: LabeledImages) -> list[Target]:
    """Targets as they are typed, before anything is fitted; see [`Target.parse`].

    Raises:
        UserError: One is none, two are of one class, or there is one picture alone.
    """
    targets = [Target.parse(text, Classes.of(dataset)) for text in texts]
    if len({target.id for target in targets}) < len(targets):
        raise UserError(f"--target {' '.join(texts)} asks twice of one class; give one target for a class.")
    if targets and len(dataset) < 2:
        raise UserError("--target is chosen on pictures that are held out in turn; label two of them at least.")
    return targets


def operating_decisions(p: torch.Tensor, labels: torch.Tensor, targets: Sequence[Target]) -> Decisions:
    """The decisions that reach the targets on pixels, and no more than that.

    Args:
        p (`torch.Tensor`): `[C, P]` float32, class probabilities of pixels that the model did not learn from.
        labels (`torch.Tensor`): `[P]`, their class ids.
        targets (sequence of [`Target`]): One for a class at most. A precision that is not reached is approached.

    Raises:
        UserError: No pixel is of a target's class.
    """
    weights = torch.ones(len(p), dtype=torch.float64)
    for _ in range(ROUNDS if len(targets) > 1 else 1):
        for target in targets:
            weights[target.id] = _weight(p, labels, target, weights)
    union = (weights.max() / weights).clamp(max=LARGEST)  # a gain is the probability over it
    return Decisions((0.0,) * len(p), tuple((union / union.max()).tolist()))


def _weight(p: torch.Tensor, labels: torch.Tensor, target: Target, weights: torch.Tensor) -> float:
    """The weight of a target's class, given those of the others."""
    own = labels == target.id
    if not own.any():
        raise UserError("No labelled pixel is of the class of a --target; leave it out, or label one.")
    rest = p.double() * weights[:, None]
    rest[target.id] = 0
    odds = p[target.id].double() / rest.amax(0).clamp(min=1e-12)  # [P]; the class wins above 1 / weight
    order = odds.argsort(descending=True)
    right = own[order].cumsum(0).double()  # [P], of its own among the first so many
    if target.measure == "recall":
        last = int((right >= target.value * right[-1]).nonzero()[0])
    else:
        precision = right / torch.arange(1, len(right) + 1)
        enough = (precision >= target.value).nonzero()
        last = int(enough[-1] if len(enough) else precision.argmax())
    threshold = float(odds[order[last]]) * (1 - 1e-6)
    return min(max(1 / max(threshold, 1e-12), 1 / LARGEST), LARGEST)


def fit_operating_point(
    pipe: Any,
    dataset: LabeledImages,
    targets: Sequence[Target],
    recipe: Recipe,
    seed: int = 0,
    batch_size: int | None = None,
    flip: bool | None = None,
) -> tuple[Decisions, list[str]]:
    """Decisions for targets, by cross-validation over the labelled pictures, and a line on what each costs.

    Args:
        pipe: A pipeline with its head, whose features are read.
        dataset ([`LabeledImages`]): What the head was fitted on.
        targets (sequence of [`Target`]): What is asked for.
        recipe ([`Recipe`]): That of the head; shortened by [`Recipe.for_studies`].
        seed (`int`), batch_size (`int`, *optional*), flip (`bool`, *optional*): As in [`fit_segmentation_head`].

    Raises:
        UserError: No pixel is of a target's class.
    """
    config, recipe, classes = pipe.segmentation_head.config, recipe.for_studies(), Classes.of(dataset)
    activations = LabeledActivations.extract(pipe.head_extractor(), dataset, recipe, seed, batch_size, flip=flip)
    folds = Folds.of(pictures_of(dataset), FOLDS, seed)
    own = others(folds.held_out)
    heads = fit_groups(activations, config.blocks, config.timesteps, classes, own, recipe, 2, seed)
    p, labels = held_out_probabilities(heads, activations, folds.held_out)
    decisions = operating_decisions(p, labels, targets)
    lines = [describe_target(p, labels, target, decisions, classes.names[target.id]) for target in targets]
    return decisions, lines + [WITHIN] * folds.within


def describe_target(p: torch.Tensor, labels: torch.Tensor, target: Target, decisions: Decisions, name: str) -> str:
    """What was reached on held-out pixels, beside what the likeliest classes reach."""
    own = labels == target.id

    def measure(given: Decisions | None) -> tuple[float, float, float]:
        found = winners(p, given, 0) == target.id
        both = float((found & own).sum())
        return both / max(1, int(own.sum())), both / max(1, int(found.sum())), float(found.float().mean())

    (recall, precision, share), before = measure(decisions), measure(None)
    reached = {"recall": recall, "precision": precision}[target.measure] >= target.value
    return (
        f"{name}: {target.measure} {target.value:g} is {'' if reached else 'not '}reached on held-out labelled "
        f"pictures: recall {recall:.3f} (likeliest class: {before[0]:.3f}), precision {precision:.3f} "
        f"({before[1]:.3f}), {share:.2%} of the pixels ({before[2]:.2%})."
    )
