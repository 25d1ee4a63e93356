# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a run tells: losses by timestep, a line of JSON for each entry, trackers, sample grids, and its summary."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.utils import make_image_grid

from ..datasets.columns import describe_dataset
from ..jobs.files import write_text
from ..jobs.hardware import hardware
from ..jobs.seeds import mixed_seed
from .batches import ShuffledBatches, StreamedBatches
from .checkpoints import read_log
from .objective import denoising_losses


def measure(
    accelerator: Accelerator,
    args: argparse.Namespace,
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    validation: torch.Tensor,
    train_sample: torch.Tensor,
) -> dict[str, list[float]]:
    """Denoising loss by range of timesteps, on held-out images and on as many of the training images."""
    losses = {}
    for name, pixels in (("validation", validation), ("train_sample", train_sample)):
        with accelerator.autocast():
            seed = mixed_seed(args.seed, accelerator.process_index, 5)
            mine = denoising_losses(unet, scheduler, pixels, args.train_batch_size, seed)  # [10]
        weighted = torch.cat([mine.nan_to_num() * len(pixels), torch.tensor([len(pixels)])]).float()
        *sums, count = accelerator.reduce(weighted.to(accelerator.device), "sum").tolist()
        if count:
            losses[name] = [s / count for s in sums]
    return losses


class TrainingLog:
    """What the run tells: a line of JSON for each entry, the trackers, and the sample grids."""

    def __init__(self, accelerator: Accelerator, args: argparse.Namespace, step: int):
        self.accelerator, self.tracked = accelerator, bool(args.report_to)
        self.path, self.samples = args.output_dir / "train_log.jsonl", args.output_dir / "samples"
        self.entries = read_log(self.path, step)
        if accelerator.is_main_process:
            write_text(self.path, "".join(json.dumps(e) + "\n" for e in self.entries))
        if self.tracked:
            config = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in vars(args).items()}
            accelerator.init_trackers("train_ddpm", config)

    def write(self, step: int, **values) -> None:
        """Writes an entry to the file and the trackers; a list is of ranges of timesteps."""
        if not values:
            return
        self.entries.append({"step": step, **values})
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.entries[-1]) + "\n")
        if self.tracked:
            flat = {}
            for name, value in values.items():
                if isinstance(value, list):
                    flat[f"{name}/mean"] = sum(value) / len(value)
                    flat |= {f"{name}/timesteps_{i}": v for i, v in enumerate(value)}
                else:
                    flat[name] = value
            self.accelerator.log(flat, step=step)

    def draw(self, step: int, images: list[PIL.Image.Image]) -> None:
        """A grid as a image file and in the trackers."""
        self.samples.mkdir(exist_ok=True)
        columns = math.ceil(math.sqrt(len(images)))
        blank = PIL.Image.new(images[0].mode, images[0].size)
        padded = images + [blank] * (-len(images) % columns)
        grid = make_image_grid(padded, len(padded) // columns, columns)
        grid.save(self.samples / f"step-{step:06d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, **order)


def summary(
    args: argparse.Namespace,
    accelerator: Accelerator,
    run: dict,
    batches: ShuffledBatches | StreamedBatches,
    unet: UNet2DModel,
    log: TrainingLog,
) -> dict:
    """What `training_state.json` says: what was trained, on what, for how long, with which result."""
    trained = [e for e in log.entries if "loss" in e]
    measured = [e for e in log.entries if "validation" in e]
    return {
        **{k: round(v, 2) if isinstance(v, float) else v for k, v in run.items() if k != "unet"},
        "images_seen": batches.position,
        "images_per_second": round(batches.position / run["seconds"], 2) if run["seconds"] else None,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "loss": trained[-1]["loss"] if trained else None,
        "denoising_loss": {k: measured[-1][k] for k in ("validation", "train_sample")} if measured else None,
        "dataset": describe_dataset(args.dataset_name or args.train_data_dir, args.dataset_config_name, args.split),
        "device": str(accelerator.device),
        "hardware": hardware(accelerator.device),
        "num_processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if not callable(v)},
    }
