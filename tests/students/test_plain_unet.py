# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import copy
from unittest import mock

import pytest
import torch
from PIL import Image

from diffuseseg_diffusers import load_pipeline
from diffuseseg_diffusers.students.choosing import new_student
from diffuseseg_diffusers.students.plain_unet import PlainUNet
from diffuseseg_diffusers.students.report import record_student_agreement
from diffuseseg_diffusers.students.unets import plain_unet

from ..conftest import draw


def test_it_does_not_see_brightness_and_contrast_of_a_picture():
    torch.manual_seed(0)
    net, image = PlainUNet((16, 24), 1, 3, width=8, levels=3).eval(), torch.rand(2, 1, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(net(image)[0], net(0.3 * image - 0.2)[0], atol=1e-4, rtol=1e-4)
        assert net(image)[0].shape == (2, 3, 16, 24)


@pytest.mark.parametrize("mirror", [True, False])
def test_mirrored_logits_are_averaged_in_evaluation_alone(mirror):
    torch.manual_seed(0)
    net, image = PlainUNet((16, 16), 3, 2, width=8, levels=2, mirror=mirror), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found, other = net.eval()(image)[0], net(image.flip(-1))[0].flip(-1)
        assert torch.allclose(found, other, atol=1e-5) is mirror
        trained = PlainUNet.logits(net.train(), image)
        assert torch.equal(net(image)[0], trained)


def test_a_saved_one_segments_alike(tmp_path):
    torch.manual_seed(0)
    student = plain_unet(["sky", "disc"], (16, 24), 3, [[0, 0, 0], [9, 200, 30]], mirror=True)
    student.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path, dtype="float32")
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    found, kept = (one.segment_batch(pixels, [(16, 24)], return_probabilities=True) for one in (student, again))
    assert torch.equal(found.probabilities[0], kept.probabilities[0])
    assert (again.label_names, again.palette, again.image_size) == (student.label_names, student.palette, (16, 24))


def test_a_faint_picture_is_read_alike_in_bfloat16():
    torch.manual_seed(0)
    student = plain_unet(["sky", "disc"], (32, 32), 1)
    bright = torch.rand(4, 1, 32, 32)
    with torch.no_grad():
        student.model.train()(bright * 2 - 1)  # statistics of batch norms
    student.model.eval()
    reduced = copy.deepcopy(student)
    reduced.model.to(torch.bfloat16)
    faint = 0.9 + 0.02 * (bright - 0.5)  # steps of bfloat16 are 0.004 there
    found, expected = (one.logits(faint).argmax(1) for one in (reduced, student))
    assert (found == expected).float().mean() > 0.97


def test_training_from_nothing_again_keeps_the_kind_of_network(tmp_path):
    plain_unet(["sky", "disc"], (16, 16), 3).save_pretrained(tmp_path)
    student, _ = new_student(str(tmp_path), ["sky", "disc"], (16, 16), 3, from_scratch=True)
    assert isinstance(student.model, PlainUNet)


def test_precisions_are_compared_without_a_warning(monkeypatch, capsys):
    student = plain_unet(["sky", "disc"], (16, 24), 1)
    warned = mock.Mock()
    monkeypatch.setattr("diffusers.models.modeling_utils.logger.warning", warned)
    monkeypatch.setattr("diffuseseg_diffusers.students.report.default_dtype", lambda device: torch.bfloat16)
    found = record_student_agreement(student, [Image.fromarray(draw((16, 24), 0)[0])])
    assert 0 <= found["bfloat16"] <= 1 and student.model.dtype == torch.float32 and not warned.called
    assert "Masks in bfloat16 agree" in capsys.readouterr().out
