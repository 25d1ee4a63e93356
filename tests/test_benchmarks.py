# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the benchmark of fields measures, and the forest that it measures against."""

import argparse

import numpy as np
import pytest

from .conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_a_result_that_keeps_has_the_cells_of_all_commands(tmp_path, monkeypatch):
    harness = pytest.importorskip("harness")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine", lambda: {"processor": "any", "threads": 1})

    def result(command: str):
        monkeypatch.setattr("sys.argv", command.split())
        return harness.Result("trial", {}, argparse.Namespace(seeds=[0]), "A trial.", keep=True)

    first, beside = result("bench_any.py --methods a"), result("bench_any.py --methods b")
    first.cell("a", lambda: {"mean_iou": 0.5})
    beside.cell("b", lambda: {"mean_iou": 0.6})
    found = result("bench_any.py --methods c")
    assert {key: cell["mean_iou"] for key, cell in found.content["cells"].items()} == {"a": 0.5, "b": 0.6}
    assert found.cell("a", lambda: {"mean_iou": 0.7})["commit"].endswith(", any")
    assert found.cell("a", lambda: {"mean_iou": 0.7}, again=True)["mean_iou"] == 0.7


def test_measures_are_those_of_the_definition():
    fields = pytest.importorskip("bench_fields")
    truth = np.zeros((12, 12), np.uint8)
    truth[:, 6:] = 1
    truth[0, 0] = 255
    found = np.zeros_like(truth)
    found[:, 7:] = 1
    counts = fields.confusion(found, truth, 2)
    assert counts.tolist() == [[71, 0], [12, 60]]
    assert fields.bands(truth, 1).sum(0).tolist() == [0] * 6 + [12, 12] + [0] * 4  # the edge is no border
    # Bands of two columns that overlap in one.
    assert fields.boundary_counts(found, truth, 2).tolist() == [[12, 36], [12, 36]]


def test_strokes_cover_the_share_and_tell_the_truth():
    fields = pytest.importorskip("bench_fields")
    truth = np.zeros((64, 64), np.uint8)
    truth[8:40, 8:40] = 1
    kept = fields.strokes(truth, 0.05, np.random.default_rng(0))
    assert 0.05 <= (kept != 255).mean() < 0.1
    assert (kept == truth)[kept != 255].all() and set(np.unique(kept)) == {0, 1, 255}


def test_the_forest_has_eigenvalues_of_its_matrices():
    forest = pytest.importorskip("forest")
    yy, xy, xx = np.random.default_rng(0).normal(size=(3, 5))
    plain = np.linalg.eigvalsh(np.stack([[yy, xy], [xy, xx]]).transpose(2, 0, 1))[:, ::-1]
    np.testing.assert_allclose(np.stack(forest.eigenvalues(yy, xy, xx), -1), plain)
    # A ramp has its slope everywhere, and no second derivative, at every scale.
    ramp = np.tile(np.arange(128.0), (128, 1))
    middle = forest.filters(ramp)[64, 64].reshape(len(forest.SIGMAS), 8)
    np.testing.assert_allclose(middle[:, 2], 1, atol=1e-6)
    np.testing.assert_allclose(middle[:, [1, 4, 5]], 0, atol=1e-6)
    np.testing.assert_allclose(middle[:, 6:], [[1, 0]] * len(forest.SIGMAS), atol=1e-6)


def test_a_unet_reads_crops_of_pictures_of_any_size():
    unet = pytest.importorskip("unet")
    harness = pytest.importorskip("harness")
    faces = harness.drawn_faces(range(2))
    net = unet.train_unet(faces, 0, images=2, side=24, batch_size=2)
    image = faces[0].image.resize((50, 37))
    assert net.segment_whole(image).shape == (37, 50)
