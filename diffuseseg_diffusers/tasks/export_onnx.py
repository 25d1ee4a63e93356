# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Writes a student as an ONNX file: `diffuseseg export-onnx`."""

from dataclasses import dataclass
from pathlib import Path

from ..jobs.config import option
from ..jobs.errors import UserError
from ..jobs.files import check_writable
from .options import CachesDownloads, needs


@dataclass(frozen=True, kw_only=True)
class ExportOnnxConfig(CachesDownloads):
    """Write a student as an ONNX file."""

    model: str = option(help="Student: a local folder or a name on the Hub.", positional=True, reads=True)
    file: Path = option(help="ONNX file to write.", positional=True, influence=False, why="where, not what")
    revision: str | None = option(None, "Branch, tag or commit of a student on the Hub.")
    int8: bool = option(
        False,
        "Quantise to int8, by the activations of unlabelled images; says on how many pixels masks agree with float32.",
    )
    unlabeled_dataset_name: str | None = option(
        None, "Unlabelled images for --int8: a local folder or a name on the Hub; 128 of them are read.", reads=True
    )
    unlabeled_dataset_config_name: str | None = option(None, "Configuration of that dataset.")
    unlabeled_split: str = option("train", "Split of that dataset.")
    overwrite: bool = option(
        False, "Replace a file of that name.", influence=False, why="what was there, not what is made"
    )

    def check(self) -> None:
        super().check()
        if self.int8 != bool(self.unlabeled_dataset_name):
            raise UserError("--int8 and --unlabeled_dataset_name go together; give both, or neither.")
        needs(self, "unlabeled_dataset_name", "unlabeled_dataset_config_name", "unlabeled_split")


def export_onnx(config: ExportOnnxConfig) -> None:
    """Writes a student as an ONNX file that takes pixels `[N, C, H, W]` in 0 to 1 and gives masks.

    Raises:
        UserError: The model is not a student, or the file cannot be written.

    Examples:
        >>> from diffuseseg_diffusers import ExportOnnxConfig, export_onnx
        >>> export_onnx(ExportOnnxConfig(model="out/student", file="student.onnx"))
    """
    from ..datasets.unlabeled import load_unlabeled
    from ..evaluation.agreement import agreement_line
    from ..jobs.hardware import AGREEMENT
    from ..pipelines.loading import ONNX, load_pipeline
    from ..students.export import export_onnx as write_onnx
    from ..students.quantization import calibration_images
    from ..students.student import Student

    if config.file.suffix != ONNX:
        raise UserError(f"{config.file} does not end in {ONNX}, by which commands know such files; give such a name.")
    check_writable(config.file.parent, "file")
    if config.file.is_dir() or (config.file.exists() and not config.overwrite):
        raise UserError(f"{config.file} exists and is kept; choose another name, or pass --overwrite for a file.")
    student = load_pipeline(config.model, config.revision, "cpu", "float32", config.cache_dir)
    if not isinstance(student, Student):
        raise UserError(f"{config.model} is not a student; `diffuseseg train-student` makes one of it.")
    images: list = []
    if config.int8:
        where = (config.unlabeled_dataset_name, config.unlabeled_dataset_config_name, config.unlabeled_split)
        images = calibration_images(student, *load_unlabeled(*where, cache_dir=config.cache_dir))
    agreement = write_onnx(student, config.file, images)
    height, width = student.image_size
    if agreement is not None:
        print(agreement_line({"int8": agreement}))
        if agreement < AGREEMENT:
            print("`diffuseseg compare` with the student says what that changes in mean IoU.")
    print(f"Written to {config.file}: pixels [N, {student.in_channels}, {height}, {width}] in [0, 1] to masks.")
