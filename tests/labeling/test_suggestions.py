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


def strokes(*counts: int) -> Sampled:
    """So many strokes of a pixel in each of some clouds, whose classes are 0, 1, …."""
    points = clouds(*counts)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return Sampled(points, labels, torch.arange(1, len(points) + 1), points)


NONE = Sampled.together([])


def fitted(known: Sampled) -> LiveHead:
    return LiveHead.fit(known, known.features)


@pytest.fixture
def head():
    return fitted(strokes(5, 5))


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
    weights = rule.weights(head, torch.tensor([5, 5]), False)
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
    advice = Advice(rule, None, NONE, torch.zeros(0, dtype=torch.long), {})
    ranked = advice.pictures(["a", "b", "c"])
    assert ranked[0].picture == "c" and ranked[0].reason == f"stands for {ranked[0].gain:.0%} of what the pictures show"
    assert [s.gain for s in ranked] == sorted((s.gain for s in ranked), reverse=True)
    assert "stands for" in ranked[1].reason


def test_weights_are_doubt_over_strokes_and_half_novelty_while_a_class_is_sought(rule, head):
    mean, doubt = head.predict(rule.points)
    torn = doubt**2 * (mean[:, 0] / 9 + mean[:, 1] / 2)
    torn /= torn.sum()
    new = 1 / rule.kernel(rule.points, rule.points).mean(1)
    new /= new.sum()
    assert torch.allclose(rule.weights(head, torch.tensor([9, 2]), False), torn, rtol=1e-4)
    assert torch.allclose(rule.weights(head, torch.tensor([9, 2]), True), (torn + new) / 2, rtol=1e-4)
    assert torch.allclose(rule.weights(None, torch.tensor([]), True), new)


def between(first: int, second: int, count: int, seed: int = 0) -> torch.Tensor:
    """Points halfway between two clouds."""
    counts = [[count if i == own else 0 for i in range(6)] for own in (first, second)]
    return (clouds(*counts[0], seed=seed) + clouds(*counts[1], seed=seed + 1)) / 2


def test_a_class_without_a_stroke_is_sought_before_the_tenth_doubt():
    """Doubt all between two large classes, and four pixels in a hundred of a third that the head takes for hair."""
    points = torch.cat([clouds(36, 36), 2 * clouds(0, 4), between(0, 1, 24)])
    rule, known, done = Rule([points]), strokes(3, 3), torch.tensor([0])
    # Places in a row, three to each point, since suggestions are apart.
    grid = torch.cat([between(0, 1, 10, seed=3), 2 * clouds(0, 2)]).repeat_interleave(3, 0).T[:, None]
    drawn = np.zeros(grid.shape[1:], bool)

    def first(names: dict[int, str]) -> tuple[int | None, str]:
        places = Advice(rule, fitted(known), known, done, names).places(grid, drawn, 5)
        return next(((i, why) for i, (_, x, why) in enumerate(places) if x >= 30), (None, ""))

    place, why = first({0: "skin", 1: "hair", 2: "eyes"})
    assert place is not None and why == "nothing like this is labelled yet; without a stroke: eyes"
    many = first({0: "skin", 1: "hair"} | {i: f"class {i}" for i in range(2, 7)})
    assert many[1].endswith("without a stroke: class 2, class 3, class 4, 2 more")
    assert first({0: "skin", 1: "hair"})[0] is None  # all classes have strokes: doubts alone


def test_doubt_of_a_class_with_few_strokes_comes_first():
    """As much doubt between two classes with many strokes as between two of which one has few."""
    points = torch.cat([clouds(30, 30, 30), between(0, 1, 12), between(0, 2, 4)])
    grid = torch.cat([between(0, 1, 4, seed=3), between(0, 2, 1, seed=3)]).repeat_interleave(3, 0).T[:, None]
    names = {0: "skin", 1: "hair", 2: "eyes"}

    def place(*counts: int) -> int:
        known = strokes(*counts)
        advice = Advice(Rule([points]), fitted(known), known, torch.tensor([0]), names)
        return advice.places(grid, np.zeros(grid.shape[1:], bool), 1)[0][1]

    assert place(20, 20, 1) >= 12 and place(20, 20, 20) < 12


def test_strokes_are_counted_and_not_their_pixels(rule, monkeypatch):
    seen = []
    monkeypatch.setattr(Rule, "weights", lambda self, head, counts, seek: seen.append((counts.tolist(), seek)))
    labels, numbers = torch.tensor([2, 2, 2, 0, 0, 2, 0]), torch.tensor([1, 1, 2, 3, 3, 3, 4])
    known = Sampled(clouds(7), labels, numbers, clouds(7))  # the third is of both classes
    Advice(rule, None, known, torch.tensor([0]), {0: "skin", 2: "eyes"})
    Advice(rule, None, known, torch.tensor([0]), {0: "skin", 1: "hair", 2: "eyes"})
    Advice(rule, None, NONE, torch.tensor([]).long(), {})
    assert seen == [([2, 3], False), ([2, 3], True), ([], False)]


def test_places_say_why_and_are_pixels_of_the_picture(rule, head):
    grid = clouds(0, 12, 12, 12, seed=2).view(6, 6, 6).permute(2, 0, 1).contiguous()
    advice = Advice(rule, head, strokes(5, 5), torch.tensor([0]), {0: "sky", 1: "sea"})
    drawn = np.zeros((60, 30), bool)
    drawn[:20] = True
    found = advice.places(grid, drawn, 4)
    assert 1 <= len(found) <= 4 and all(20 <= y < 60 and 0 <= x < 30 for y, x, _ in found)
    assert found[0][2] == "nothing like this is labelled yet"
    middle = between(0, 1, 6)
    known = Sampled(middle, torch.tensor([0, 1] * 3), torch.arange(6), middle)
    torn = Advice(rule, head, known, torch.tensor([0]), {0: "sky", 1: "sea"})
    said = torn.places(middle[:, :, None].permute(1, 0, 2).contiguous(), np.zeros((6, 1), bool), 1)[0][2]
    assert said in ("doubt: sky or sea", "doubt: sea or sky")


def test_labelled_pictures_come_last_and_say_what_is_doubtful_in_them(rule, head):
    advice = Advice(rule, head, strokes(1, 1), torch.tensor([0, 2]), {0: "sky", 1: "sea"})
    ranked = advice.pictures(["a", "b", "c"])
    assert [s.picture for s in ranked][0] == "b" and "is like nothing in the labelled pictures" in ranked[0].reason
    assert {s.picture for s in ranked[1:]} == {"a", "c"} and all("doubt: " in s.reason for s in ranked[1:])
    assert all(s.gain == 0 for s in ranked[1:])


def test_what_is_labelled_all_over_has_no_places(rule, head):
    grid = clouds(36).view(6, 6, 6).permute(2, 0, 1).contiguous()
    advice = Advice(rule, head, strokes(5, 5), torch.tensor([0]), {0: "sky", 1: "sea"})
    assert advice.places(grid, np.ones((6, 6), bool), 5) == []


def test_pictures_that_are_all_alike_are_ranked_all_the_same():
    rule = Rule([torch.zeros(8, 6), torch.zeros(8, 6)])
    gains = rule.picture_gains(torch.zeros(0, dtype=torch.long))
    assert torch.isfinite(gains).all() and gains.tolist() == pytest.approx([1, 1])


def test_many_pictures_share_the_probes():
    rule = Rule([clouds(30, seed=i) for i in range(200)])
    assert len(rule.points) <= max(suggestions.MAX_PROBES, 8 * 200)
