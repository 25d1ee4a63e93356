# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuseseg_diffusers.labeling.journal import UNLABELED
from diffuseseg_diffusers.labeling.regions import connected_region, sparse_pixels, to_runs


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_runs_are_the_region(region):
    found = np.zeros_like(region)
    for y, start, stop, label in to_runs(region, 7):
        assert start < stop and label == 7 and not found[y, start:stop].any()
        found[y, start:stop] = True
    assert (found == region).all()


@given(arrays(np.uint8, (5, 6), elements=st.integers(0, 2)), st.integers(0, 4), st.integers(0, 5))
def test_a_region_is_what_can_be_reached(mask, y, x):
    reached, queue = {(y, x)}, [(y, x)]
    while queue:
        at = queue.pop()
        for near in ((at[0] + 1, at[1]), (at[0] - 1, at[1]), (at[0], at[1] + 1), (at[0], at[1] - 1)):
            inside = 0 <= near[0] < 5 and 0 <= near[1] < 6
            if inside and near not in reached and mask[near] == mask[y, x]:
                reached.add(near)
                queue.append(near)
    assert {tuple(p) for p in np.argwhere(connected_region(mask, y, x)).tolist()} == reached


def test_a_long_stroke_has_as_many_pixels_as_a_short_one_spread_over_it():
    ids = np.full((4, 100), UNLABELED, np.uint8)
    strokes = np.zeros((4, 100), np.int32)
    ids[0], strokes[0] = 1, 3
    ids[2, :4], strokes[2, :4] = 0, 8
    pixels, labels, numbers = sparse_pixels(ids, strokes, 16)
    assert (numbers == 3).sum() == 16 and (numbers == 8).sum() == 4
    assert (labels == np.where(numbers == 3, 1, 0)).all()
    columns = pixels[numbers == 3][:, 1]
    assert columns[0] == 0 and columns[-1] == 99 and np.ptp(np.diff(columns)) <= 1
    assert (ids[tuple(pixels.T)] == labels).all()


def test_each_class_of_a_stroke_has_pixels():
    """Annotations of a picture are one stroke."""
    ids = np.ones((20, 20), np.uint8)
    ids[4, :3] = 7
    pixels, labels, numbers = sparse_pixels(ids, np.full((20, 20), 5, np.int32), 16)
    assert (labels == 7).sum() == 3 and (labels == 1).sum() == 16 and (numbers == 5).all()
    assert (ids[tuple(pixels.T)] == labels).all()


def test_nothing_labelled_gives_nothing():
    none = sparse_pixels(np.full((3, 3), UNLABELED, np.uint8), np.zeros((3, 3), np.int32), 16)
    assert [len(part) for part in none] == [0, 0, 0]
