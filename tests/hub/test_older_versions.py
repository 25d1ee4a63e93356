# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders that version 0.1.0 saved load in each way that it promised, and give what they gave then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline

from diffuseseg_diffusers import BackbonePipeline, DiffuseSegPipeline, PixelClassifierEnsemble, load_pipeline


DATA = Path(__file__).parents[1] / "data_0_1_0"
# Another processor rounds otherwise. Where two classes are nearer than this, either may win.
MARGIN, TOLERANCE = 1e-3, dict(rtol=1e-3, atol=1e-4)


@pytest.fixture
def folder(tmp_path):
    """The pipeline as it was saved, with its code in both places."""
    folder = Path(shutil.copytree(DATA / "pipeline", tmp_path / "pipeline"))
    for place in ("pipeline_diffuseseg.py", "segmentation_head/pixel_classifier_ensemble.py"):
        shutil.copy(DATA / "pipeline_code.txt", folder / place)
    return folder


def assert_same(masks, uncertainty, expected, clear=None) -> None:
    """Masks are equal where it is clear which class wins, and nearly everywhere; uncertainties nearly are."""
    for i in range(len(masks)):
        differs = masks[i] != expected[f"mask_{i}"]
        assert differs.mean() < 0.01
        if clear is not None:
            assert clear[i].mean() > 0.9 and not differs[clear[i]].any()
        np.testing.assert_allclose(uncertainty[i], expected[f"uncertainty_{i}"], **TOLERANCE)


def images_of(expected) -> list[np.ndarray]:
    return [expected[name] for name in sorted(expected) if name.startswith("image_")]


def where_clear(probabilities) -> list[np.ndarray]:
    """Pixels where the first class is well ahead of the second."""
    ordered = [np.sort(p, axis=0) for p in probabilities]  # [K,H,W]
    return [p[-1] - p[-2] > MARGIN for p in ordered]


@pytest.mark.parametrize("load", [DiffuseSegPipeline.from_pretrained, load_pipeline])
def test_with_the_package_a_pipeline_gives_what_it_gave(folder, load):
    expected = dict(np.load(DATA / "pipeline_outputs.npz"))
    options = {"device": "cpu", "dtype": "float32"} if load is load_pipeline else {}
    pipe = load(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe) is DiffuseSegPipeline and type(pipe.segmentation_head) is PixelClassifierEnsemble
    output = pipe.segment(images_of(expected), output_type="np", return_probabilities=True)
    assert_same(output.masks, output.uncertainty, expected, where_clear(output.probabilities))
    made = pipe(2, num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="np")
    np.testing.assert_allclose(made.images, expected["generated"], **TOLERANCE)
    assert (made.masks != expected["generated_masks"]).mean() < 0.01
    np.testing.assert_allclose(made.uncertainty, expected["generated_uncertainty"], **TOLERANCE)


def test_with_the_code_that_it_carries_it_gives_what_it_gave(folder):
    expected = dict(np.load(DATA / "pipeline_outputs.npz"))
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipe).__module__ != DiffuseSegPipeline.__module__
    output = pipe.segment(images_of(expected), output_type="np")
    assert_same(output.masks, output.uncertainty, expected)


def test_saved_again_it_carries_the_code_of_this_version_and_gives_the_same(folder, tmp_path):
    pipe = DiffuseSegPipeline.from_pretrained(folder)
    pipe.save_pretrained(tmp_path / "again")
    name = "pipeline_diffuseseg.py"
    assert (tmp_path / "again" / name).read_bytes() != (folder / name).read_bytes()
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", trust_remote_code=True)
    images = images_of(dict(np.load(DATA / "pipeline_outputs.npz")))
    outputs = [p.segment(images, output_type="np") for p in (pipe, again)]
    for a, b in zip(outputs[0].masks + outputs[0].uncertainty, outputs[1].masks + outputs[1].uncertainty):
        assert (a == b).all()


def test_a_head_alone_loads_with_what_it_holds(folder):
    head = PixelClassifierEnsemble.from_pretrained(folder, subfolder="segmentation_head")
    saved = json.loads((folder / "segmentation_head" / "config.json").read_text())
    for name in ("blocks", "timesteps", "label_names", "palette", "num_members", "noise_seed", "image_size"):
        assert head.config[name] == saved[name], name
    pipe = DiffuseSegPipeline.from_pretrained(folder, segmentation_head=None)
    pipe.segmentation_head = head
    expected = dict(np.load(DATA / "pipeline_outputs.npz"))
    output = pipe.segment(images_of(expected), output_type="np")
    assert_same(output.masks, output.uncertainty, expected)


@pytest.mark.skipif(not hasattr(transformers, "ViTImageProcessorPil"), reason="transformers is older than the folder")
@pytest.mark.parametrize("load", [BackbonePipeline.from_pretrained, load_pipeline])
def test_a_head_on_a_vision_model_gives_what_it_gave(load):
    expected = dict(np.load(DATA / "backbone_outputs.npz"))
    options = {"device": "cpu", "dtype": "float32"} if load is load_pipeline else {}
    pipe = load(DATA / "backbone", **options)
    assert type(pipe) is BackbonePipeline
    output = pipe.segment(images_of(expected), output_type="np", return_probabilities=True)
    assert_same(output.masks, output.uncertainty, expected, where_clear(output.probabilities))
