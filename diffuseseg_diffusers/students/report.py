# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training leaves behind: the best student, its decisions, its measurements and how it was made."""

import copy
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from torch import nn

from ..datasets.columns import describe_dataset
from ..datasets.unlabeled import evenly_spread
from ..evaluation.agreement import IMAGES as COMPARED
from ..evaluation.agreement import agreement_line, measure_agreement
from ..evaluation.decision_fitting import IMAGES as DECIDING
from ..evaluation.decision_fitting import fit_decisions
from ..evaluation.evaluate import evaluate_segmentation, format_metrics
from ..images.image_processor import ImageInput
from ..jobs.files import atomic_file, shown_name
from ..jobs.hardware import default_dtype, hardware
from ..pipelines.loading import load_pipeline
from ..trainer.checkpoints import BEST, checkpoints
from ..trainer.loop import Trainer
from .setup import StudentData
from .student import Student
from .targets import SoftTargets


GENERATED = {"seed", "uncertainty"}  # columns of what `diffuseseg generate` makes


def describe_training(
    config: Any, student: Student, data: StudentData, state: dict, start: str, num_unlabeled: int
) -> dict[str, Any]:
    """How a student was made, for its report and card.

    `state` is the trainer's, and `start` says where the weights are from, empty for fresh ones.
    """
    on_hub = start if start and not os.path.isdir(start) else None

    def describe(part: str, there: object) -> dict | None:
        name, config_name, split = config.part(part)
        return describe_dataset(name, config_name, split) if there else None

    return {
        "start": (on_hub or os.path.basename(os.path.abspath(start))) if start else "random",
        "model_on_hub": on_hub,
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "train_dataset": describe("train", data.train),
        "num_images": len(data.train or ()),
        "synthetic": data.train is not None and GENERATED <= set(data.train.dataset.column_names),
        "teacher": shown_name(config.teacher) if config.teacher else None,
        "unlabeled_dataset": describe("unlabeled", config.teacher),
        "num_unlabeled_images": num_unlabeled,
        "real_dataset": describe("real", data.real),
        "num_real_images": len(data.real or ()),
        "seconds": round(state["seconds"], 2),
        "validation_mean_iou": state["best"] if state["best"] >= 0 else None,
        "epochs": state["epochs"],
    }


def keep_epoch(trainer: Trainer, student: Student, data: StudentData, loss: float) -> None:
    """Measures the student after an epoch, and saves it; without held-out images the last weights are the best."""
    state, measured = trainer.state, {"epoch": trainer.stream.epoch, "loss": loss}
    for name, images in (("validation", data.validation), ("eval", data.evaluation)):
        if images is not None:
            measured[name] = evaluate_segmentation(student, images, show_progress=False)[0]["mean_iou"]
    found = measured.get("validation", state["best"])
    is_best = data.validation is None or found > state["best"]
    state |= {"best": max(state["best"], found), "epochs": [*state["epochs"], measured]}
    before = checkpoints(trainer.folder)

    def write(folder: Path) -> None:
        student.save_pretrained(folder / BEST) if is_best else shutil.copytree(before[-1] / BEST, folder / BEST)

    trainer.save(write)
    said = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
    trainer.accelerator.print("  ".join(said))


def finish_student(
    folder: Path, best: Path, accelerator: Accelerator, data: StudentData, unlabeled: SoftTargets | None
) -> dict[str, Any]:
    """Copies the best weights into the run's folder, adds decisions fitted on images whose labels they did not learn
    from, and measures them; returns what was measured, for the report."""
    for path in best.iterdir():
        with atomic_file(folder / path.name) as partial:
            shutil.copyfile(path, partial)
    student: Any = load_pipeline(str(folder), device=accelerator.device, dtype="float32")
    found: dict[str, Any] = {"hardware": hardware(accelerator.device), "num_processes": accelerator.num_processes}
    if unseen := unlabeled or data.validation:
        images = some_images(unseen, DECIDING)
        student.decisions = fit_decisions(student, images, min(len(unseen), DECIDING))
        found["decisions"] = None if student.decisions is None else student.decisions.config
    if data.evaluation is not None:
        found["evaluation"], _ = evaluate_segmentation(student, data.evaluation)
        print(format_metrics(found["evaluation"]))
    student.save_pretrained(folder)
    seen = some_images(data.evaluation or data.validation or unlabeled or data.train or data.real, COMPARED)
    if agreement := record_student_agreement(student, seen):
        found["agreement"] = agreement
        student.save_pretrained(folder)
    return found


def record_student_agreement(student: Student, images: Iterable[ImageInput]) -> dict[str, float]:
    """Compares a student's masks in float32 with those in the precision that `auto` would take; prints the result and
    keeps it in `student.agreement`. Empty if there is nothing to compare."""
    if (dtype := default_dtype(student.device)) == torch.float32:
        return {}
    reduced = copy.deepcopy(student)
    nn.Module.to(reduced.model, dtype)  # that of diffusers warns of modules to keep in float32, of which there are none
    student.agreement = measure_agreement(reduced, lambda: student, images)
    print(agreement_line(student.agreement))
    return student.agreement


def some_images(data: Any, number: int) -> Iterator[PIL.Image.Image]:
    """Some images of [`LabeledImages`] or [`SoftTargets`], evenly spread."""
    for row in map(data.__getitem__, evenly_spread(len(data), number)):
        yield row[0] if isinstance(row, tuple) else row.image
