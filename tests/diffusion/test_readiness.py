# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is said of a training: an estimate before, and a verdict on its features at the end."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.diffusion import readiness
from diffuseseg_diffusers.diffusion.readiness import describe_scores, score_features
from diffuseseg_diffusers.diffusion.run import describe_plan

from ..conftest import QUICK, dataset_of, draw, drawn_dataset, make_pipeline


@pytest.mark.parametrize(
    "scores, said",
    [
        ({"own": 0.700, "general": 0.712, "untrained": 0.65}, "own 70.0, general 71.2, untrained 65.0: not better"),
        ({"own": 0.715, "general": 0.712, "untrained": 0.65}, "as good as the general model, no better yet."),
        ({"own": 0.8, "general": 0.712, "untrained": 0.65}, ": better than the general model."),
        ({"own": 0.8}, "labelled images: own 80.0."),
        ({"general": 0.8}, "labelled images: general 80.0."),
        ({}, "labelled images: not measured."),
    ],
)
def test_the_verdict_is_in_plain_words(scores, said):
    assert said in describe_scores(scores)


def test_all_models_are_scored_on_the_same_images(tmp_path, monkeypatch):
    made = {"general": make_pipeline(seed=1), "untrained": make_pipeline(seed=2), tmp_path: make_pipeline(seed=0)}
    monkeypatch.setattr(readiness, "load_pipeline", lambda name, **_: made[name])
    monkeypatch.setattr(readiness, "suited_recipe", lambda *_: SimpleNamespace(for_studies=lambda: QUICK))
    config = SimpleNamespace(output_dir=tmp_path, crop=None)
    found = score_features(config, drawn_dataset(3))
    assert list(found) == ["own", "general", "untrained"] and all(0 <= score <= 1 for score in found.values())
    made["general"] = made[tmp_path]
    assert score_features(config, drawn_dataset(3))["general"] == found["own"]


def test_labels_of_no_use_do_not_lose_the_training(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readiness, "load_pipeline", lambda name, **_: make_pipeline())
    images, masks = zip(*[draw((16, 16), seed) for seed in range(2)])
    ignored = LabeledImages(dataset_of(images, [np.full_like(mask, 255) for mask in masks]), label_names=["a", "b"])
    assert score_features(SimpleNamespace(output_dir=tmp_path, crop=None), ignored) == {}
    assert "warning: the model own is not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    "minutes, steps, said", [(2, None, "About 60 "), (2, 30, "About 30 "), (None, 90, "About 90 ")]
)
def test_the_estimate_follows_from_the_time_of_steps(minutes, steps, said):
    config = SimpleNamespace(
        **dict(max_train_minutes=minutes, max_train_steps=steps, train_batch_size=4, gradient_accumulation_steps=1),
        streaming=False,
    )
    trainer = SimpleNamespace(state={"step": 10, "seconds": 20.0}, accelerator=SimpleNamespace(num_processes=1))
    found = describe_plan(config, trainer, SimpleNamespace(batches=SimpleNamespace(images=[0] * 40)))
    count = int(said.split()[1])
    assert found.startswith(said)
    assert f"{4 * count} images, {count / 10:.1f} passes over the data in {count / 30:.1f} minutes" in found
