# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a fast segmentation network of `transformers` on images and masks: `diffuseseg train-student`.

    accelerate launch training/train_student.py --train_dataset_name SYNTHETIC --eval_dataset_name DATA --output_dir OUT

The weights that are kept are those that segment images best that were held out of the training data; the images to
measure on choose nothing. `--train_batch_size` is per process. The same command line resumes after the last whole
epoch.
"""

import argparse
import os
import shutil
import time

from accelerate import Accelerator
from accelerate.utils import set_seed

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, load_labeled_images
from diffuseseg_diffusers.arguments import add_cache_argument, add_output_arguments, inputs_of, run_script
from diffuseseg_diffusers.data.columns import describe_dataset
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.hub.student_card import STUDENT_FILES, STUDENT_RECORD
from diffuseseg_diffusers.inference.evaluation import format_metrics
from diffuseseg_diffusers.runs.errors import UserError
from diffuseseg_diffusers.runs.files import atomic_file, check_output_folder, write_json
from diffuseseg_diffusers.runs.hardware import default_device, hardware, report_processes
from diffuseseg_diffusers.runs.resuming import may_resume, open_run
from diffuseseg_diffusers.students.networks import DEFAULT_STUDENT, make_processor, make_student
from diffuseseg_diffusers.students.segmenter import StudentSegmenter, load_student
from diffuseseg_diffusers.students.training import (
    BEST,
    CHECKPOINT_FILES,
    StudentTraining,
    TrainingOptions,
    checkpoints,
)


COMMAND = "train-student"
OWNED = (*CHECKPOINT_FILES, *STUDENT_FILES, STUDENT_RECORD)
GENERATED = {"seed", "uncertainty"}  # columns of what `diffuseseg generate` makes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    for part, what in (
        ("train", "Images with masks to train on"),
        ("real", "More of them, mixed in at --real_fraction"),
        ("eval", "Images with masks to measure on"),
    ):
        names = [f"--{part}_dataset_name", *(["--train_data_dir"] if part == "train" else [])]
        group.add_argument(*names, required=part == "train", help=f"{what}: a local folder or a Hub name.")
        group.add_argument(f"--{part}_dataset_config_name", help="Configuration of that dataset.")
        default = "test" if part == "eval" else "train"
        group.add_argument(f"--{part}_split", default=default, help=f"Split of that dataset (default: {default}).")
    group.add_argument("--real_fraction", type=float, default=0.2, help="Share of the images shown (default: 0.2).")
    group.add_argument(
        "--validation_fraction", type=float, default=0.1, help="Share held out to choose the weights (default: 0.1)."
    )
    group.add_argument("--resolution", type=int, nargs="+", help="Side, or height and width (default: as the images).")
    group.add_argument("--no_augmentation", action="store_true", help="Images as they are, no augmented views.")
    group.add_argument("--no_flip", action="store_true", help="No mirrored views: left and right mean something.")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        "--pretrained_model_name_or_path",
        default=DEFAULT_STUDENT,
        help=f"Hub name, folder or JSON config of the network (default: {DEFAULT_STUDENT}).",
    )
    group.add_argument("--from_scratch", action="store_true", help="Fresh weights, though there are pretrained ones.")
    group = parser.add_argument_group("training")
    group.add_argument("--num_epochs", type=int, default=20, help="Number of epochs (default: 20).")
    group.add_argument(
        "--images_per_epoch", type=int, help="Number of images in an epoch (default: all there are, 1000 at least)."
    )
    group.add_argument("--train_batch_size", type=int, default=16, help="Images per process and step (default: 16).")
    group.add_argument("--learning_rate", type=float, default=3e-4, help="Highest rate of AdamW (default: 3e-4).")
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
    add_output_arguments(parser, "the model, as transformers reads it")
    add_cache_argument(parser)
    add_hub_arguments(parser)


def main(args: argparse.Namespace) -> None:
    # 1. Data and model, and only then the folder.
    accelerator = Accelerator(mixed_precision=args.mixed_precision, cpu=default_device().type == "cpu")
    report_processes(accelerator)
    if accelerator.is_main_process and not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    train, validation = load_part(args, "train").split(args.validation_fraction, args.seed)
    labels = {"num_classes": train.num_classes, "label_names": train.label_names}
    real = load_part(args, "real", **labels) if args.real_dataset_name else None
    evaluation = load_part(args, "eval", **labels) if args.eval_dataset_name else None
    options = options_of(args, len(train))
    set_seed(args.seed)
    segmenter = make_segmenter(args, train)
    start = segmenter.model.name_or_path  # empty where weights are fresh
    if accelerator.is_main_process:
        prepare_push(args)
        open_run(args.output_dir, COMMAND, settings_of(args, accelerator), OWNED, args.overwrite, inputs_of(args))
    accelerator.wait_for_everyone()

    # 2. Epochs, each with a checkpoint in the end.
    if not (args.output_dir / STUDENT_RECORD).is_file():
        training = StudentTraining(accelerator, segmenter, train, real, options)
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
            is_best = measured["validation"] > state["best"]
            best = max(state["best"], measured["validation"])
            state |= {"epoch": epoch + 1, "best": best, "epochs": [*state["epochs"], measured]}
            training.save_checkpoint(args.output_dir, state, is_best)
            accelerator.print(
                "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items())
            )

    # 3. The best weights are what is left.
    if not accelerator.is_main_process:
        return
    if (args.output_dir / STUDENT_RECORD).is_file():
        print(f"{args.output_dir} is complete.")
    else:
        for path in (checkpoints(args.output_dir)[-1] / BEST).iterdir():
            with atomic_file(args.output_dir / path.name) as partial:
                shutil.copyfile(path, partial)
        student = load_student(args.output_dir, accelerator.device)
        report = report_of(args, student, train, real, state, start)
        report |= {"hardware": hardware(accelerator.device), "num_processes": accelerator.num_processes}
        if evaluation is not None:
            report["evaluation"], _ = evaluate_segmentation(student, evaluation)
            report["evaluation"]["dataset"] = describe_dataset(*part_of(args, "eval"))
            print(format_metrics(report["evaluation"]))
        write_json(args.output_dir / STUDENT_RECORD, report)
        print(f"Trained in {state['seconds']:.0f} s; the model is in {args.output_dir}.")
    for checkpoint in checkpoints(args.output_dir):
        shutil.rmtree(checkpoint)
    finish_push(args)


def part_of(args: argparse.Namespace, part: str) -> tuple[str, str | None, str]:
    return tuple(getattr(args, f"{part}_{x}") for x in ("dataset_name", "dataset_config_name", "split"))


def load_part(args: argparse.Namespace, part: str, **kwargs) -> LabeledImages:
    return load_labeled_images(*part_of(args, part), cache_dir=args.cache_dir, **kwargs)


def options_of(args: argparse.Namespace, num_images: int) -> TrainingOptions:
    return TrainingOptions(
        num_epochs=args.num_epochs,
        images_per_epoch=args.images_per_epoch or max(1000, num_images),
        batch_size=args.train_batch_size,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        max_grad_norm=args.max_grad_norm,
        real_fraction=args.real_fraction,
        augmentation=not args.no_augmentation,
        flip=not args.no_flip,
        num_workers=args.dataloader_num_workers,
        seed=args.seed,
    )


def make_segmenter(args: argparse.Namespace, train: LabeledImages) -> StudentSegmenter:
    """The student with its image processor, at the resolution that was asked for or that of the images."""
    if args.resolution and (len(args.resolution) > 2 or min(args.resolution) < 1):
        raise UserError(f"--resolution is a side, or height and width, got {args.resolution}.")
    size = tuple(args.resolution * 2 if len(args.resolution) == 1 else args.resolution) if args.resolution else None
    size = size or train[0].image.size[::-1]
    names = train.label_names or [f"class {i}" for i in range(train.num_classes)]
    model = make_student(args.model, names, args.from_scratch, args.cache_dir)
    return StudentSegmenter(model, make_processor(args.model, size, cache_dir=args.cache_dir))


def settings_of(args: argparse.Namespace, accelerator: Accelerator) -> dict:
    """What the weights depend on."""
    names = [
        f"{part}_{x}" for part in ("train", "real", "eval") for x in ("dataset_name", "dataset_config_name", "split")
    ]
    names += ["real_fraction", "validation_fraction", "resolution", "no_augmentation", "no_flip", "model"]
    names += ["from_scratch", "num_epochs", "images_per_epoch", "train_batch_size", "learning_rate", "weight_decay"]
    names += ["max_grad_norm", "seed"]
    settings = {name: getattr(args, name) for name in names}
    return settings | {"mixed_precision": accelerator.mixed_precision, "num_processes": accelerator.num_processes}


def report_of(
    args: argparse.Namespace,
    student: StudentSegmenter,
    train: LabeledImages,
    real: LabeledImages | None,
    state: dict,
    start: str,
) -> dict:
    """How the student was made; `start` is where its weights are from, empty for fresh ones."""
    on_hub = start if start and not os.path.isdir(start) else None
    return {
        "start": (on_hub or os.path.basename(os.path.abspath(start))) if start else "random",
        "model_on_hub": on_hub,
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "train_dataset": describe_dataset(*part_of(args, "train")),
        "num_images": len(train),
        "synthetic": GENERATED <= set(train.dataset.column_names),
        "real_dataset": describe_dataset(*part_of(args, "real")) if real else None,
        "num_real_images": len(real or ()),
        "seconds": round(state["seconds"], 2),
        "validation_mean_iou": state["best"],
        "epochs": state["epochs"],
    }


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
