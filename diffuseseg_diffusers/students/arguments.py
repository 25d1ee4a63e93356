# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the command that trains a student, and which of them go together."""

import argparse
import os
from pathlib import Path

from ..jobs.errors import UserError
from ..jobs.files import check_writable
from .choosing import RATES, SMALL
from .networks import DEFAULT_STUDENT


LABELS_LAST = 0.25  # share of the epochs


def add_student_arguments(parser: argparse.ArgumentParser) -> None:
    """Data, model and training."""
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
    if args.teacher and args.unlabeled_fraction == 0:
        raise UserError("With --unlabeled_fraction 0 nothing is learned from --teacher; leave one of them out.")
    if args.teacher and args.labels_last == 1 and (args.train_dataset_name or args.real_dataset_name):
        raise UserError("With --labels_last 1 nothing is learned from --teacher; leave one of them out.")
    for name in [getattr(args, f"{part}_dataset_name") for part in ("train", "real", "unlabeled", "eval")]:
        for kind in ("output_dir", "targets_dir"):
            folder = getattr(args, kind)
            if name and folder and os.path.isdir(name) and Path(name).resolve() in folder.resolve().parents:
                raise UserError(f"--{kind} {folder} lies in the dataset {name}, which it would change; choose another.")
    if args.targets_dir:
        check_writable(args.targets_dir, "--targets_dir")
