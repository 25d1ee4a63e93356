# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import PIL.Image
import pytest
import torch

from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.export import OnnxStudent, export_onnx
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.quantization import IMAGES, calibration_images, quantize_onnx
from diffuseseg_diffusers.students.student import Student, StudentSegmenter
from diffuseseg_diffusers.students.unets import unet_from_denoiser

from ..conftest import draw, make_unet
from .test_networks import NAMES, write_config


def segformer(folder) -> Student:
    return StudentSegmenter(make_student(write_config(folder), NAMES), make_processor("nvidia/mit-b0", (32, 32)))


def taught(student: Student) -> Student:
    """The student after a few steps on drawn pictures, so that its classes are no ties."""
    torch.manual_seed(0)
    rows = [draw(student.image_size, i, channels=student.in_channels) for i in range(16)]
    x = torch.stack([torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1) for image, _ in rows]).float() / 255
    y = torch.stack([torch.from_numpy(np.asarray(mask)).long() for _, mask in rows])
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=3e-3)
    student.model.train()
    for _ in range(60):
        logits = torch.nn.functional.interpolate(student.logits(x), y.shape[-2:], mode="bilinear")
        loss = torch.nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.model.eval()
    return student


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unet", "segformer"])
def test_an_int8_file_is_small_and_gives_nearly_the_masks_of_float32(kind, tmp_path):
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    fresh = (
        unet_from_denoiser(make_unet(sample_size=32, in_channels=3, out_channels=3), NAMES)
        if kind == "unet"
        else segformer(tmp_path)
    )
    student = taught(fresh)
    images = [np.moveaxis(draw((32, 32), 100 + i, channels=3)[0], 2, 0) for i in range(24)]
    export_onnx(student, tmp_path / "float32.onnx")
    said = export_onnx(student, tmp_path / "int8.onnx", images)
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == ["float32.onnx", "int8.onnx"]
    files = {name: OnnxStudent(tmp_path / f"{name}.onnx") for name in ("float32", "int8")}
    assert files["int8"].palette == student.palette and files["int8"].label_names == NAMES
    held_out = torch.from_numpy(np.stack(images[1::2])).float() / 127.5 - 1
    sizes = [(32, 32)] * len(held_out)
    whole, reduced = (torch.stack(file.segment_batch(held_out, sizes).masks) for file in files.values())
    assert len(whole.unique()) > 1, "masks of one class would agree in any case"
    agreement = float((whole == reduced).float().mean())
    assert said == pytest.approx(agreement, abs=0.01) and agreement > 0.9
    weights = [w for w in onnx.load(tmp_path / "int8.onnx").graph.initializer if len(w.dims) > 1]
    int8 = sum(np.prod(w.dims) for w in weights if w.data_type == onnx.TensorProto.INT8)
    assert int8 > 0.8 * sum(np.prod(w.dims) for w in weights)
    # Sums of two products of eight and seven bits fit into 16, on processors that have no instruction for more.
    held = [onnx.numpy_helper.to_array(w) for w in weights if w.data_type == onnx.TensorProto.INT8]
    assert max(int(np.abs(w.astype(int)).max()) for w in held) <= 64


@pytest.mark.slow
def test_a_student_is_exported_in_float32_and_stays_in_its_precision(tmp_path):
    pytest.importorskip("onnxscript")
    student = unet_from_denoiser(make_unet(sample_size=16), NAMES)
    torch.nn.Module.to(student.model, torch.bfloat16)
    student.model.train()
    export_onnx(student, tmp_path / "student.onnx")
    assert student.model.dtype == torch.bfloat16 and student.model.training
    pixels = torch.rand(2, 1, 16, 16)
    found = OnnxStudent(tmp_path / "student.onnx").logits(pixels)
    torch.nn.Module.to(student.model.eval(), torch.float32)
    torch.testing.assert_close(found, student.logits(pixels).detach(), atol=1e-3, rtol=1e-3)


def test_a_single_image_cannot_calibrate_and_compare(tmp_path):
    with pytest.raises(UserError, match="int8 needs two images at least, .* got 1"):
        quantize_onnx(tmp_path / "student.onnx", [np.zeros((1, 16, 16), np.uint8)])


def test_images_for_calibration_are_those_that_the_student_would_read(tmp_path):
    for i in range(3):
        PIL.Image.fromarray(draw((40, 60), i)[0].squeeze()).save(tmp_path / f"{i}.png")
    dataset, column = load_unlabeled(str(tmp_path))
    student = unet_from_denoiser(make_unet(sample_size=16), NAMES)
    whole = calibration_images(student, dataset, column)
    assert [x.shape for x in whole] == [(1, 16, 16)] * 3
    student.fitted_tiles = {"tiles": True, "scale": 1.0, "pixel_size": None}
    tiles = calibration_images(student, dataset, column)
    assert 3 < len(tiles) <= IMAGES and {x.shape for x in tiles} == {(1, 16, 16)}
    # At a scale of 1 a tile is cut out as it is.
    first = np.concatenate([np.asarray(PIL.Image.open(tmp_path / f"{i}.png")).ravel() for i in range(3)])
    assert set(np.unique(tiles[0])) <= set(np.unique(first))
