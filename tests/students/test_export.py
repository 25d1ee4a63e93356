# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from diffuseseg_diffusers.heads.decisions import Decisions
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.export import OnnxStudent, export_onnx
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.student import StudentSegmenter
from diffuseseg_diffusers.students.unets import unet_from_denoiser

from ..conftest import draw, make_unet
from .test_networks import NAMES, write_config


@pytest.mark.slow
def test_the_onnx_file_gives_the_masks_that_pytorch_gives(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = make_student(write_config(tmp_path), NAMES)
    segmenter = StudentSegmenter(model, make_processor("nvidia/mit-b0", (32, 64)))
    export_onnx(segmenter, tmp_path / "new" / "student.onnx")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["student.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "new" / "student.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = [draw((32, 64), i, channels=3)[0] for i in range(count)]
        pixels = np.stack(images).transpose(0, 3, 1, 2).astype(np.float32) / 255
        masks = session.run(["masks"], {"pixels": pixels})[0]
        expected = np.stack(segmenter.segment(images, output_type="np").masks)
        assert masks.dtype == np.uint8 and (masks == expected).mean() > 0.999  # ties of float32
    loaded = OnnxStudent(tmp_path / "new" / "student.onnx")
    assert loaded.image_size == (32, 64) and loaded.in_channels == 3 and loaded.palette == segmenter.palette
    found = loaded.segment(images, output_type="np").masks
    assert np.mean([(a == b).mean() for a, b in zip(found, expected)]) > 0.999


@pytest.mark.slow
def test_an_onnx_file_is_a_segmenter_with_the_contract_of_all(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    student = unet_from_denoiser(make_unet(sample_size=16), NAMES, palette=[[9, 9, 9], [1, 2, 3], [4, 5, 6]])
    student.decisions = Decisions((0.9, 0.2, 0.05), (0.7, 0.2, 0.01))
    export_onnx(student, tmp_path / "student.onnx")
    loaded = OnnxStudent(tmp_path / "student.onnx")
    assert loaded.image_size == student.image_size and loaded.in_channels == student.in_channels
    assert loaded.label_names == NAMES and loaded.palette == student.palette
    assert loaded.decisions == student.decisions
    pixels = torch.rand(3, 1, 16, 16)
    (graph,) = loaded.session.run(["masks"], {"pixels": pixels.numpy()})
    masks = torch.stack(loaded.segment_batch(pixels * 2 - 1, [(16, 16)] * 3).masks)
    assert (torch.from_numpy(graph) == masks).float().mean() > 0.99, "the graph decides as the segmenter does"
    images = [draw((20, 30), i)[0] for i in range(70)]  # more than 64, from where on diffusers upsamples otherwise
    given = dict(batch_size=70, output_type="np", return_probabilities=True)
    ours, theirs = student.segment(images, **given), loaded.segment(images, **given)
    for i in range(70):
        assert (ours.masks[i] == theirs.masks[i]).mean() > 0.99  # ties of float32
        np.testing.assert_allclose(ours.probabilities[i], theirs.probabilities[i], atol=1e-3)
        np.testing.assert_allclose(ours.uncertainty[i], theirs.uncertainty[i], atol=1e-2)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    segmenter = StudentSegmenter(make_student(write_config(tmp_path), NAMES), make_processor("nvidia/mit-b0", (32, 32)))
    with pytest.raises(UserError, match="onnxscript is not installed; run `pip install"):
        export_onnx(segmenter, tmp_path / "student.onnx")
