# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a fast segmentation network on images, masks and what a fitted model knows: `diffuseseg train-student`.

    accelerate launch training/train_student.py --teacher MODEL --unlabeled_dataset_name IMAGES \\
        --train_dataset_name DATA --eval_dataset_name DATA --output_dir OUT

With a teacher, the student learns from its probabilities for images without labels too, and the last weights are kept.
Without one, the weights that are kept are those that segment images best that were held out of the training data. The
images to measure on choose nothing. `--train_batch_size` is per process. The same command line resumes after the last
whole epoch.
"""

import argparse
import os
import shutil
import time
from collections.abc import Iterator

import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, load_labeled_images
from diffuseseg_diffusers.arguments import (
    add_cache_argument,
    add_output_arguments,
    check_at_least_one,
    folder_path,
    inputs_of,
    run_script,
)
from diffuseseg_diffusers.datasets.columns import contents_fingerprint, describe_dataset
from diffuseseg_diffusers.datasets.unlabeled import count_channels, evenly_spread, load_unlabeled
from diffuseseg_diffusers.evaluation.agreement import IMAGES as COMPARED
from diffuseseg_diffusers.evaluation.agreement import agreement_line, measure_agreement
from diffuseseg_diffusers.evaluation.decision_fitting import IMAGES as DECIDING
from diffuseseg_diffusers.evaluation.decision_fitting import fit_decisions
from diffuseseg_diffusers.evaluation.evaluate import format_metrics
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.hub.student_card import STUDENT_FILES, STUDENT_RECORD
from diffuseseg_diffusers.images.image_processor import unnamed_classes
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import atomic_file, check_output_folder, remove_matching, shown_name, write_json
from diffuseseg_diffusers.jobs.hardware import default_device, default_dtype, hardware, report_processes
from diffuseseg_diffusers.jobs.run import may_resume, open_run
from diffuseseg_diffusers.pipelines.loading import ONNX, load_pipeline
from diffuseseg_diffusers.pipelines.segmenter import Segmenter
from diffuseseg_diffusers.students.arguments import add_student_arguments, check_sources
from diffuseseg_diffusers.students.choosing import RATES, UNET, check_reads, new_student, student_size
from diffuseseg_diffusers.students.networks import DEFAULT_STUDENT
from diffuseseg_diffusers.students.student import Student
from diffuseseg_diffusers.students.targets import (
    TARGETS,
    TARGETS_FILE,
    SoftTargets,
    claim_targets,
    compute_targets,
    teacher_fingerprint,
)
from diffuseseg_diffusers.students.training import (
    BEST,
    CHECKPOINT_FILES,
    IN_CHECKPOINTS,
    StudentTraining,
    TrainingOptions,
    checkpoints,
    parameter_groups,
)
from diffuseseg_diffusers.students.unets import UNetStudent


COMMAND = "train-student"
IN_TARGETS = (TARGETS_FILE, f".{TARGETS_FILE}.lock")  # the second of a process that was killed
OWNED = (*CHECKPOINT_FILES, *STUDENT_FILES, STUDENT_RECORD, *(f"{TARGETS}/{name}" for name in IN_TARGETS))
GENERATED = {"seed", "uncertainty"}  # columns of what `diffuseseg generate` makes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_student_arguments(parser)
    add_output_arguments(parser, "the model, as its library reads it").add_argument(
        "--targets_dir",
        type=folder_path,
        help="Folder for what the teacher said, to be used by other runs too (default: below the output, until the "
        "end).",
    )
    add_cache_argument(parser)
    add_hub_arguments(parser)


def main(args: argparse.Namespace) -> None:
    # 1. Data and models, and only then the folder.
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=default_device().type == "cpu")
    report_processes(accelerator)
    if accelerator.is_main_process and not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    check_sources(args)
    check_at_least_one(args, "max_unlabeled", "images_per_epoch")
    teacher = load_teacher(args, accelerator.device) if args.teacher else None
    train, validation = load_labels(args, "train", teacher), None
    fraction = validation_fraction(args)
    if train is not None and fraction > 0:
        train, validation = train.split(fraction, args.seed)
    real = load_labels(args, "real", teacher, train)
    evaluation = load_labels(args, "eval", teacher, train or real)
    set_seed(args.seed)
    segmenter, kind = make_segmenter(args, train or real, teacher)
    parameter_groups(segmenter.model, args.layer_decay)  # before anything is written
    untrained = args.from_scratch or args.model in (None, UNET)
    start = getattr(segmenter.model, "name_or_path", "" if untrained else args.model)  # empty where weights are fresh
    asked = unlabeled_images(args) if teacher else None
    options = options_of(args, sum(map(len, (train or (), real or (), asked[0] if asked else ()))), kind)
    targets = targets_of(args, teacher, asked, segmenter) if teacher and asked else None
    if accelerator.is_main_process:
        prepare_push(args)
        if targets and args.targets_dir:
            claim_targets(args.targets_dir, targets)
        labeled = {"train_contents": train, "real_contents": real, "eval_contents": evaluation}
        settings = settings_of(args, accelerator, options, segmenter, labeled, targets)
        open_run(args.output_dir, COMMAND, settings, OWNED, args.overwrite, inputs_of(args))
    accelerator.wait_for_everyone()
    unlabeled = None
    if teacher and asked and not (args.output_dir / STUDENT_RECORD).is_file():
        own = args.targets_dir or args.output_dir / TARGETS
        unlabeled = compute_targets(teacher, *asked, own, segmenter.image_size, segmenter.in_channels)
    del teacher  # its memory is the student's from here on

    # 2. Epochs, each with a checkpoint in the end; the best weights are what is left.
    complete = (args.output_dir / STUDENT_RECORD).is_file()
    if not complete:
        training = StudentTraining(accelerator, segmenter, train, real, options, unlabeled)
        state = run_epochs(args, training, validation, evaluation)
    if not accelerator.is_main_process:
        return
    if complete:
        print(f"{args.output_dir} is complete.")
    else:
        report = report_of(args, segmenter, train, real, state, start, len(unlabeled or ()))
        keep_best(args, accelerator, report, evaluation, unlabeled, validation, train or real)
        print(f"Trained in {state['seconds']:.0f} s; the model is in {args.output_dir}.")
    for checkpoint in checkpoints(args.output_dir):
        remove_matching(checkpoint, IN_CHECKPOINTS)
    if (args.output_dir / TARGETS).is_dir():
        remove_matching(args.output_dir / TARGETS, IN_TARGETS)
    finish_push(args)


def run_epochs(
    args: argparse.Namespace,
    training: StudentTraining,
    validation: LabeledImages | None,
    evaluation: LabeledImages | None,
) -> dict:
    """Trains from the last checkpoint on; returns what is known of the epochs.

    Without images that were held out, the last weights are the best.
    """
    accelerator, segmenter = training.accelerator, training.segmenter
    state = training.load_checkpoint(args.output_dir)
    if state:
        accelerator.print(f"Resuming after epoch {state['epoch']}.")
    state = state or {"epoch": 0, "seconds": 0.0, "best": -1.0, "epochs": []}
    for epoch in range(state["epoch"], args.num_epochs):
        began = time.perf_counter()
        measured = {"epoch": epoch + 1, "loss": training.run_epoch(epoch)}
        state["seconds"] += time.perf_counter() - began
        for name, data in (("validation", validation), ("eval", evaluation)):
            if data is not None:
                measured[name] = evaluate_segmentation(segmenter, data, show_progress=False)[0]["mean_iou"]
        found = measured.get("validation", state["best"])
        is_best = validation is None or found > state["best"]
        best = max(state["best"], found)
        state |= {"epoch": epoch + 1, "best": best, "epochs": [*state["epochs"], measured]}
        training.save_checkpoint(args.output_dir, state, is_best)
        accelerator.print(
            "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
        )
    return state


def keep_best(
    args: argparse.Namespace,
    accelerator: Accelerator,
    report: dict,
    evaluation: LabeledImages | None,
    unlabeled: SoftTargets | None,
    validation: LabeledImages | None,
    labeled: LabeledImages | None,
) -> None:
    """Takes the best weights out of the last checkpoint, with decisions by what they say of images whose labels they
    did not learn from; measures them, and writes the report."""
    for path in (checkpoints(args.output_dir)[-1] / BEST).iterdir():
        with atomic_file(args.output_dir / path.name) as partial:
            shutil.copyfile(path, partial)
    student = load_pipeline(args.output_dir, device=accelerator.device, dtype="float32")
    report |= {"hardware": hardware(accelerator.device), "num_processes": accelerator.num_processes}
    if unseen := unlabeled or validation:
        images = some_images(unseen, DECIDING)
        student.decisions = fit_decisions(student, images, min(len(unseen), DECIDING))
        report["decisions"] = None if student.decisions is None else student.decisions.config
    if evaluation is not None:
        report["evaluation"], _ = evaluate_segmentation(student, evaluation)
        report["evaluation"]["dataset"] = describe_dataset(*part_of(args, "eval"))
        print(format_metrics(report["evaluation"]))
    student.save_pretrained(args.output_dir)
    if (dtype := default_dtype(accelerator.device)) != torch.float32:
        reduced = load_pipeline(args.output_dir, device=accelerator.device, dtype=dtype)
        seen = some_images(evaluation or validation or unlabeled or labeled, COMPARED)
        student.agreement = report["agreement"] = measure_agreement(reduced, lambda: student, seen)
        student.save_pretrained(args.output_dir)
        print(agreement_line(student.agreement))
    write_json(args.output_dir / STUDENT_RECORD, report)


def some_images(data: LabeledImages | SoftTargets, number: int) -> Iterator[PIL.Image.Image]:
    """So many images of those that were given, evenly spread."""
    for row in map(data.__getitem__, evenly_spread(len(data), number)):
        yield row[0] if isinstance(row, tuple) else row.image


def part_of(args: argparse.Namespace, part: str) -> tuple[str, str | None, str]:
    return tuple(getattr(args, f"{part}_{x}") for x in ("dataset_name", "dataset_config_name", "split"))


def load_labels(
    args: argparse.Namespace, part: str, teacher: Segmenter | None, first: LabeledImages | None = None
) -> LabeledImages | None:
    """A labelled dataset, with the classes of the teacher if there is one, or of the first dataset.

    Raises:
        UserError: The dataset has other classes.
    """
    name, config, split = part_of(args, part)
    if name is None:
        return None
    given: dict = {"cache_dir": args.cache_dir}
    if teacher is not None:
        given |= {"ignore_index": teacher.ignore_index, "classes": teacher.label_names}
    elif first is not None:
        given["classes"] = first.label_names or unnamed_classes(first.num_classes)
    return load_labeled_images(name, config, split, **given)


def validation_fraction(args: argparse.Namespace) -> float:
    """What of the training data is held out."""
    given = args.validation_fraction
    return given if given is not None else 0.0 if args.teacher else 0.1


def load_teacher(args: argparse.Namespace, device: torch.device) -> Segmenter:
    """The model that is asked.

    Raises:
        UserError: It has no head, or reads other images than students do.
    """
    where = None if args.teacher.endswith(ONNX) else device  # ONNX files run where they run
    teacher = load_pipeline(args.teacher, device=where, cache_dir=args.cache_dir)
    teacher.check_can_segment()
    if teacher.channels.config is not None or teacher.in_channels not in (1, 3):
        raise UserError(
            f"{args.teacher} reads chosen channels; students take pictures of 1 or 3 channels of eight bits."
        )
    return teacher


def unlabeled_images(args: argparse.Namespace) -> tuple[Dataset, str]:
    """The images that the teacher is asked about, and their column."""
    dataset, column = load_unlabeled(*part_of(args, "unlabeled"), cache_dir=args.cache_dir)
    if args.max_unlabeled is not None and args.max_unlabeled < len(dataset):
        dataset = dataset.select(evenly_spread(len(dataset), args.max_unlabeled))
    return dataset, column


def targets_of(args: argparse.Namespace, teacher: Segmenter, asked: tuple[Dataset, str], segmenter: Student) -> dict:
    """What soft targets depend on."""
    names = ("teacher", "unlabeled_dataset_name", "unlabeled_dataset_config_name", "unlabeled_split", "max_unlabeled")
    settings = {name: getattr(args, name) for name in names} | {"unlabeled_images": len(asked[0])}
    settings["unlabeled_contents"] = contents_fingerprint(*asked)
    settings["teacher_weights"] = teacher_fingerprint(args.teacher, teacher)
    return settings | {"image_size": list(segmenter.image_size), "in_channels": segmenter.in_channels}


def options_of(args: argparse.Namespace, num_images: int, kind: str) -> TrainingOptions:
    return TrainingOptions(
        num_epochs=args.num_epochs,
        images_per_epoch=args.images_per_epoch or max(1000, num_images),
        batch_size=args.train_batch_size,
        learning_rate=args.learning_rate or RATES[kind],
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        real_fraction=args.real_fraction,
        unlabeled_fraction=args.unlabeled_fraction,
        labels_last=args.labels_last,
        layer_decay=args.layer_decay,
        augmentation=not args.no_augmentation,
        flip=not args.no_flip,
        num_workers=args.dataloader_num_workers,
        seed=args.seed,
    )


def make_segmenter(
    args: argparse.Namespace, labeled: LabeledImages | None, teacher: Segmenter | None
) -> tuple[Student, str]:
    """The student and its kind, at the resolution that was asked for, or its own, or that of the images."""
    if args.resolution and (len(args.resolution) > 2 or min(args.resolution) < 1):
        raise UserError(f"--resolution is a side, or height and width, got {args.resolution}.")
    size = tuple(args.resolution * 2 if len(args.resolution) == 1 else args.resolution) if args.resolution else None
    if labeled is not None:
        first = labeled[0].image
        if not isinstance(first, PIL.Image.Image):
            raise UserError(f"Students take pictures of 1 or 3 channels of eight bits, and {labeled[0].name} is none.")
        images, grey = first.size[::-1], count_channels(labeled.dataset, labeled.image_column) == 1
        names = labeled.label_names or unnamed_classes(labeled.num_classes)
    else:
        images, grey, names = teacher.image_size, teacher.in_channels == 1, teacher.label_names
    size, asked_for = size or student_size(args.model, images), size
    if size != images and not asked_for:
        print(f"The student reads images at {size[0]} x {size[1]}; the first one has {images[0]} x {images[1]} pixels.")
    palette = teacher.palette if teacher else None
    given = (args.model, names, size, 1 if grey else 3, palette, args.from_scratch, args.cache_dir)
    student, kind = new_student(*given)
    check_reads(student)
    return student, kind


def settings_of(
    args: argparse.Namespace,
    accelerator: Accelerator,
    options: TrainingOptions,
    segmenter: Student,
    labeled: dict[str, LabeledImages | None],
    targets: dict | None,
) -> dict:
    """What the weights depend on."""
    parts, kinds = ("train", "real", "eval"), ("dataset_name", "dataset_config_name", "split")
    names = [f"{part}_{kind}" for part in parts for kind in kinds]
    names += ["real_fraction", "resolution", "no_augmentation", "no_flip", "from_scratch", "num_epochs"]
    names += ["images_per_epoch", "train_batch_size", "weight_decay", "max_grad_norm", "seed"]
    settings = {name: getattr(args, name) for name in names}
    settings["model"] = args.model or (UNET if isinstance(segmenter, UNetStudent) else DEFAULT_STUDENT)
    settings |= {"learning_rate": options.learning_rate, "validation_fraction": validation_fraction(args)}
    settings |= {"mixed_precision": accelerator.mixed_precision, "num_processes": accelerator.num_processes}
    for name, data in labeled.items():
        columns = (data.image_column, data.mask_column) if data else ()
        settings[name] = contents_fingerprint(data.dataset, *columns) if data else None
    settings |= {"layer_decay": args.layer_decay, "teacher": None, "unlabeled_dataset_name": None}
    if targets:
        settings |= targets | {"unlabeled_fraction": args.unlabeled_fraction, "labels_last": args.labels_last}
    return settings


def report_of(
    args: argparse.Namespace,
    student: Student,
    train: LabeledImages | None,
    real: LabeledImages | None,
    state: dict,
    start: str,
    num_unlabeled: int,
) -> dict:
    """How the student was made; `start` is where its weights are from, empty for fresh ones."""
    on_hub = start if start and not os.path.isdir(start) else None
    return {
        "start": (on_hub or os.path.basename(os.path.abspath(start))) if start else "random",
        "model_on_hub": on_hub,
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "train_dataset": describe_dataset(*part_of(args, "train")) if train else None,
        "num_images": len(train or ()),
        "synthetic": train is not None and GENERATED <= set(train.dataset.column_names),
        "teacher": shown_name(args.teacher) if args.teacher else None,
        "unlabeled_dataset": describe_dataset(*part_of(args, "unlabeled")) if args.teacher else None,
        "num_unlabeled_images": num_unlabeled,
        "real_dataset": describe_dataset(*part_of(args, "real")) if real else None,
        "num_real_images": len(real or ()),
        "seconds": round(state["seconds"], 2),
        "validation_mean_iou": state["best"] if state["best"] >= 0 else None,
        "epochs": state["epochs"],
    }


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
