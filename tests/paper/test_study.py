# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import pytest

from diffuseseg_diffusers.figures.studies import FIGURES
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper.catalogue import STUDIES
from diffuseseg_diffusers.paper.study import images_fingerprint

from ..conftest import drawn_dataset
from .common import make_study


def test_studies_read_what_the_recipe_reads_where_nothing_is_given(tmp_path):
    """Not what the recipe `fast` or the paper reads, whatever the head will be fitted with."""
    read = lambda **options: (lambda e: (e.blocks, e.timesteps))(make_study(tmp_path, **options).extractor)  # noqa: E731
    assert read() == ((2, 4, 5), (25,))  # of 18: 6 7 12 15
    assert read(recipe="paper") == ((1, 3, 5), (50, 150, 250))
    assert read(blocks=[3], recipe="paper") == ((3,), (50, 150, 250))
    study = make_study(tmp_path, timesteps=[20])
    assert (study.all_features.blocks, study.all_features.timesteps) == (tuple(range(6)), (20,))
    assert len(make_study(tmp_path).all_features.timesteps) == 10
    assert study.short_recipe == RECIPES["default"].for_studies()


def test_the_settings_tell_models_images_and_recipes_apart(tmp_path):
    settings = make_study(tmp_path, about={"dataset": {"name": "drawn"}}).settings
    assert json.loads(json.dumps(settings)) == settings and settings["dataset"] == {"name": "drawn"}
    assert set(settings) == {"weights", "dtype", "clean", "dataset", "images", "recipe", "seed"}
    study = make_study(tmp_path, recipe="fast")
    study.dataset = drawn_dataset(4, seed=1)
    changed = study.settings
    assert changed["weights"] == settings["weights"]
    assert changed["images"] != settings["images"] and changed["recipe"] != settings["recipe"]
    assert images_fingerprint(drawn_dataset(4)) == settings["images"]


def test_what_cannot_be_studied_is_refused_before_the_work(tmp_path):
    for name, options, message in [
        ("blocks-timesteps", {"folds": 5}, "got 5 folds for 4 images"),
        ("blocks-timesteps", {"timesteps": [1000]}, "Timestep 1000 does not exist"),
        ("clusters", {"blocks": [6]}, "Block 6 does not exist"),
        ("noise", {"folds": 5}, "got 5 folds for 4 images"),
        ("labels", {"counts": [5, 10]}, "--counts 5 10 asks for more than the 4 images"),
        ("labels", {"test": None}, "measures on test images"),
        ("corruptions", {"test": None}, "measures on test images"),
    ]:
        with pytest.raises(UserError, match=message):
            STUDIES[name].check(make_study(tmp_path, **options))
        STUDIES[name].check(make_study(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_every_study_but_that_of_noise_has_figures():
    assert set(STUDIES) - set(FIGURES) == {"noise"} and set(FIGURES) <= set(STUDIES)
