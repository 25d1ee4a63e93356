# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options of `diffuseseg distil-features`; the training is `training/distil_features.py`."""

from dataclasses import dataclass

from ..jobs.config import option
from ..jobs.errors import UserError
from .options import MODEL, MODEL_ALIASES, CachesDownloads, WritesFolder
from .train_options import LR_SCHEDULERS, KeepsCheckpoints, ReadsUnlabeled, TrainsBySteps


STEPS = 1000  # where neither steps nor minutes are given


@dataclass(frozen=True, kw_only=True)
class DistilFeaturesConfig(ReadsUnlabeled, TrainsBySteps, KeepsCheckpoints, CachesDownloads, WritesFolder):
    """Distil the features of a denoiser into a copy that gives them in one pass on clean images, without labels."""

    title = "model"

    dataset_name: str | None = option(
        None,
        "Unlabelled images: a local folder or a Hub name, anything `datasets` loads.",
        aliases=("--unlabeled_dataset_name",),
        group="data",
        reads=True,
    )
    dataset_config_name: str | None = option(
        None, "Configuration of the dataset.", aliases=("--unlabeled_dataset_config_name",), group="data"
    )
    split: str = option("train", "Split of the dataset.", aliases=("--unlabeled_split",), group="data")
    model: str = option(help=MODEL, aliases=MODEL_ALIASES, reads=True)
    revision: str | None = option(None, "Branch, tag or commit of a model on the Hub.")
    blocks: tuple[int | str, ...] | None = option(
        None,
        "Blocks to distil, by number or name of a module; what is fitted on the copy reads these (default: those of "
        "the default recipe).",
        minimum=float("-inf"),
    )
    timesteps: tuple[int, ...] | None = option(
        None,
        "Diffusion timesteps of the original to distil (default: on clean images 0 and 50 of a linear schedule; with "
        "noise, and of the models of the package, those of the default recipe).",
    )
    noise: str = option(
        "none",
        "What the original sees at these timesteps: clean images, or fresh noise, so that the mean over it is learned.",
        choices=("none", "fresh"),
    )
    prompt: str | None = option(None, "Text that conditions both (default: the model's null prompt).")
    rank: int | None = option(
        None,
        "Rank of low-rank adapters (LoRA), which are trained in place of all weights and merged at the end: less "
        "memory for large denoisers (default: all weights are trained).",
        minimum=1,
        group="training",
    )
    random_flip: bool = option(
        False, "Learn the mean of an image's activations and of those of its mirror image, mirrored back.", group="data"
    )
    train_batch_size: int = option(8, "Images per process and pass.", minimum=1, group="training")
    max_train_steps: int | None = option(
        None,
        "Number of optimisation steps, with those before resuming (default: 1000, or what the minutes allow).",
        minimum=1,
        influence=False,
        why="a run may be continued for longer",
        group="training",
    )
    learning_rate: float = option(3e-4, "Learning rate of AdamW.", group="training")
    lr_scheduler: str = option(
        "cosine",
        "Schedule of the learning rate after the warm-up, over the whole run.",
        choices=LR_SCHEDULERS,
        group="training",
    )
    lr_warmup_steps: int = option(20, "Steps over which the learning rate rises from 0.", group="training")

    def check(self) -> None:
        if self.max_train_steps is None and self.max_train_minutes is None:
            object.__setattr__(self, "max_train_steps", STEPS)
        super().check()
        if self.compile:
            raise UserError("A pass that ends at the last tap cannot be compiled whole; leave --compile out.")
        if self.rank is not None and self.use_ema:
            raise UserError("Weights of adapters are not averaged; leave --use_ema or --rank out.")
        if self.input_channels or self.intensity_window or self.intensity_percentiles:
            raise UserError("Channels and intensities are those that the model was trained on; leave them out.")
