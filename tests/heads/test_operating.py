# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.heads.decisions import winners
from diffuseseg_diffusers.heads.operating import (
    Target,
    describe_target,
    fit_operating_point,
    operating_decisions,
    parse_targets,
)
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import QUICK, drawn_dataset, make_pipeline


NAMES = ("good", "scratch", "hole")
CLASSES = Classes(3, NAMES)


def rare_pixels(number: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities `[3, P]` in which the second and third class, 4 % and 2 % of the pixels, hardly ever win."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([0.94, 0.04, 0.02]), number, replacement=True, generator=generator)
    logits = torch.randn(3, number, generator=generator) + 2.0 * torch.nn.functional.one_hot(labels, 3).T
    return (logits + torch.tensor([3.0, 0.0, -1.0])[:, None]).softmax(0), labels


def recall_and_precision(p, labels, decisions, id):
    found, own = winners(p, decisions, 0) == id, labels == id
    return float((found & own).sum() / own.sum()), float((found & own).sum() / found.sum().clamp(min=1))


def test_a_recall_is_reached_and_not_overshot():
    p, labels = rare_pixels()
    assert recall_and_precision(p, labels, None, 1)[0] < 0.5
    for value in (0.3, 0.9):  # less than that of the likeliest classes, and more
        recall, _ = recall_and_precision(p, labels, operating_decisions(p, labels, [Target(1, "recall", value)]), 1)
        assert value <= recall < value + 0.005


def test_a_precision_is_reached_with_as_many_pixels_as_go():
    p, labels = rare_pixels()
    decisions = operating_decisions(p, labels, [Target(1, "precision", 0.6)])
    recall, precision = recall_and_precision(p, labels, decisions, 1)
    assert 0.6 <= precision < 0.61 and recall > 0
    tighter = operating_decisions(p, labels, [Target(1, "precision", 0.8)])
    assert recall_and_precision(p, labels, tighter, 1)[0] < recall


def test_targets_of_two_classes_hold_together_and_the_line_says_what_they_cost():
    p, labels = rare_pixels()
    targets = [Target(1, "recall", 0.8), Target(2, "recall", 0.7)]
    decisions = operating_decisions(p, labels, targets)
    for target in targets:
        assert abs(recall_and_precision(p, labels, decisions, target.id)[0] - target.value) < 0.02
    said = describe_target(p, labels, Target(1, "recall", 0.5), decisions, "scratch")
    recall, precision = recall_and_precision(p, labels, decisions, 1)
    assert said.startswith("scratch: recall 0.5 is reached") and f"recall {recall:.3f}" in said
    assert f"precision {precision:.3f}" in said
    with pytest.raises(UserError, match="No labelled pixel"):
        operating_decisions(p, torch.zeros_like(labels), targets)


def test_targets_are_read_as_they_are_typed():
    assert Target.parse("recall=0.9", Classes(2, ("good", "bad"))) == Target(1, "recall", 0.9)
    assert Target.parse("hole:precision=.5", CLASSES) == Target(2, "precision", 0.5)
    for wrong in ("recall=0.9", "crack:recall=0.9", "hole:iou=0.9", "hole:recall=2", "hole:recall=much", "hole"):
        with pytest.raises(UserError, match="--target"):
            Target.parse(wrong, CLASSES)
    with pytest.raises(UserError, match="asks twice of one class"):
        parse_targets(["bar:recall=0.9", "bar:precision=0.9"], drawn_dataset(2))
    with pytest.raises(UserError, match="label two of them at least"):
        parse_targets(["bar:recall=0.9"], drawn_dataset(1))


def test_a_head_gets_its_operating_point_from_pictures_that_are_held_out():
    pipe, dataset = make_pipeline(head=True), drawn_dataset(4)
    decisions, (said,) = fit_operating_point(pipe, dataset, [Target(2, "recall", 0.95)], QUICK)
    assert len(decisions.union) == 3 and said.startswith("bar: recall 0.95 is reached on held-out labelled pictures")
    pipe.decisions = decisions
    assert pipe.segment(dataset[0].image, output_type="np").masks[0].shape == (16, 16)
