# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The folder of a training run: where it resumes, and what it leaves behind."""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from ..jobs.files import read_json, write_record
from ..jobs.run import may_resume, open_run
from .arguments import LATEST
from .checkpoints import OWN_FILES, checkpoints, remove_leftovers
from .training import Training


SUMMARY = "training_state.json"
# Options on which the weights of every training depend; the others (how long, how often, where, on what hardware) may
# differ on resuming.
SETTINGS = (
    *("dataset_name", "train_data_dir", "dataset_config_name", "dataset_revision", "split", "image_column"),
    *("streaming", "shuffle_buffer_size", "resize_mode", "random_flip", "num_validation_images", "crop"),
    *("input_channels", "intensity_window", "intensity_percentiles", "scale", "pixel_size", "axes", "slice_axis"),
    *("train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler", "lr_warmup_steps"),
    *("adam_weight_decay", "max_grad_norm", "use_ema", "ema_max_decay", "ema_power", "seed"),
)


def run_settings(args: argparse.Namespace, names: tuple[str, ...]) -> dict:
    """What must be the same for a run to be resumed; what checkpoints hold, the model's config and the number of
    images, is compared with them."""
    given = {name: value for name, value in vars(args).items() if name in (*SETTINGS, *names)}
    local = {n: os.path.abspath(v) for n, v in given.items() if isinstance(v, str) and os.path.isdir(v)}
    return {**given, **local}


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint to resume from, if there is one."""
    if args.resume_from_checkpoint != LATEST:
        return Path(args.resume_from_checkpoint)
    found = checkpoints(args.output_dir)
    return found[-1] if found and not args.overwrite else None


def open_output(args: argparse.Namespace, command: str, settings: dict, inputs: Iterable[object]) -> None:
    """Begins the run's folder, or resumes in it; on the main process alone."""
    named = args.resume_from_checkpoint != LATEST
    if named and not args.overwrite and may_resume(args.output_dir, command):
        write_record(args.output_dir, command, OWN_FILES, settings)  # the run that is there takes the settings of now
    open_run(args.output_dir, command, settings, OWN_FILES, args.overwrite, inputs)
    remove_leftovers(args.output_dir)


def is_complete(args: argparse.Namespace, training: Training) -> bool:
    """Whether the steps or minutes that were asked for are over, and all that is left behind is there."""
    path = args.output_dir / SUMMARY
    return training.finished and path.is_file() and read_json(path).get("step") == training.state["step"]


def describe_end(args: argparse.Namespace, training: Training) -> str:
    """What a run did, in a sentence, and one on what it could not read."""
    state, batches = training.state, training.batches
    waited = state["seconds_waiting_for_data"] / state["seconds"] if state["seconds"] else 0
    said = (
        f"{state['step']} steps, {batches.position} images in {state['seconds'] / 60:.1f} minutes, "
        f"{waited:.1%} of it waiting for data; the result is in {args.output_dir}."
    )
    if state["unreadable"]:
        said += f"\n{state['unreadable']} times an image could not be read and was skipped."
    return said
