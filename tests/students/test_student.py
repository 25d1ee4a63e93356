# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, evaluate_segmentation
from diffuseseg_diffusers.images.image_processor import default_palette
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.student import StudentSegmenter

from ..conftest import draw, drawn_dataset
from .test_networks import NAMES, write_config


@pytest.fixture
def segmenter(tmp_path):
    torch.manual_seed(0)
    processor = make_processor("nvidia/mit-b0", (32, 32))
    return StudentSegmenter(make_student(write_config(tmp_path), NAMES), processor)


@pytest.fixture
def images():
    return [Image.fromarray(draw((20, 30), 1)[0]), Image.fromarray(draw((16, 16), 2, channels=3)[0])]


def test_masks_are_those_of_the_processors_own_post_processing(segmenter, images):
    masks = segmenter.segment(images, output_type="np").masks
    assert [m.shape for m in masks] == [(20, 30), (16, 16)]
    for image, mask in zip(images, masks):
        inputs = segmenter.processor(image.convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            outputs = segmenter.model(**inputs)
        expected = segmenter.processor.post_process_semantic_segmentation(outputs, [image.size[::-1]])[0].numpy()
        assert (mask == expected).mean() > 0.97  # resized by another library
    metrics, examples = evaluate_segmentation(segmenter, drawn_dataset(), show_progress=False)
    assert set(metrics["per_class_iou"]) == set(NAMES) and examples == []


def test_segment_is_a_drop_in_replacement_for_that_of_the_pipeline(segmenter, images):
    assert inspect.signature(segmenter.segment) == inspect.signature(DiffuseSegPipeline.segment.__get__(object()))
    output = segmenter.segment(images, mask_size=(8, 12))
    assert [mask.size for mask in output.masks] == [(12, 8)] * 2 and output.masks[0].mode == "P"
    assert output.masks[0].getpalette()[3:6] == default_palette(3)[1]
    assert [u.shape for u in output.uncertainty] == [(8, 12)] * 2 and output.probabilities is None
    output = segmenter.segment(images, output_type="pt", return_probabilities=True)
    for mask, probabilities in zip(output.masks, output.probabilities):
        assert mask.dtype == torch.uint8 and probabilities.shape == (3, *mask.shape)
        torch.testing.assert_close(probabilities.sum(0), torch.ones(mask.shape))
        assert torch.equal(probabilities.max(0).indices.to(torch.uint8), mask)
    assert len(segmenter.segment(images, return_probabilities=True, return_dict=False)) == 4
    assert segmenter.label_names == NAMES and segmenter.palette == default_palette(3)
    for wrong, message in (
        (dict(output_type="numpy"), "`output_type` is"),
        (dict(batch_size=0), "`batch_size` must be"),
        (dict(class_labels=1), "not class-conditional"),
    ):
        with pytest.raises(UserError, match=message):
            segmenter.segment(images, **wrong)


def test_a_saved_student_loads_with_its_processor_in_any_precision(segmenter, images, tmp_path):
    segmenter.save_pretrained(tmp_path / "student")
    loaded = StudentSegmenter.from_pretrained(tmp_path / "student")
    assert loaded.image_size == (32, 32) and loaded.device.type == "cpu"
    for a, b in zip(loaded.segment(images, output_type="np").masks, segmenter.segment(images, output_type="np").masks):
        assert np.array_equal(a, b)
    assert StudentSegmenter.from_pretrained(tmp_path / "student", dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="nowhere cannot be loaded"):
        StudentSegmenter.from_pretrained(tmp_path / "nowhere")


def test_a_processor_without_a_fixed_size_is_refused(segmenter):
    segmenter.processor.size = {"shortest_edge": 224}
    with pytest.raises(UserError, match="a height and a width are needed"):
        StudentSegmenter(segmenter.model, segmenter.processor)


def test_a_damaged_folder_is_refused_and_colours_are_kept(segmenter, tmp_path):
    colors = [[i, 2 * i, 3 * i] for i in range(len(segmenter.label_names))]
    StudentSegmenter(segmenter.model, segmenter.processor, colors).save_pretrained(tmp_path)
    assert StudentSegmenter.from_pretrained(tmp_path).palette == colors
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"depths": [d + 1 for d in config["depths"]]}))
    with pytest.raises(UserError, match="its weights lack"):
        StudentSegmenter.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="restore its preprocessor_config.json"):
        StudentSegmenter.from_pretrained(tmp_path)
