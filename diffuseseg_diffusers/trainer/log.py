# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The log of a run: a line of JSON for each entry, trackers, and grids of images."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from diffusers.utils import make_image_grid

from ..jobs.errors import UserError
from ..jobs.files import to_json, write_text


LOG_FILE = "train_log.jsonl"
PROJECT = "train_ddpm"  # name of a run in the trackers


class TrainingLog:
    """What a run reports: `train_log.jsonl`, the trackers, and `samples/`.

    Args:
        accelerator (`Accelerator`): Its trackers are started.
        folder (`Path`): The run's folder; trackers that write files write them below it.
        step (`int`): The step that the run stands at; later entries of the file are dropped.
        settings (mapping): Values that trackers show.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, step: int, settings: Mapping[str, Any]):
        self.accelerator, self.tracked = accelerator, bool(accelerator.log_with)
        self.path, self.samples = folder / LOG_FILE, folder / "samples"
        self.entries = read_log(self.path, step)
        if accelerator.is_main_process:
            write_text(self.path, "".join(to_json(e) + "\n" for e in self.entries))
        if self.tracked:
            config = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in settings.items()}
            (folder / "logs").mkdir(exist_ok=True)
            # Weights & Biases writes into the working folder unless it is told another.
            accelerator.init_trackers(PROJECT, config, {"wandb": {"dir": str(folder / "logs")}})

    def write(self, step: int, **values: Any) -> None:
        """Writes an entry to the file and the trackers; a list has a value for each range of timesteps."""
        if not values:
            return
        self.entries.append({"step": step, **values})
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(to_json(self.entries[-1]) + "\n")
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
        """Writes a grid of images to `samples/` and the trackers."""
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


def check_trackers(names: Sequence[str] | None) -> None:
    """Raises [`UserError`] if one of the trackers is not installed."""
    missing = set(names or ()) - {"all", *(str(tracker) for tracker in get_available_trackers())}
    if missing:
        raise UserError(f"The tracker {' '.join(sorted(missing))} is not installed, or Accelerate does not know it.")


def read_log(path: Path, up_to_step: int) -> list[dict]:
    """Entries of a run's log up to a step, without those that a run wrote after the checkpoint it resumes from."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off while writing
            break
        if entry["step"] > up_to_step:
            break
        entries.append(entry)
    return entries
