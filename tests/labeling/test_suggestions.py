# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch

from diffuseseg_diffusers.labeling import suggestions
from diffuseseg_diffusers.labeling.live import LiveHead, Sampled
from diffuseseg_diffusers.labeling.suggestions import Advice, Rule


def clouds(*counts: int, seed: int = 0, near: float = 0.1) -> torch.Tensor:
    """So many points around each of some places that are far apart."""
    generator = torch.Generator().manual_seed(seed)
    centres = 5 * torch.eye(6)
    parts = [centres[i] + near * torch.randn(n, 6, generator=generator) for i, n in enumerate(counts)]
    return torch.cat(parts)


@pytest.fixture
def rule():
    """Picture 0 is like half of picture 2, picture 1 is alone, picture 2 has most."""
    return Rule([clouds(20), clouds(0, 20), clouds(10, 0, 10)])


@pytest.fixture
def head():
    points = clouds(5, 5)
    labels = torch.tensor([0] * 5 + [1] * 5)
    return LiveHead.fit(Sampled(points, labels, labels + 1, points), points)


def plain_gain(rule: Rule, weights, region: torch.Tensor, covered: list[float]) -> float:
    """The formula, term by term."""
    total = 0.0
    for p, w, c in zip(rule.points, weights, covered):
        best = max(float((-((p - q) ** 2).sum() / (2 * rule.width**2)).exp()) for q in region)
        total += float(w) * max(0.0, best - c)
    return total / float(sum(weights))


def test_pictures_are_ranked_by_the_plain_formula(rule):
    done = torch.tensor([1])
    found = rule.picture_gains(done)
    known = rule.points[rule.picture == 1]
    covered = [max(float((-((p - q) ** 2).sum() / (2 * rule.width**2)).exp()) for q in known) for p in rule.points]
    for i in range(3):
        region = rule.points[rule.picture == i]
        assert float(found[i]) == pytest.approx(plain_gain(rule, torch.ones(60), region, covered), abs=1e-4)
    assert found.argmax() == 2 and float(found[1]) == pytest.approx(0, abs=1e-4)


def test_places_are_chosen_by_the_plain_formula_one_as_if_those_before_were_labelled(rule, head):
    grid = clouds(12, 8, 8, 8, seed=1).view(6, 6, 6).permute(2, 0, 1).contiguous()
    labelled = clouds(1)
    weights = rule.weights(head)
    taken = torch.zeros(6, 6, dtype=torch.bool)
    taken[0, 0] = True
    found = rule.places(grid, labelled, weights, taken, 3)
    covered = rule.covered(rule.points, labelled).tolist()
    candidates = grid.flatten(1).T
    free = ~taken
    for place in found:
        gains = {i: plain_gain(rule, weights, candidates[i][None], covered) for i in range(36) if free.flatten()[i]}
        best = max(gains, key=gains.get)
        assert place.gain == pytest.approx(gains[best], abs=1e-4)
        assert gains[place.y * 6 + place.x] == pytest.approx(gains[best], abs=1e-4)
        q = candidates[place.y * 6 + place.x]
        covered = [
            max(c, float((-((p - q) ** 2).sum() / (2 * rule.width**2)).exp())) for p, c in zip(rule.points, covered)
        ]
        free[max(0, place.y - 2) : place.y + 3, max(0, place.x - 2) : place.x + 3] = False
    assert len(found) == 3


def test_without_labels_the_picture_that_stands_for_most_is_first(rule):
    advice = Advice(rule, None, torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), {})
    ranked = advice.pictures(["a", "b", "c"])
    assert ranked[0].picture == "c" and ranked[0].reason == f"stands for {ranked[0].gain:.0%} of what the pictures show"
    assert [s.gain for s in ranked] == sorted((s.gain for s in ranked), reverse=True)
    assert "stands for" in ranked[1].reason


def test_rare_classes_weigh_more(rule, head):
    head.shares = torch.tensor([0.9, 0.1])
    weights = rule.weights(head)
    _, doubt = head.predict(rule.points)
    mean, _ = head.predict(rule.points)
    assert torch.allclose(weights, doubt**2 * (mean / head.shares).sum(1), rtol=1e-4)
    density = rule.kernel(rule.points, rule.points).mean(1)
    assert torch.allclose(rule.weights(None), 1 / density)


def test_places_say_why_and_are_pixels_of_the_picture(rule, head):
    grid = clouds(0, 12, 12, 12, seed=2).view(6, 6, 6).permute(2, 0, 1).contiguous()
    advice = Advice(rule, head, clouds(5, 5), torch.tensor([0]), {0: "sky", 1: "sea"})
    drawn = np.zeros((60, 30), bool)
    drawn[:20] = True
    found = advice.places(grid, drawn, 4)
    assert 1 <= len(found) <= 4 and all(20 <= y < 60 and 0 <= x < 30 for y, x, _ in found)
    assert found[0][2] == "nothing like this is labelled yet"
    between = (clouds(6) + clouds(0, 6)) / 2
    torn = Advice(rule, head, between, torch.tensor([0]), {0: "sky", 1: "sea"})
    said = torn.places(between[:, :, None].permute(1, 0, 2).contiguous(), np.zeros((6, 1), bool), 1)[0][2]
    assert said in ("doubt: sky or sea", "doubt: sea or sky")


def test_labelled_pictures_come_last_and_say_what_is_doubtful_in_them(rule, head):
    advice = Advice(rule, head, clouds(1), torch.tensor([0, 2]), {0: "sky", 1: "sea"})
    ranked = advice.pictures(["a", "b", "c"])
    assert [s.picture for s in ranked][0] == "b" and "is like nothing in the labelled pictures" in ranked[0].reason
    assert {s.picture for s in ranked[1:]} == {"a", "c"} and all("doubt: " in s.reason for s in ranked[1:])
    assert all(s.gain == 0 for s in ranked[1:])


def test_what_is_labelled_all_over_has_no_places(rule, head):
    grid = clouds(36).view(6, 6, 6).permute(2, 0, 1).contiguous()
    advice = Advice(rule, head, clouds(5, 5), torch.tensor([0]), {0: "sky", 1: "sea"})
    assert advice.places(grid, np.ones((6, 6), bool), 5) == []


def test_pictures_that_are_all_alike_are_ranked_all_the_same():
    rule = Rule([torch.zeros(8, 6), torch.zeros(8, 6)])
    gains = rule.picture_gains(torch.zeros(0, dtype=torch.long))
    assert torch.isfinite(gains).all() and gains.tolist() == pytest.approx([1, 1])


def test_many_pictures_share_the_probes():
    rule = Rule([clouds(30, seed=i) for i in range(200)])
    assert len(rule.points) <= max(suggestions.MAX_PROBES, 8 * 200)
