# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest

from diffuseseg_diffusers import evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.paper.labels import label_draws, labels
from diffuseseg_diffusers.paper.study import Study

from ..conftest import make_pipeline
from .common import make_study, shorten


def test_each_draw_is_worth_what_a_head_is_that_is_fitted_on_it(tmp_path, monkeypatch):
    shorten(monkeypatch)
    study = make_study(tmp_path)
    report = labels(study)
    assert [r["labelled_images"] for r in report.rows] == [1, 4]
    assert report.rows[0]["images"] == label_draws(4, 1, 2) and report.settings["blocks"] == [2, 4, 5]
    assert all(r["least"] <= r["mean"] <= r["most"] and len(r["mean_iou"]) == 2 for r in report.rows)
    pipe = make_pipeline()
    own = study.dataset.select(report.rows[0]["images"][1])
    pipe.segmentation_head = fit_segmentation_head(pipe, own, recipe="default", seed=1)
    expected, _ = evaluate_segmentation(pipe, study.test, 4, show_progress=False)
    assert report.rows[0]["mean_iou"][1] == pytest.approx(expected["mean_iou"], abs=0.02)
    monkeypatch.setattr(Study, "fit", lambda *args: pytest.fail("fitted again"))
    assert labels(make_study(tmp_path)).rows == report.rows


def test_draws_are_of_different_images_and_the_same_for_a_seed():
    draws = label_draws(20, 5, 3)
    assert draws == label_draws(20, 5, 3) != label_draws(20, 5, 3, seed=1)
    assert all(len(set(own)) == 5 and set(own) <= set(range(20)) for own in draws) and draws[0] != draws[1]
