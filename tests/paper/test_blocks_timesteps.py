# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.heads.cross_validation import LabeledActivations, cross_validated
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.paper.blocks_timesteps import blocks_timesteps, class_sizes, means_by_size

from .common import make_study, shorten


def test_every_cell_is_cross_validated_with_the_recipe_and_is_not_computed_again(tmp_path, monkeypatch):
    shorten(monkeypatch)
    study = make_study(tmp_path, blocks=[1, 5], timesteps=[50, 200])
    report = blocks_timesteps(study)
    assert [(r["block"], r["timestep"]) for r in report.rows] == [(1, 50), (1, 200), (5, 50), (5, 200)]
    assert report.summary[0].startswith("Best: block") and report.settings["recipe"] == "default"
    short = RECIPES["default"].for_studies()
    alone = LabeledActivations.extract(study.pipe.features([5], [200], clean=True), study.dataset, short)
    assert alone.views == 1 and alone.mirrored is None
    expected = cross_validated(alone, [5], [200], Classes.of(study.dataset), study.held_out(), short)
    assert report.rows[-1]["mean_iou"] == pytest.approx(expected["mean_iou"], abs=0.02)

    monkeypatch.setattr(LabeledActivations, "extract", lambda *args, **how: pytest.fail("extracted again"))
    again = blocks_timesteps(make_study(tmp_path, blocks=[5], timesteps=[200]))
    assert again.rows == report.rows[-1:]


def test_classes_below_the_median_share_are_small():
    labels = torch.zeros(4, 8, 8, dtype=torch.uint8)
    labels[0, :4] = 1
    labels[:, 0] = 2
    shares, small = class_sizes(labels, Classes(3))
    np.testing.assert_allclose(shares, [200 / 256, 24 / 256, 32 / 256])
    assert small == [False, True, False]
    means = means_by_size([0.2, 0.5, 0.4], small)
    assert means == {"small_mean_iou": 0.5, "large_mean_iou": pytest.approx(0.3)}
    assert means_by_size([0.2, None, 0.4], small)["small_mean_iou"] is None
