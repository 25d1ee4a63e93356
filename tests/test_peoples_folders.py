# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders as people have them, fitted on and measured by one command each, without conversion."""

import json

import pytest

from .conftest import make_pipeline, run
from .datasets.annotations.folders import MADE, NAMES


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddpm")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [k if k == "coco" else pytest.param(k, marks=pytest.mark.slow) for k in MADE])
def test_annotated_folders_are_fitted_on_and_measured_as_they_are(kind, ddpm, tmp_path):
    splits = MADE[kind](tmp_path / "data")
    held_out = list(splits)[-1]
    fit = ("diffuseseg", "fit", "--model", ddpm, "--dataset_name", tmp_path / "data", "--recipe", "fast")
    run(*fit, "--num_members", "2", "--output_dir", tmp_path / "model")
    measured = ("diffuseseg", "evaluate", "--model", tmp_path / "model", "--dataset_name", tmp_path / "data")
    run(*measured, "--split", held_out, "--output_dir", tmp_path / "measured")
    metrics = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    assert list(metrics["per_class_iou"]) == NAMES and metrics["num_images"] == len(splits[held_out])
    assert metrics["mean_iou"] > 0.5  # masks of other pictures, or turned ones, are not learnt
