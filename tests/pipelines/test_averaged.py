# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from diffuseseg_diffusers import load_pipeline
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.loading import load_pipelines
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import draw, make_pipeline


NAMES = ["sky", "disc", "bar"]


def test_models_together_are_the_mean_of_their_probabilities(tmp_path):
    torch.manual_seed(0)
    head = make_pipeline(head=True)
    head.save_pretrained(tmp_path / "head")
    student = new_unet(NAMES, head.image_size, head.in_channels)
    student.save_pretrained(tmp_path / "student")
    both = load_pipeline(f"{tmp_path / 'head'} + {tmp_path / 'student'}", device="cpu", dtype="float32")
    images = [draw((20, 24), 0)[0], draw((32, 32), 1)[0]]
    asked = dict(output_type="pt", return_probabilities=True)
    alone = [load_pipeline(tmp_path / n, device="cpu", dtype="float32") for n in ("head", "student")]
    found, parts = both.segment(images, **asked), [model.segment(images, **asked) for model in alone]
    for i in range(2):
        mean = (parts[0].probabilities[i] + parts[1].probabilities[i]) / 2
        torch.testing.assert_close(found.probabilities[i], mean)
        assert torch.equal(found.masks[i].long(), mean.argmax(0))
        entropy = -(mean * mean.clamp(min=1e-30).log()).sum(0)
        torch.testing.assert_close(found.uncertainty[i], entropy, rtol=1e-4, atol=1e-5)
    assert both.nbytes == sum(model.nbytes for model in alone) and both.label_names == NAMES
    assert np.array_equal(np.asarray(both.segment(images[0]).masks[0]), found.masks[0].numpy())


def test_models_that_differ_are_refused():
    first = new_unet(NAMES, (16, 16), 1)
    for other, message in (
        (new_unet(["a", "b", "c"], (16, 16), 1), "the classes"),
        (new_unet(NAMES, (24, 16), 1), "images of"),
        (new_unet(NAMES, (16, 16), 3), "the number of channels"),
    ):
        with pytest.raises(UserError, match=f"other has {message}"):
            AveragedSegmenter({"first": first, "other": other})


def test_a_folder_may_have_the_sign_in_its_name(tmp_path):
    new_unet(NAMES, (16, 16), 1).save_pretrained(tmp_path / "a + b")
    assert load_pipeline(tmp_path / "a + b", device="cpu", dtype="float32").label_names == NAMES


def test_a_head_that_ignores_another_id_and_its_student_go_together():
    head = make_pipeline(head=True)
    head.segmentation_head.register_to_config(ignore_index=7)
    student = new_unet(NAMES, head.image_size, head.in_channels)
    both = AveragedSegmenter({"head": head, "student": student})
    assert both.ignore_index == 7 and both.segment(draw((16, 16), 0)[0], output_type="np").masks[0].max() < len(NAMES)


def test_a_revision_is_of_one_model_on_the_hub():
    with pytest.raises(UserError, match="--revision can be of any of alice/a, alice/b"):
        load_pipelines(["alice/a", "alice/b"], revision="main")


def test_a_pipeline_without_a_head_is_a_sentence():
    student = new_unet(NAMES, (16, 16), 1)
    for models in ({"a": make_pipeline(), "b": student}, {"b": student, "a": make_pipeline()}):
        with pytest.raises(UserError, match="no segmentation head"):
            AveragedSegmenter(models)


def test_a_model_is_not_averaged_with_itself(tmp_path):
    new_unet(NAMES, (16, 16), 1).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match="names a model twice"):
        load_pipeline(f"{tmp_path}/a + {tmp_path}/./a")
