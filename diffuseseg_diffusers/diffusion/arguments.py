# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments that the trainings on unlabelled images share."""

import argparse

from accelerate.tracking import get_available_trackers
from diffusers.optimization import SchedulerType

from ..datasets.arguments import add_reading_arguments, check_reading_arguments
from ..datasets.unlabeled import RESIZE_MODES
from ..jobs.errors import UserError
from .setup import VALIDATION_IMAGES


LATEST = "latest"


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Which images to read, and how."""
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset_name", help="Images: a local folder or a Hub name, anything `datasets` loads.")
    source.add_argument("--train_data_dir", help="Images: a folder with image files anywhere below it.")
    group.add_argument("--dataset_config_name", help="Configuration of the dataset.")
    group.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    group.add_argument("--split", default="train", help="Part of the dataset (default: train).")
    group.add_argument("--image_column", help="Column of images (default: image, or a usual name).")
    group.add_argument("--streaming", action="store_true", help="Reading while training, without storing the dataset.")
    group.add_argument(
        "--shuffle_buffer_size",
        type=int,
        default=1000,
        help="Images in the buffer that shuffles a stream (default: 1000).",
    )
    group.add_argument("--resolution", type=int, nargs="+", help="Side, or height and width, in pixels (default: 64).")
    group.add_argument(
        "--channels", type=int, help="Number of channels; 1: grey-scale, 3: RGB (default: as the images)."
    )
    group.add_argument(
        "--resize_mode",
        choices=RESIZE_MODES,
        default="crop",
        help="Treatment of images of other proportions: cut, or padded with black (default: crop).",
    )
    group.add_argument(
        "--crop",
        choices=("random",),
        help="Crops at random places of large pictures, at their own resolution (default: whole pictures, resized).",
    )
    add_reading_arguments(group)
    group.add_argument("--random_flip", action="store_true", help="Mirroring of half of the images, left to right.")
    group.add_argument("--skip_unreadable", action="store_true", help="Training without images that cannot be read.")
    group.add_argument(
        "--image_cache_gb",
        type=float,
        help="Memory for decoded images, in GB; those that need more are decoded while training (default: half of the "
        "free memory).",
    )
    group.add_argument(
        "--dataloader_num_workers", type=int, default=4, help="Processes that decode while training (default: 4)."
    )
    group.add_argument(
        "--num_validation_images",
        type=int,
        help=f"Number of images held out to measure on (default: a tenth, at most {VALIDATION_IMAGES}).",
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """How it is trained."""
    group = parser.add_argument_group("training")
    group.add_argument("--train_batch_size", type=int, default=32, help="Images per process and pass (default: 32).")
    group.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="Passes per optimisation step (default: 1)."
    )
    group.add_argument("--max_train_steps", type=int, help="Number of optimisation steps, with those before resuming.")
    group.add_argument("--max_train_minutes", type=float, help="Minutes of training, with those before resuming.")
    group.add_argument("--learning_rate", type=float, default=2e-4, help="Learning rate of AdamW (default: 2e-4).")
    group.add_argument(
        "--lr_scheduler",
        choices=[s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT],
        default="constant",
        help="Schedule of the learning rate after the warm-up, over the whole run (default: constant).",
    )
    group.add_argument(
        "--lr_warmup_steps",
        type=int,
        default=200,
        help="Steps over which the learning rate rises from 0 (default: 200).",
    )
    group.add_argument("--adam_weight_decay", type=float, default=0.0, help="Weight decay of AdamW (default: 0).")
    group.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="Norm that gradients are clipped to; 0: none (default: 1)."
    )
    group.add_argument("--use_ema", action="store_true", help="Averaged weights, which the pipeline then has.")
    group.add_argument(
        "--ema_max_decay", type=float, default=0.9999, help="Decay of the average after its warm-up (default: 0.9999)."
    )
    group.add_argument(
        "--ema_power", type=float, default=0.75, help="Power p of its warm-up, 1 - (1 + step)^-p (default: 0.75)."
    )
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="Precision of the passes (default: Accelerate's)."
    )
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="Recomputation of activations: less memory, more time."
    )
    group.add_argument("--compile", action="store_true", help="Compilation of the U-Net by torch.compile.")
    group.add_argument("--seed", type=int, default=0, help="Seed of weights, order, noise and timesteps (default: 0).")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it goes, and what it tells on the way."""
    group = parser.add_argument_group("run")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints (default: 500).")
    group.add_argument(
        "--checkpoints_total_limit", type=int, default=3, help="Number of checkpoints to keep; 0: all (default: 3)."
    )
    group.add_argument(
        "--resume_from_checkpoint",
        default=LATEST,
        help="Checkpoint to resume from: latest, the newest in the output folder, of the same settings; "
        "or a folder of a checkpoint, whose settings may differ (default: latest).",
    )
    group.add_argument("--validation_steps", type=int, default=1000, help="Steps between measurements (default: 1000).")
    group.add_argument("--sample_steps", type=int, default=1000, help="Steps between sample grids (default: 1000).")
    group.add_argument("--num_samples", type=int, default=16, help="Images in a grid; 0: no grids (default: 16).")
    group.add_argument("--num_inference_steps", type=int, default=50, help="DDIM steps of a sample (default: 50).")
    group.add_argument("--report_to", nargs="+", help="Trackers: tensorboard, wandb, …, or all.")


def check_training_arguments(args: argparse.Namespace) -> None:
    """Refuses what does not go together, and numbers out of range."""
    if args.max_train_steps is None and args.max_train_minutes is None:
        raise UserError("How long? Give --max_train_steps, --max_train_minutes, or both (what comes first ends it).")
    if args.streaming and args.train_data_dir:
        raise UserError("A folder of images is read as it is; --streaming is for --dataset_name.")
    if args.resolution and len(args.resolution) > 2:
        raise UserError(f"--resolution is one side, or height and width; got {len(args.resolution)} numbers.")
    if args.streaming and (args.crop or args.input_channels or args.intensity_window or args.intensity_percentiles):
        raise UserError("A stream is read once; --crop, --input_channels and intensities are for datasets at hand.")
    check_reading_arguments(args)
    if not args.crop and (args.scale or args.pixel_size):
        raise UserError("--scale and --pixel_size are for --crop random.")
    missing = set(args.report_to or ()) - {"all", *(str(tracker) for tracker in get_available_trackers())}
    if missing:
        raise UserError(f"The tracker {' '.join(sorted(missing))} is not installed, or Accelerate does not know it.")
    for name in (
        "max_train_steps",
        "train_batch_size",
        "gradient_accumulation_steps",
        "checkpointing_steps",
        "validation_steps",
        "sample_steps",
        "num_inference_steps",
    ):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}.")
