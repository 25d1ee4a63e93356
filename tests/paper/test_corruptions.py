# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import sys

import numpy as np
import pytest

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper import corruptions as module
from diffuseseg_diffusers.paper.corruptions import Corrupted, corruption_names, corruptions
from diffuseseg_diffusers.paper.study import Study

from ..conftest import drawn_dataset
from .common import make_study, shorten


def test_corrupted_images_keep_their_masks_and_are_the_same_every_time():
    clean = drawn_dataset(2, size=(32, 48))
    assert len(corruption_names()) == 15
    before = np.random.get_state()[1].copy()
    mild, strong = (Corrupted(clean, "gaussian_noise", severity) for severity in (1, 5))
    difference = [
        np.abs(np.asarray(d[1].image, float) - np.asarray(clean[1].image, float)).mean() for d in (mild, strong)
    ]
    assert 0 < difference[0] < difference[1]
    assert (strong[1].mask == clean[1].mask).all() and strong[1].image.mode == clean[1].image.mode
    assert np.array_equal(strong[1].image, strong[1].image) and len(strong) == 2
    assert (np.random.get_state()[1] == before).all()


def test_one_head_is_measured_clean_and_under_every_corruption_and_not_again(tmp_path, monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(module, "corruption_names", lambda: ["gaussian_noise", "contrast"])
    options = dict(test=drawn_dataset(2, size=(32, 32), seed=50))
    report = corruptions(make_study(tmp_path, **options))
    assert [(r["corruption"], r["severity"]) for r in report.rows] == [
        (name, severity) for name in ("gaussian_noise", "contrast") for severity in range(1, 6)
    ]
    clean = report.shown["clean"]
    assert all(r["relative"] == pytest.approx(r["mean_iou"] / clean) for r in report.rows)
    monkeypatch.setattr(Study, "fit", lambda *args: pytest.fail("fitted again"))
    assert corruptions(make_study(tmp_path, **options)).rows == report.rows


def test_without_imagecorruptions_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match="imagecorruptions is not installed; run `pip install "):
        corruption_names()
