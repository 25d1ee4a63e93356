# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A training run on unlabelled images: its processes, its trainer, its folder, and what it reports."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from datasets import Dataset, IterableDataset
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel

from ..datasets.columns import dataset_contents, describe_dataset
from ..jobs.contents import contents_of
from ..jobs.files import read_json
from ..jobs.hardware import default_device, hardware, report_processes, training_dtype
from ..jobs.run import adopt_run, check_run, may_resume, open_run
from ..pipelines.general import find_model
from ..trainer.checkpoints import CHECKPOINT_FILES, LATEST, NEW_PIPELINE_FILES, find_checkpoint, remove_leftovers
from ..trainer.log import LOG_FILE, check_trackers
from ..trainer.loop import Trainer
from ..trainer.schedule import Plan, learning_rate_schedule
from .setup import TrainingImages


SUMMARY = "training_state.json"
SIX = "[0-9]" * 6
OWN_FILES = (
    *(*CHECKPOINT_FILES, *NEW_PIPELINE_FILES),
    *(f"samples/step-{SIX}.png", f"samples/step-[1-9]{SIX}.png", "logs/train_ddpm/*", "logs/wandb/*"),
    *(LOG_FILE, SUMMARY, "training_curves.png"),
)


def begin(config: Any, command: str) -> Accelerator:
    """Checks the output folder and the trackers of a configuration (`tasks.train_options`); sets up the processes."""
    check_run(config, command)
    check_trackers(config.report_to)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        cpu=default_device().type == "cpu",
        log_with=list(config.report_to) if config.report_to else None,
        project_config=ProjectConfiguration(str(config.output_dir), logging_dir=str(config.output_dir / "logs")),
    )
    report_processes(accelerator)
    return accelerator


def make_trainer(
    config: Any, accelerator: Accelerator, model: Any, images: TrainingImages, around: torch.nn.Module | None = None
) -> Trainer:
    """The model with AdamW, averaged weights if they are asked for, and the schedule of a configuration.

    A module `around` the model is called in its place.
    """
    if config.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    model.to(accelerator.device, memory_format=torch.channels_last)
    torch.set_float32_matmul_precision("high")
    ema = None
    if config.use_ema:
        rates = dict(decay=config.ema_max_decay, use_ema_warmup=True, power=config.ema_power, foreach=True)
        ema = EMAModel(model.parameters(), **rates, model_cls=type(model), model_config=model.config)
    decay = config.adam_weight_decay
    trained = [p for p in (around or model).parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=decay, fused=True)
    if config.compile:
        model.compile()
    plan = Plan(
        max_steps=config.max_train_steps,
        max_minutes=config.max_train_minutes,
        max_grad_norm=config.max_grad_norm,
        checkpointing_steps=config.checkpointing_steps,
        total_limit=config.checkpoints_total_limit,
        events=(config.validation_steps, getattr(config, "sample_steps", None)),
    )
    rate = learning_rate_schedule(optimizer, config.lr_scheduler, config.learning_rate, config.lr_warmup_steps, plan)
    given = (accelerator, config.output_dir, model, optimizer, images.batches, rate, plan)
    accelerator.print(describe(config, accelerator, model, images))
    return Trainer(*given, ema=ema, around=around, settings={n: getattr(config, n) for n in config.options()})


def open_folder(
    config: Any,
    command: str,
    trainer: Trainer,
    dataset: Dataset | IterableDataset,
    column: str,
    owned: Sequence[str] = OWN_FILES,
) -> bool:
    """Resumes a run at its checkpoint, or begins one; returns whether it is complete.

    All inputs are known to be valid by now, so that --overwrite costs nothing that is still needed; the
    images are those of [`load_images`]. `owned` are patterns of the files that the run writes.
    """
    accelerator, folder = trainer.accelerator, config.output_dir
    checkpoint = find_checkpoint(folder, config.resume_from_checkpoint, config.overwrite)
    if checkpoint:
        trainer.resume(checkpoint)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        reads: dict[str, Any] = {}
        for name, own in config.options().items():
            value = getattr(config, name)
            if own.reads and value is not None:
                data = name in ("dataset_name", "train_data_dir")
                file = find_model(value)
                reads[name] = dataset_contents(dataset, column) if data else contents_of([file])[file]
        named = config.resume_from_checkpoint != LATEST
        if named and not config.overwrite and may_resume(folder, command):
            adopt_run(config, command, reads, owned)  # the run that is there takes the settings of now
        open_run(config, command, reads, owned)
        remove_leftovers(folder)
    accelerator.wait_for_everyone()
    path = folder / SUMMARY
    complete = trainer.finished and path.is_file() and read_json(path).get("step") == trainer.state["step"]
    if complete:
        done = f"The run in {folder} is complete, {trainer.state['step']} steps"
        accelerator.print(f"{done}; more of them need a higher --max_train_steps or --max_train_minutes.")
    return complete


def averaged_copy(model: ModelMixin, ema: EMAModel | None) -> Any:
    """A copy to measure and to save: the averaged weights if there are any, else those of the last step."""
    copy = type(model).from_config(model.config).to(model.device, memory_format=torch.channels_last)
    copy.load_state_dict(model.state_dict())
    if ema is not None:
        ema.copy_to(copy.parameters())
    return copy.eval().requires_grad_(False)


def describe(config: Any, accelerator: Accelerator, model: Any, images: TrainingImages) -> str:
    """What is trained on what, in a sentence."""
    device, number = accelerator.device, sum(p.numel() for p in model.parameters() if p.requires_grad)
    slow = config.mixed_precision is None and accelerator.mixed_precision == "no"
    faster = slow and device.type == "cpu" and training_dtype(device) == torch.bfloat16
    return (
        f"{number / 1e6:.3g} million trained parameters; images of "
        f"{' × '.join(map(str, images.shape))}, {images.describe()}, {len(images.validation)} held out by "
        f"this process; {config.train_batch_size} × {accelerator.num_processes} × "
        f"{config.gradient_accumulation_steps} images a step (batch × processes × accumulation); {device.type}"
        + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
        + f"; mixed precision: {accelerator.mixed_precision}"
        + (" (--mixed_precision bf16 is faster on this CPU)." if faster else ".")
    )


def describe_plan(config: Any, trainer: Trainer, images: TrainingImages) -> str:
    """An estimate of the whole run from the time of its steps so far: steps, images, passes over the data, minutes."""
    per_step, ends = trainer.state["seconds"] / trainer.state["step"], []
    if config.max_train_steps is not None:
        ends.append(config.max_train_steps)
    if config.max_train_minutes is not None:
        ends.append(max(1, round(60 * config.max_train_minutes / per_step)))
    total = min(ends)
    seen = total * config.train_batch_size * trainer.accelerator.num_processes * config.gradient_accumulation_steps
    passes = "" if config.streaming else f", {seen / len(images.batches.images):.1f} passes over the data"
    return f"About {total:,} steps, {seen:,} images{passes} in {total * per_step / 60:.1f} minutes."


def summary(config: Any, trainer: Trainer) -> dict[str, Any]:
    """What `training_state.json` says: what was trained, on what, for how long, with which result."""
    accelerator, state, entries = trainer.accelerator, trainer.state, trainer.log.entries
    position = trainer.stream.position
    where = (config.dataset_name or config.train_data_dir, config.dataset_config_name, config.split)
    trained = [e for e in entries if "loss" in e]
    measured = [e for e in entries if "validation" in e]
    return {
        **{k: round(v, 2) if isinstance(v, float) else v for k, v in state.items()},
        "images_seen": position,
        "images_per_second": round(position / state["seconds"], 2) if state["seconds"] else None,
        "parameters": sum(p.numel() for p in trainer.bare.parameters()),
        "loss": trained[-1]["loss"] if trained else None,
        "denoising_loss": {k: measured[-1][k] for k in ("validation", "train_sample")} if measured else None,
        "dataset": describe_dataset(*where),
        "device": str(accelerator.device),
        "hardware": hardware(accelerator.device),
        "num_processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "arguments": json.loads(json.dumps({n: getattr(config, n) for n in config.options()}, default=str)),
    }


def describe_end(config: Any, trainer: Trainer) -> str:
    """What a run did, in a sentence, and one on what it could not read."""
    state = trainer.state
    waited = state["seconds_waiting_for_data"] / state["seconds"] if state["seconds"] else 0
    said = (
        f"{state['step']} steps, {trainer.stream.position} images in {state['seconds'] / 60:.1f} minutes, "
        f"{waited:.1%} of it waiting for data; the result is in {config.output_dir}."
    )
    if state["unreadable"]:
        said += f"\n{state['unreadable']} times an image could not be read and was skipped."
    return said
