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
from diffuseseg_diffusers.data.columns import describe_dataset
from diffuseseg_diffusers.data.unlabeled import load_unlabeled
from diffuseseg_diffusers.hub.loading import load_pipeline
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.hub.student_card import STUDENT_FILES, STUDENT_RECORD
from diffuseseg_diffusers.inference.evaluation import format_metrics
from diffuseseg_diffusers.runs.errors import UserError
from diffuseseg_diffusers.runs.files import atomic_file, check_output_folder, write_json
from diffuseseg_diffusers.runs.hardware import default_device, hardware, report_processes
from diffuseseg_diffusers.runs.resuming import may_resume, open_run
from diffuseseg_diffusers.segmenter import Segmenter
from diffuseseg_diffusers.students.choosing import (
    RATES,
    SMALL,
    UNET,
    new_student,
    student_size,
)
from diffuseseg_diffusers.students.networks import DEFAULT_STUDENT
from diffuseseg_diffusers.students.segmenter import Student
from diffuseseg_diffusers.students.targets import TARGETS, claim_targets, compute_targets, teacher_fingerprint
from diffuseseg_diffusers.students.training import (
    BEST,
    CHECKPOINT_FILES,
    StudentTraining,
    TrainingOptions,
    checkpoints,
    parameter_groups,
)
from diffuseseg_diffusers.students.unets import UNetStudent


COMMAND = "train-student"
OWNED = (*CHECKPOINT_FILES, *STUDENT_FILES, STUDENT_RECORD, f"{TARGETS}/*")
LABELS_LAST = 0.25  # share of the epochs
GENERATED = {"seed", "uncertainty"}  # columns of what `diffuseseg generate` makes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    for part, what in (
        ("train", "Images with masks to train on"),
        ("real", "More of them, mixed in at --real_fraction"),
        ("unlabeled", "Images without labels, on which --teacher is asked"),
        ("eval", "Images with masks to measure on"),
    ):
        names = [f"--{part}_dataset_name", *(["--train_data_dir"] if part == "train" else [])]
        group.add_argument(*names, help=f"{what}: a local folder or a Hub name.")
        group.add_argument(f"--{part}_dataset_config_name", help="Configuration of that dataset.")
        default = "test" if part == "eval" else "train"
        group.add_argument(f"--{part}_split", default=default, help=f"Split of that dataset (default: {default}).")
    group.add_argument(
        "--real_fraction",
        type=float,
        default=0.2,
        help="Share of the images of --real_dataset_name among those with masks that are shown (default: 0.2).",
    )
    group.add_argument(
        "--unlabeled_fraction",
        type=float,
        default=0.5,
        help="Share of images without labels among all that are shown (default: 0.5).",
    )
    group.add_argument(
        "--max_unlabeled", type=int, help="Number of images without labels, evenly spread (default: all)."
    )
    group.add_argument(
        "--labels_last",
        type=float,
        default=LABELS_LAST,
        help=f"Share of the epochs, the last, that show images with masks alone (default: {LABELS_LAST}).",
    )
    group.add_argument(
        "--validation_fraction",
        type=float,
        help="Share of the training data held out to choose the weights (default: 0.1; with a teacher 0, and the last "
        "weights are kept).",
    )
    group.add_argument("--resolution", type=int, nargs="+", help="Side, or height and width (default: as the images).")
    group.add_argument("--no_augmentation", action="store_true", help="Images as they are, no augmented views.")
    group.add_argument("--no_flip", action="store_true", help="No mirrored views: left and right mean something.")
    _add_training_arguments(parser)
    add_output_arguments(parser, "the model, as its library reads it")
    add_cache_argument(parser)
    add_hub_arguments(parser)


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        "--pretrained_model_name_or_path",
        help="unet, a U-Net of 2 million weights; a folder of a diffusion pipeline, whose denoiser is trained on; a "
        "student's folder; or Hub name, folder or JSON config of a network of transformers (default: unet for images "
        f"of up to {SMALL} pixels, else {DEFAULT_STUDENT}).",
    )
    group.add_argument("--teacher", help="Fitted model whose probabilities the student learns: a folder or a Hub name.")
    group.add_argument(
        "--targets_dir",
        type=folder_path,
        help="Folder for what the teacher said, to be used by other runs too (default: below the output, until the "
        "end).",
    )
    group.add_argument("--from_scratch", action="store_true", help="Fresh weights, though there are pretrained ones.")
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=int, default=20, help="Number of epochs (default: 20).")
    group.add_argument(
        "--images_per_epoch", type=int, help="Number of images in an epoch (default: all there are, 1000 at least)."
    )
    group.add_argument("--train_batch_size", type=int, default=16, help="Images per process and step (default: 16).")
    group.add_argument(
        "--learning_rate",
        type=float,
        help=f"Highest rate of AdamW (default: {', '.join(f'{rate:g} for {kind}' for kind, rate in RATES.items())}).",
    )
    group.add_argument(
        "--layer_decay",
        type=float,
        default=1.0,
        help="Rate of a stage of a U-Net as a share of that of the stage behind it (default: 1).",
    )
    group.add_argument("--weight_decay", type=float, default=0.01, help="Weight decay of AdamW (default: 0.01).")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="Largest norm of the gradient (default: 1).")
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="Precision (default: as Accelerate is configured)."
    )
    group.add_argument("--dataloader_num_workers", type=int, default=2, help="Processes that decode (default: 2).")
    group.add_argument("--seed", type=int, default=0, help="Seed of weights, order and augmentation (default: 0).")
    group.add_argument(
        "--resume_from_checkpoint", choices=["latest"], help="The default: the same command line always resumes."
    )


def main(args: argparse.Namespace) -> None:
    # 1. Data and models, and only then the folder.
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=default_device().type == "cpu")
    report_processes(accelerator)
    if accelerator.is_main_process and not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    check_sources(args)
    teacher = load_teacher(args, accelerator.device) if args.teacher else None
    train, validation = load_labels(args, "train", teacher), None
    fraction = validation_fraction(args)
    if train is not None and fraction > 0:
        train, validation = train.split(fraction, args.seed)
    labels = {"num_classes": train.num_classes, "label_names": train.label_names} if train else {}
    real = load_labels(args, "real", teacher, **labels)
    evaluation = load_labels(args, "eval", teacher, **labels)
    set_seed(args.seed)
    segmenter, kind = make_segmenter(args, train or real, teacher)
    parameter_groups(segmenter.model, args.layer_decay)  # before anything is written
    untrained = args.from_scratch or args.model in (None, UNET)
    start = getattr(segmenter.model, "name_or_path", "" if untrained else args.model)  # empty where weights are fresh
    asked = unlabeled_images(args) if teacher else None
    options = options_of(args, len(train or ()) + (len(asked[0]) if asked else 0), kind)
    targets = targets_of(args, teacher, asked[0], segmenter) if teacher and asked else None
    if accelerator.is_main_process:
        prepare_push(args)
        if targets and args.targets_dir:
            claim_targets(args.targets_dir, targets)
        settings = settings_of(args, accelerator, options, segmenter, targets)
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
        keep_best(args, accelerator, report, evaluation)
        print(f"Trained in {state['seconds']:.0f} s; the model is in {args.output_dir}.")
    for checkpoint in checkpoints(args.output_dir):
        shutil.rmtree(checkpoint)
    if unlabeled is not None and not args.targets_dir:
        for path in unlabeled.paths:
            path.unlink()
        (args.output_dir / TARGETS).rmdir()
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
    args: argparse.Namespace, accelerator: Accelerator, report: dict, evaluation: LabeledImages | None
) -> None:
    """Takes the best weights out of the last checkpoint, measures them, and writes the report."""
    for path in (checkpoints(args.output_dir)[-1] / BEST).iterdir():
        with atomic_file(args.output_dir / path.name) as partial:
            shutil.copyfile(path, partial)
    student = load_pipeline(args.output_dir, device=accelerator.device, dtype="float32")
    report |= {"hardware": hardware(accelerator.device), "num_processes": accelerator.num_processes}
    if evaluation is not None:
        report["evaluation"], _ = evaluate_segmentation(student, evaluation)
        report["evaluation"]["dataset"] = describe_dataset(*part_of(args, "eval"))
        print(format_metrics(report["evaluation"]))
    write_json(args.output_dir / STUDENT_RECORD, report)


def part_of(args: argparse.Namespace, part: str) -> tuple[str, str | None, str]:
    return tuple(getattr(args, f"{part}_{x}") for x in ("dataset_name", "dataset_config_name", "split"))


def load_labels(args: argparse.Namespace, part: str, teacher: Segmenter | None, **labels) -> LabeledImages | None:
    """A labelled dataset, with the teacher's classes if there is one.

    Raises:
        UserError: The dataset names other classes than the teacher, or has more.
    """
    name, config, split = part_of(args, part)
    if name is None:
        return None
    if teacher is None:
        return load_labeled_images(name, config, split, cache_dir=args.cache_dir, **labels)
    given = dict(cache_dir=args.cache_dir, ignore_index=teacher.ignore_index)
    found, names = load_labeled_images(name, config, split, **given), teacher.label_names
    if found.label_names is not None and list(found.label_names) != names:
        raise UserError(
            f"{name} has the classes {', '.join(found.label_names)}, but the teacher has {', '.join(names)}; they have "
            f"to be the same, in the same order."
        )
    if found.num_classes > len(names):
        raise UserError(f"{name} has {found.num_classes} classes, but the teacher has {len(names)}.")
    return load_labeled_images(name, config, split, label_names=names, num_classes=len(names), **given)


def validation_fraction(args: argparse.Namespace) -> float:
    """What of the training data is held out."""
    given = args.validation_fraction
    return given if given is not None else 0.0 if args.teacher else 0.1


def check_sources(args: argparse.Namespace) -> None:
    """Raises [`UserError`] unless there is something to learn from, and a teacher for what has no labels."""
    if bool(args.teacher) != bool(args.unlabeled_dataset_name):
        raise UserError("--teacher and --unlabeled_dataset_name go together: the one is asked about the other.")
    if not (args.train_dataset_name or args.teacher):
        raise UserError("There is nothing to learn from: give --train_dataset_name, or --teacher with images.")
    if args.targets_dir and not args.teacher:
        raise UserError("--targets_dir is for what a --teacher says; leave it out.")
    if args.targets_dir and args.targets_dir.resolve().is_relative_to(args.output_dir.resolve()):
        raise UserError("--targets_dir lies in --output_dir, which is the run's own; give a folder beside it.")
    check_at_least_one(args, "max_unlabeled")


def load_teacher(args: argparse.Namespace, device: torch.device) -> Segmenter:
    """The model that is asked.

    Raises:
        UserError: It has no head, or reads other images than students do.
    """
    teacher = load_pipeline(args.teacher, device=device, cache_dir=args.cache_dir)
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
        dataset = dataset.select([i * len(dataset) // args.max_unlabeled for i in range(args.max_unlabeled)])
    return dataset, column


def targets_of(args: argparse.Namespace, teacher: Segmenter, asked: Dataset, segmenter: Student) -> dict:
    """What soft targets depend on."""
    names = ("teacher", "unlabeled_dataset_name", "unlabeled_dataset_config_name", "unlabeled_split", "max_unlabeled")
    settings = {name: getattr(args, name) for name in names} | {"unlabeled_images": len(asked)}
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
        images, looked_at = first.size[::-1], range(min(len(labeled), 16))
        grey = all(getattr(labeled[i].image, "mode", None) in ("1", "L") for i in looked_at)
        names = labeled.label_names or [f"class {i}" for i in range(labeled.num_classes)]
    else:
        images, grey, names = teacher.image_size, teacher.in_channels == 1, teacher.label_names
    size, asked_for = size or student_size(args.model, images), size
    if size != images and not asked_for:
        print(f"The student reads images at {size[0]} x {size[1]}; the first one has {images[0]} x {images[1]} pixels.")
    palette = teacher.palette if teacher else None
    given = (args.model, names, size, 1 if grey else 3, palette, args.from_scratch, args.cache_dir)
    return new_student(*given)


def settings_of(
    args: argparse.Namespace,
    accelerator: Accelerator,
    options: TrainingOptions,
    segmenter: Student,
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
    if targets:
        settings |= targets | {"unlabeled_fraction": args.unlabeled_fraction, "labels_last": args.labels_last}
    if args.layer_decay != 1:
        settings["layer_decay"] = args.layer_decay
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
        "teacher": os.path.basename(os.path.abspath(args.teacher)) if args.teacher else None,
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
