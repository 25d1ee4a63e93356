# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Static quantisation of ONNX files to int8 by ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset

from ..datasets.unlabeled import evenly_spread
from ..jobs.errors import UserError
from .student import Student
from .targets import WholeImages, crops_as_read


IMAGES = 128  # at most; half of them calibrate, half compare
BATCH = 8
QUANTIZED = ["Conv", "MatMul", "Gemm"]


def calibration_images(student: Student, dataset: Dataset, column: str) -> list[np.ndarray]:
    """Up to 128 images without labels, evenly spread, as a student reads them: `[in_channels, H, W]` uint8, whole or
    random crops at the scale of its tiles.

    Raises:
        UserError: An image cannot be read; says which.
    """
    if student.fitted_tiles.get("tiles"):
        crops = crops_as_read(student, dataset, column)
        return [crops[row][0].numpy() for row in evenly_spread(len(crops), IMAGES)]
    images = WholeImages(dataset, column, student.image_size, student.in_channels)
    return [images[row][1].numpy() for row in evenly_spread(len(images), IMAGES)]


class _Batches:
    """A `CalibrationDataReader` of ONNX Runtime, which is imported when it is needed."""

    def __init__(self, pixels: np.ndarray):
        self.batches = iter([pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"pixels": batch}


def quantize_onnx(file: Path, images: Sequence[np.ndarray]) -> float:
    """Quantises convolutions and products of matrices to int8: weights for each channel, activations by the least and
    the largest value that calibration images gave.

    Args:
        file (`Path`): ONNX file of a student in float32, which is replaced.
        images (sequence of `[in_channels, H, W]` uint8): Every other one calibrates; on the others masks are compared.

    Returns:
        `float`: Share of the pixels whose class is that in float32.

    Raises:
        UserError: There are fewer than two images.
    """
    if len(images) < 2:
        raise UserError(f"int8 needs two images at least, one to calibrate on and one to compare, got {len(images)}.")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    pixels = np.stack(images).astype(np.float32) / 255  # [N,C,H,W]
    with TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(file, prepared, skip_symbolic_shape=True)
        types: Any = dict(activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)
        # Seven bits of weights: without VNNI, the sums of two products of eight bits saturate in 16.
        types |= dict(quant_format=QuantFormat.QDQ, op_types_to_quantize=QUANTIZED, reduce_range=True)
        expected = _masks(file, pixels[1::2])
        quantize_static(prepared, file, _Batches(pixels[::2]), **types)
    return float((expected == _masks(file, pixels[1::2])).mean())


def _masks(file: Path, pixels: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    batches = (pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH))
    return np.concatenate([session.run(["masks"], {"pixels": batch})[0] for batch in batches])
