# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students as ONNX files, and ONNX files as segmenters."""

import copy
import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..heads.decisions import Decisions, winners
from ..heads.guided import check_guided
from ..heads.inputs import check_tiling
from ..jobs.errors import UserError
from ..jobs.files import atomic_file
from ..jobs.install import missing_extra
from .quantization import quantize_onnx
from .student import LogitSegmenter, Student


METADATA = "diffuseseg"  # key in a file's metadata: names and colours of the classes, and decisions, as JSON


class _Exported(torch.nn.Module):
    """Images at the student's size to class ids and logits, in one graph: normalisation, network, upsampling."""

    def __init__(self, student: Student):
        super().__init__()
        self.student, self.model = student, student.model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.student.logits(pixels)
        whole = logits
        if logits.shape[-2:] != pixels.shape[-2:]:
            whole = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        p = whole if self.student.decisions is None else whole.softmax(dim=1)
        return winners(p, self.student.decisions).to(torch.uint8), logits


def export_onnx(student: Student, path: str | os.PathLike, calibration: Sequence[np.ndarray] = ()) -> float | None:
    """Writes a student as an ONNX file, atomically: `pixels`, `[N, in_channels, H, W]` float32 in [0, 1], to `masks`,
    `[N, H, W]` uint8, and `logits`, `[N, num_classes, h, w]` float32.

    The number of images is free; height and width are the student's.

    Args:
        student ([`Student`]): It is exported in float32, and stays as it is.
        path (`str` or path): The file.
        calibration (sequence of `[in_channels, H, W]` uint8): Images to quantise to int8 on, see [`quantize_onnx`];
            without any the file computes in float32.

    Returns:
        `float`: With `calibration`, the share of the pixels whose class is that in float32.

    Raises:
        UserError: The extra `onnx` is not installed; says what to install. Or there is one image of `calibration`.
    """
    for module in ("onnxscript", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise missing_extra("onnx", module)
    known = {"label_names": student.label_names, **student.extras(), "int8": len(calibration) > 0}
    del known["agreement"]  # was measured in PyTorch
    student = copy.deepcopy(student)
    student.model = student.model.eval().to("cpu", torch.float32)
    pixels = torch.rand(2, student.in_channels, *student.image_size)
    program = torch.onnx.export(
        _Exported(student).eval(),
        (pixels,),
        input_names=["pixels"],
        output_names=["masks", "logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    program.model.metadata_props[METADATA] = json.dumps(known)
    with atomic_file(path) as partial:
        program.save(partial, external_data=False)
        return quantize_onnx(partial, calibration) if len(calibration) else None


class OnnxStudent(LogitSegmenter):
    """A student in an ONNX file, computed by ONNX Runtime on the CPU.

    Args:
        path (`str` or path): What [`export_onnx`] wrote.

    Raises:
        UserError: There is no such file, it is no such student, or the extra `onnx` is not installed.
    """

    def __init__(self, path: str | os.PathLike):
        if importlib.util.find_spec("onnxruntime") is None:
            raise missing_extra("onnx", "onnxruntime")
        import onnxruntime

        if not os.path.isfile(path):
            raise UserError(f"There is no file {path}.")
        self._path, self._bytes = path, os.path.getsize(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            given = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA])
            self.label_names, self.palette = list(given["label_names"]), list(given["palette"])
            self.decisions = Decisions.of(given.get("decisions"), len(self.label_names))
            self.fitted_tiles = check_tiling(given.get("tiling"))
            self.guided = check_guided(given.get("guided"))
            self.precision = "int8" if given.get("int8") else "float32"
            shape = self.session.get_inputs()[0].shape
            self.in_channels, self.image_size = int(shape[1]), (int(shape[2]), int(shape[3]))
        except Exception as error:  # of ONNX Runtime, whose classes are those of its own errors
            raise UserError(f"{path} is no student that `diffuseseg export-onnx` wrote: {error!r:.200}.") from error
        found = {output.name: output.shape for output in self.session.get_outputs()}.get("logits")
        if found is None or found[1] != len(self.label_names):
            raise UserError(f"{path} has logits {found} for {len(self.label_names)} classes; export the student again.")

    @property
    def nbytes(self) -> int:
        return self._bytes

    def identity(self) -> dict[str, str]:
        with open(self._path, "rb") as file:
            return {"file": hashlib.file_digest(file, "sha256").hexdigest()[:16]}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(["logits"], {"pixels": pixels.numpy()})[0])
