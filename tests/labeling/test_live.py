# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from diffuseseg_diffusers.labeling import live
from diffuseseg_diffusers.labeling.live import LiveHead, Sampled, balanced_weights


def sampled(count=60, dimensions=5, classes=3, strokes=12, seed=0) -> Sampled:
    """Clouds of pixels, one for each class; every stroke is of one class."""
    generator = torch.Generator().manual_seed(seed)
    stroke = torch.arange(count) % strokes
    labels = stroke % classes
    centres = 2 * torch.randn(classes, dimensions, generator=generator)
    features = centres[labels] + torch.randn(count, dimensions, generator=generator)
    return Sampled(features, labels * 10, stroke + 1, features)


def objective(solution, x, y, weights, classes):
    """The loss of one member, pixel by pixel, in double precision."""
    w = solution.reshape(-1, classes)
    total = live.PENALTY / 2 * (w[:-1] ** 2).sum()
    for xi, yi, vi in zip(x, y, weights):
        logits = xi @ w[:-1] + w[-1]
        total += vi * (np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[yi])
    return total


def test_a_member_minimises_the_plain_formula(monkeypatch):
    monkeypatch.setattr(live, "TRUST", 0.0)
    known = sampled()
    head = LiveHead.fit(known, known.features, members=1)
    y, stroke = known.labels // 10, known.strokes - 1
    draws = live._random_weights(0, 0, known.strokes)
    weights = balanced_weights(y, stroke, 3, draws[None])[0].double().numpy()
    x = known.features.double().numpy()
    arguments = (x, y.numpy(), weights, 3)
    best = minimize(objective, np.zeros(18), arguments, options={"gtol": 1e-8})
    own = torch.cat([head.weight[0], head.bias[:1]]).double().numpy()
    assert objective(own, *arguments) <= best.fun + 1e-4
    logits = x @ best.x.reshape(6, 3)[:-1] + best.x.reshape(6, 3)[-1]
    expected = torch.from_numpy(logits).softmax(1).float()
    assert torch.allclose(head.probabilities(known.features)[0], expected, atol=0.02)


def test_classes_count_equally_and_strokes_within_a_class():
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    stroke = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = balanced_weights(y, stroke, 2, torch.ones(1, 6))[0]
    assert torch.allclose(weights, torch.tensor([1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4, 1 / 4]))
    doubled = balanced_weights(y, stroke, 2, torch.tensor([[2.0, 2, 2, 1, 1, 1]]))[0]
    assert torch.allclose(doubled, torch.tensor([1 / 9, 1 / 9, 1 / 9, 1 / 6, 1 / 4, 1 / 4]))


def test_a_longer_stroke_over_the_same_changes_nothing():
    known = sampled()
    first = known.strokes == 1
    longer = Sampled(*(torch.cat([column, column[first], column[first]]) for column in vars(known).values()))
    heads = [LiveHead.fit(each, known.features) for each in (known, longer)]
    assert torch.allclose(*(head.probabilities(known.features) for head in heads), atol=2e-3)


def test_another_stroke_leaves_the_random_weights_of_the_others():
    before = live._random_weights(0, 3, torch.tensor([1, 1, 4]))
    after = live._random_weights(0, 3, torch.tensor([1, 1, 2, 4, 9]))
    assert torch.equal(before, after[[0, 1, 3]]) and before[0] == before[1] != before[2]


def test_the_same_strokes_give_the_same_head():
    heads = [LiveHead.fit(sampled(), sampled().features) for _ in range(2)]
    assert torch.equal(heads[0].weight, heads[1].weight) and torch.equal(heads[0].bias, heads[1].bias)


def test_rare_classes_are_found_to_be_rare():
    """Strokes are as many of each class; of the pixels around them one in twenty is of the last."""
    known, many = sampled(), sampled(600, seed=0)
    labels = many.labels // 10
    keep = (labels != 2) | (torch.arange(600) % 15 == 2)
    head = LiveHead.fit(known, many.features[keep])
    share = float((labels[keep] == 2).float().mean())
    assert share < 0.12 and abs(float(head.shares[2]) - share) < 0.05
    assert head.shares.sum() == pytest.approx(1)


def test_prediction_is_the_mean_and_its_entropy_with_the_divergence():
    known = sampled()
    head = LiveHead.fit(known, known.features)
    assert head.classes == [0, 10, 20]
    mean, uncertainty = head.predict(known.features.half())
    p = head.probabilities(known.features.half().float())
    entropy = -(p.mean(0) * p.mean(0).log()).sum(1)
    divergence = (p * (p / p.mean(0)).log()).sum(2).mean(0)
    assert torch.allclose(mean, p.mean(0), atol=1e-6)
    assert torch.allclose(uncertainty, entropy + divergence, atol=1e-4)
    assert (uncertainty >= 0).all() and uncertainty.max() <= np.log(3) + np.log(live.MEMBERS)
    right = torch.tensor(head.classes)[mean.argmax(1)] == known.labels
    assert right.float().mean() > 0.9
