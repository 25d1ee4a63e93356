# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from diffuseseg_diffusers.runs.errors import UserError
from diffuseseg_diffusers.students.export import export_onnx
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.segmenter import StudentSegmenter

from ..conftest import draw
from .test_networks import NAMES, write_config


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


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    segmenter = StudentSegmenter(make_student(write_config(tmp_path), NAMES), make_processor("nvidia/mit-b0", (32, 32)))
    with pytest.raises(UserError, match="onnxscript is not installed; run `pip install"):
        export_onnx(segmenter, tmp_path / "student.onnx")
