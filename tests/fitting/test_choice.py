# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.fitting.choice import (
    HeldOut,
    choose_votes,
    confusion,
    estimate,
    ious,
    mean_iou,
    sample_pixels,
    tail,
    vote,
)


def some(labels: np.ndarray, right: np.ndarray, sure: float, classes: int = 3) -> np.ndarray:
    """Probabilities that name the label where `right`, and the next class elsewhere."""
    said = np.where(right, labels, (labels + 1) % classes)
    p = np.full((len(labels), classes), (1 - sure) / (classes - 1), np.float32)
    p[np.arange(len(labels)), said] = sure
    return p


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, 6000)


def test_iou_is_that_of_the_plain_formula(labels):
    predicted = np.random.default_rng(1).integers(0, 3, len(labels))
    plain = [((labels == c) & (predicted == c)).sum() / ((labels == c) | (predicted == c)).sum() for c in range(3)]
    np.testing.assert_allclose(ious(confusion(labels, predicted, 3)), plain)


def test_a_class_that_nobody_labelled_does_not_count():
    labels = np.array([0, 0, 1, 1])
    p = np.eye(3, dtype=np.float32)[[0, 2, 1, 1]]
    assert mean_iou(labels, p) == pytest.approx((1 / 2 + 1) / 2)


def test_candidates_that_err_elsewhere_vote_together(labels):
    rng = np.random.default_rng(2)
    place = rng.random(len(labels))
    # Each of the three errs on a third of its own; where one errs, the two others outvote it.
    each = [some(labels, ~((place >= i / 3) & (place < (i + 1) / 3)), 0.8) for i in range(3)]
    votes = choose_votes(labels, np.stack(each))
    assert (votes > 0).all()
    assert mean_iou(labels, vote(np.stack(each), votes)) > max(mean_iou(labels, p) for p in each) + 0.2


def test_a_candidate_that_adds_nothing_has_no_vote(labels):
    rng = np.random.default_rng(3)
    good, noise = some(labels, rng.random(len(labels)) < 0.9, 0.9), some(labels, rng.random(len(labels)) < 0.33, 0.6)
    votes = choose_votes(labels, np.stack([noise, good, good]))
    assert votes[0] == 0 and votes[2] == 0  # of equals the first


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), candidates=st.integers(1, 4))
def test_the_choice_is_never_worse_than_the_best_alone(seed, candidates):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 300)
    p = rng.dirichlet(np.ones(3), (candidates, 300)).astype(np.float32)
    votes = choose_votes(labels, p)
    assert votes.sum() >= 1
    assert mean_iou(labels, vote(p, votes)) >= max(mean_iou(labels, own) for own in p) - 1e-6


def test_the_estimate_is_of_choices_made_on_other_folds(labels):
    folds = np.arange(len(labels)) % 2
    # One candidate is perfect on the first fold and wrong on the second, the other the other way round: chosen on
    # either, it fails on the other, though each fold's best is perfect.
    p = np.stack([some(labels, folds == 0, 0.9), some(labels, folds == 1, 0.9)])
    found = estimate(HeldOut(p, labels, np.arange(len(labels)) // 600, folds), lambda y, q: choose_votes(y, q, 1))
    assert found.mean_iou == pytest.approx(0)
    assert found.units == 10


def test_the_interval_holds_the_estimate_and_narrows_with_pictures(labels):
    rng = np.random.default_rng(4)
    right = rng.random(len(labels)) < 0.8
    right[:2000] &= rng.random(2000) < 0.5  # pictures differ
    p, folds = some(labels, right, 0.9)[None], np.arange(len(labels)) * 3 // len(labels)
    few = estimate(HeldOut(p, labels, np.arange(len(labels)) * 4 // len(labels), folds))
    many = estimate(HeldOut(p, labels, rng.integers(0, 100, len(labels)), folds))
    assert few.low <= few.mean_iou <= few.high and few.units == 4
    assert many.high - many.low < few.high - few.low


def test_a_sample_of_pixels_has_each_mask_by_its_labels():
    masks = [np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8), np.ones((40, 20), np.uint8)]
    masks[0][:10] = 255
    first, none, last = sample_pixels(masks, 255, 500)
    assert len(none) == 0 and len(first) == 100 and len(last) == 400
    assert (masks[0].ravel()[first] == 0).all() and len(set(last.tolist())) == 400


def test_intervals_of_few_pictures_are_as_wide_as_those_of_t():
    normal = statistics.NormalDist()
    for units, t in ((6, 2.571), (10, 2.262), (30, 2.045)):
        assert tail(units) == pytest.approx(100 * normal.cdf(-math.sqrt(units / (units - 1)) * t), rel=0.1)
    assert tail(2) < 1e-6 and tail(10**6) == pytest.approx(2.5, abs=0.01)
