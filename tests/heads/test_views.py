# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How models read pictures: the size of whole ones, and the scale of training against that of fitting."""

import json

import pytest

from diffuseseg_diffusers.heads.views import compare_views, training_of, whole_size
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import make_pipeline


@pytest.mark.parametrize(
    "shapes, size",
    [
        ([(120, 120)], (120, 120)),
        ([(64, 50)] * 3 + [(300, 300)], (64, 48)),
        ([(483, 648)], (120, 160)),
        ([(1000, 20)], (160, 4)),
    ],
)
def test_whole_pictures_keep_their_size_or_proportions(shapes, size):
    extractor = make_pipeline().features()
    multiple = max(tap.stride for tap in extractor.taps)
    found = whole_size(shapes, extractor)
    extractor.feature_info(*found)  # raises for sizes that the model cannot take
    assert all(abs(f - s) <= multiple / 2 or f == multiple for f, s in zip(found, size))


@pytest.mark.parametrize(
    "trained, tiles, scale, said",
    [
        ({"crop": "random", "scale": 0.5}, True, 0.5, ""),
        ({"crop": "random", "scale": None}, True, 0.9, ""),
        ({"crop": "random", "scale": None}, True, 0.5, "crops at --scale 1, but tiles are read at scale 0.5"),
        ({"crop": "random", "scale": 0.5}, False, 0.1, "whole pictures are read here, at scale 0.1"),
        ({"crop": None, "scale": None}, False, 0.1, ""),
        ({"crop": None, "scale": None}, True, 1.0, "trained on whole pictures"),
        ({"crop": "random", "pixel_size": 2.0}, True, 0.5, "crops at --pixel_size 2, but tiles"),
        ({}, True, 1.0, ""),
    ],
)
def test_fitting_at_another_scale_than_that_of_training_is_said(tmp_path, trained, tiles, scale, said):
    (tmp_path / "training_state.json").write_text(json.dumps({"arguments": trained}))
    found = compare_views(tmp_path, {"tiles": tiles, "scale": scale, "pixel_size": None})
    assert (said in found) if said else not found
    assert not compare_views(tmp_path / "none", {"tiles": tiles, "scale": scale, "pixel_size": None})


@pytest.mark.parametrize("wrong", [0, -1.0, "0.5", True, float("inf"), float("nan")])
def test_a_scale_of_training_that_is_no_number_above_0_is_refused(tmp_path, wrong):
    (tmp_path / "training_state.json").write_text(json.dumps({"arguments": {"crop": "random", "scale": wrong}}))
    with pytest.raises(UserError, match="not a number above 0"):
        training_of(tmp_path)


@pytest.mark.parametrize("content", ["[]", '{"arguments": 3}', "{}"])
def test_records_of_others_are_silent_on_training(tmp_path, content):
    (tmp_path / "training_state.json").write_text(content)
    assert training_of(tmp_path) == {}
