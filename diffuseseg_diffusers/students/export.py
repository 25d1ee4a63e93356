# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students as ONNX files."""

import importlib.util
import os

import torch
import torch.nn.functional as F

from ..runs.files import atomic_file
from ..runs.install import missing_extra
from .segmenter import StudentSegmenter


class _Exported(torch.nn.Module):
    """Images at the student's size to class ids, in one graph: normalisation, network, upsampling."""

    def __init__(self, segmenter: StudentSegmenter):
        super().__init__()
        self.model = segmenter.model
        self.register_buffer("mean", torch.tensor(segmenter.processor.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(segmenter.processor.image_std).view(3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model((pixels - self.mean) / self.std).logits
        logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits.max(dim=1).indices.to(torch.uint8)


def export_onnx(segmenter: StudentSegmenter, path: str | os.PathLike) -> None:
    """Writes a student as an ONNX file: `pixels`, `[N, 3, H, W]` float32 in [0, 1], to `masks`, `[N, H, W]` uint8.

    The number of images is free; height and width are those of the student's image processor. Needs the extra `onnx`.

    Args:
        segmenter ([`StudentSegmenter`]): The student.
        path (`str` or path): File to write, atomically.

    Raises:
        UserError: The extra `onnx` is not installed; says what to install.
    """
    if importlib.util.find_spec("onnxscript") is None:
        raise missing_extra("onnx", "onnxscript")
    pixels = torch.rand(2, 3, *segmenter.image_size)
    with atomic_file(path) as partial:
        torch.onnx.export(
            _Exported(segmenter).cpu().eval(),
            (pixels,),
            partial,
            input_names=["pixels"],
            output_names=["masks"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            external_data=False,
            verbose=False,
        )
