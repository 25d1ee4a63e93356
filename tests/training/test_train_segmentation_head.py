# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import inspect
import json

import pytest

from diffuseseg_diffusers.heads import selection
from diffuseseg_diffusers.heads.recipes import find_recipe

from ..conftest import drawn_dataset, make_pipeline, run
from ..paper.common import shorten


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The arguments that name a model and labelled images."""
    folder = tmp_path_factory.mktemp("fit")
    make_pipeline().save_pretrained(folder / "model")
    (folder / "drawn" / "data").mkdir(parents=True)
    drawn_dataset(4).dataset.to_parquet(folder / "drawn" / "data" / "train-00000-of-00001.parquet")
    where = ("--model", folder / "model", "--dataset_name", folder / "drawn", "--cache_dir", folder / "cache")
    return ("diffuseseg", "fit", *where, "--num_members", "2")


def test_fit_chooses_blocks_and_timesteps_and_says_what_it_chose(given, tmp_path, monkeypatch):
    shorten(monkeypatch)
    auto = (*given, "--blocks", "auto", "--timesteps", "50", "150", "--output_dir", tmp_path / "out")
    said = run(*auto, "--max_bytes", "10000", OMP_NUM_THREADS="1")
    assert "the first is taken" in said.stdout
    report = json.loads((tmp_path / "out" / "head_training.json").read_text())["selection"]
    config = json.loads((tmp_path / "out" / "segmentation_head" / "config.json").read_text())
    assert [config["blocks"], config["timesteps"]] == [report[0]["blocks"], report[0]["timesteps"]]
    assert len(report) > 1 and all(c["bytes"] <= 10000 for c in report)
    said = run(*auto[:-1], tmp_path / "none", "--max_bytes", "1", expect=1)
    assert "stays within the budget" in said.stderr
    said = run(*given, "--max_dimensions", "1", "--output_dir", tmp_path / "none", expect=1)
    assert "are for --blocks or --timesteps auto" in said.stderr
    said = run(*given, "--max_bytes", "1", "--output_dir", tmp_path / "none", expect=1)
    assert "more than --max_bytes 1;" in said.stderr


def test_features_are_chosen_for_the_head_that_will_be_fitted(given, tmp_path, monkeypatch):
    """With its recipe, noise, seed and mirror images."""
    asked, known = {}, inspect.signature(selection.choose_features).parameters

    def spy(pipe, dataset, recipe, **how):
        asked.update(how, recipe=recipe)
        return [
            {"blocks": [1], "timesteps": [50], "mean_iou": 0, "dimensions": 1, "bytes": 1, "milliseconds": 1, "step": 1}
        ]

    monkeypatch.setattr(selection, "choose_features", spy)
    shorten(monkeypatch)
    how = ("--blocks", "auto", "--timesteps", "auto", "--noise", "fresh", "--no_flip", "--seed", "3")
    run(*given, *how, "--output_dir", tmp_path / "out", OMP_NUM_THREADS="1")
    assert asked["recipe"] == find_recipe("default")
    assert (asked["share_noise"], asked["clean"], asked["flip"], asked["seed"]) == (False, False, False, 3)
    assert set(asked) <= set(known)
    how = ("--blocks", "auto", "--noise", "shared")  # and at the timesteps that go with the noise
    run(*given, *how, "--output_dir", tmp_path / "shared", OMP_NUM_THREADS="1")
    assert (asked["clean"], asked["timesteps"]) == (False, (10, 600))
