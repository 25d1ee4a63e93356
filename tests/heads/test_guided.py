# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import itertools
import math

import pytest
import torch

from diffuseseg_diffusers.heads import guided as module
from diffuseseg_diffusers.heads.guided import check_guided, choose_guided, joint_bilateral
from diffuseseg_diffusers.jobs.errors import UserError


def by_the_formula(p, x, spatial, color):
    """Pixel by pixel, neighbour by neighbour."""
    _, height, width = p.shape
    radius, found = round(2 * spatial), torch.zeros_like(p)
    for i, j in itertools.product(range(height), range(width)):
        total, weights = torch.zeros_like(p[:, 0, 0]), 0.0
        for k, m in itertools.product(range(height), range(width)):
            if max(abs(k - i), abs(m - j)) <= radius:
                distance = ((k - i) ** 2 + (m - j) ** 2) / spatial**2
                difference = float((x[:, k, m] - x[:, i, j]).square().mean()) / color**2
                weight = math.exp(-(distance + difference) / 2)
                total += weight * p[:, k, m]
                weights += weight
        found[:, i, j] = total / weights
    return found


@pytest.mark.parametrize("size", [(7, 11), (13, 3), (1, 4)])
@pytest.mark.parametrize("strip", [1, 2**18])
def test_the_filter_is_that_of_the_formula(monkeypatch, size, strip):
    monkeypatch.setattr(module, "STRIP", strip)
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(3, *size, generator=generator, dtype=torch.float64).softmax(0)
    x = torch.rand(2, *size, generator=generator, dtype=torch.float64)
    for spatial, color in ((1.0, 0.2), (2.0, 0.05)):
        found = joint_bilateral(p, x, spatial, color)
        torch.testing.assert_close(found.double(), by_the_formula(p, x, spatial, color), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.sum(0), torch.ones(size))


def drawn(noise, edge):
    """Probabilities of two halves, and a picture and a mask of the same, whose edges are `edge` columns apart."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(24, 32, dtype=torch.uint8)
    mask[:, 16:] = 1
    x = mask[None].float() * 0.5 + 0.25
    right = mask.roll(edge, 1).float() * 0.5 + 0.25 + noise * torch.randn(24, 32, generator=generator)
    right = right.clamp(0, 1)
    return torch.stack([1 - right, right]), x, mask


def test_widths_are_chosen_where_the_filter_helps_and_only_there():
    p, x, mask = drawn(noise=0.3, edge=0)
    mask[0] = 255
    widths = choose_guided([p], [x], [mask])
    assert widths is not None
    found = joint_bilateral(p, x, *widths).argmax(0)[1:]
    assert (found == mask[1:]).float().mean() > 0.99 > (p.argmax(0)[1:] == mask[1:]).float().mean()
    p, x, mask = drawn(noise=0.0, edge=0)
    assert choose_guided([p], [x], [mask.numpy()]) is None  # already right


def test_widths_that_are_none_are_a_sentence():
    assert check_guided(None) is None and check_guided([2, 0.1]) == (2.0, 0.1)
    for wrong in ([1.0], [0, 0.1], [33, 0.1], ["a", 1], 3.0, [1, float("nan")], [1, 1e-200], [1e-200, 1], [1, 1e200]):
        with pytest.raises(UserError, match="guided masks are"):
            check_guided(wrong)
