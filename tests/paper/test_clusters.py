# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper.clusters import check_clusters, cluster_maps, clusters, matched, resized

from .common import make_study


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(2, 6))
def test_renamed_clusters_get_their_neighbours_names_back(seed, k):
    rng = np.random.default_rng(seed)
    maps = [rng.integers(0, k, (8, 8)).astype(np.uint8) for _ in range(2)]
    names = rng.permutation(k).astype(np.uint8)
    larger = [resized(names[m], (16, 16)) for m in maps]
    for got, m in zip(matched(larger, maps, k), maps):
        assert (got == resized(m, (16, 16))).all()


def test_clusters_are_pixels_that_are_alike():
    half = torch.zeros(3, 4, 8)
    half[:, :, 4:] = 5
    first, second = cluster_maps([half + 0.01 * torch.randn(half.shape), half], 2)
    assert (first == second).all() and first[0, 0] != first[0, 7] and len(np.unique(first[:, :4])) == 1
    with pytest.raises(UserError, match="64 clusters need as many pixels"):
        cluster_maps([half], 64)


def test_there_is_a_map_of_each_image_for_each_block_and_timestep(tmp_path):
    report = clusters(make_study(tmp_path, blocks=[0, 5], timesteps=[50, 200], num_clusters=3, num_images=2))
    assert list(report.shown["maps"]) == [(0, 50), (0, 200), (5, 50), (5, 200)] and len(report.rows) == 4
    assert [m.shape for m in report.shown["maps"][0, 50]] == [(4, 4)] * 2
    assert [m.shape for m in report.shown["maps"][5, 200]] == [(16, 16)] * 2
    assert all(set(np.unique(m)) <= {0, 1, 2} for maps in report.shown["maps"].values() for m in maps)
    assert len(report.shown["images"]) == 2


def test_without_scikit_learn_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match="scikit-learn is not installed; run `pip install "):
        check_clusters(make_study(tmp_path))
