# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options that the trainings on unlabelled images share."""

from dataclasses import dataclass
from functools import partial

from ..jobs.config import Config, exclusive, option
from ..jobs.errors import UserError
from .options import ReadsChannels, ReadsDataset, SetsSize


RESIZE_MODES = ("crop", "pad")
LR_SCHEDULERS = (*("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"),)
PRECISIONS = ("no", "fp16", "bf16")
LATEST = "latest"
SPEED = "speed and memory, not what is learned"
_speed = partial(option, influence=False, why=SPEED)
_length = partial(option, influence=False, why="a run may be continued for longer")
_shown = partial(option, influence=False, why="only what is measured and shown on the way")


@dataclass(frozen=True, kw_only=True)
class ReadsUnlabeled(ReadsDataset, ReadsChannels, SetsSize):
    """Which unlabelled images to read, and how."""

    title = "data"

    dataset_name: str | None = option(
        None, "Images: a local folder or a Hub name, anything `datasets` loads.", reads=True
    )
    train_data_dir: str | None = option(None, "Images: a folder with image files anywhere below it.", reads=True)
    streaming: bool = option(False, "Read the dataset while training, without storing it.")
    shuffle_buffer_size: int = option(1000, "Images in the buffer that shuffles a stream.")
    resolution: tuple[int, ...] | None = option(
        None, "Side, or height and width, in pixels (default: 64, or the model's own).", minimum=1
    )
    resize_mode: str = option(
        "crop", "Treatment of images of other proportions: cut, or pad with black.", choices=RESIZE_MODES
    )
    crop: str | None = option(
        None,
        "Take crops at random places of large images, at their own resolution (default: whole images, resized).",
        choices=("random",),
    )
    random_flip: bool = option(False, "Mirror half of the images, left to right.")
    skip_unreadable: bool = option(
        False,
        "Train without images that cannot be read.",
        influence=False,
        why="without it a run with such images ends",
    )
    image_cache_gb: float | None = _speed(
        None,
        "Memory for decoded images, in GB; those that need more are decoded while training (default: half of the free "
        "memory).",
    )
    dataloader_num_workers: int = _speed(4, "Processes that decode while training.")
    num_validation_images: int | None = option(
        None, "Number of images to hold out and measure on (default: a tenth, at most 128)."
    )

    def check(self) -> None:
        super().check()
        exclusive(self, "dataset_name", "train_data_dir")
        if not (self.dataset_name or self.train_data_dir):
            raise UserError("There are no images to train on; give --dataset_name or --train_data_dir.")
        if self.streaming and self.train_data_dir:
            raise UserError("A folder of images is read as it is; --streaming is for --dataset_name.")
        whole = self.crop or self.input_channels or self.intensity_window or self.intensity_percentiles
        if self.streaming and whole:
            raise UserError("A stream is read once; --crop, --input_channels and intensities are for datasets at hand.")
        if not self.crop and (self.scale or self.pixel_size):
            raise UserError("--scale and --pixel_size are for --crop random.")


@dataclass(frozen=True, kw_only=True)
class SetsChannels(Config):
    """How many channels a new model has."""

    title = "data"

    channels: int | None = option(None, "Number of channels; 1: grey-scale, 3: RGB (default: as the images).")


@dataclass(frozen=True, kw_only=True)
class TrainsBySteps(Config):
    """How a model is trained."""

    title = "training"

    train_batch_size: int = option(32, "Images per process and pass.", minimum=1)
    gradient_accumulation_steps: int = option(1, "Passes per optimisation step.", minimum=1)
    max_train_steps: int | None = _length(None, "Number of optimisation steps, with those before resuming.", minimum=1)
    max_train_minutes: float | None = _length(None, "Minutes of training, with those before resuming.", above=0)
    learning_rate: float = option(2e-4, "Learning rate of AdamW.")
    lr_scheduler: str = option(
        "constant", "Schedule of the learning rate after the warm-up, over the whole run.", choices=LR_SCHEDULERS
    )
    lr_warmup_steps: int = option(200, "Steps over which the learning rate rises from 0.")
    adam_weight_decay: float = option(0.0, "Weight decay of AdamW.")
    max_grad_norm: float = option(1.0, "Norm that gradients are clipped to; 0: no clipping.")
    use_ema: bool = option(False, "Average the weights; the pipeline then has the average.")
    ema_max_decay: float = option(0.9999, "Decay of the average after its warm-up.")
    ema_power: float = option(0.75, "Power p of the warm-up of the average, 1 - (1 + step)^-p.")
    mixed_precision: str | None = option(
        None,
        "Precision of the passes (default: as Accelerate is configured).",
        choices=PRECISIONS,
        influence=False,
        why="a run may be continued on other hardware",
    )
    gradient_checkpointing: bool = _speed(False, "Recompute activations: less memory, more time.")
    compile: bool = _speed(False, "Compile the model by torch.compile.")
    seed: int = option(0, "Seed of weights, order, noise and timesteps.")

    def check(self) -> None:
        super().check()
        if self.max_train_steps is None and self.max_train_minutes is None:
            raise UserError(
                "How long? Give --max_train_steps, --max_train_minutes, or both (what comes first ends it)."
            )


@dataclass(frozen=True, kw_only=True)
class KeepsCheckpoints(Config):
    """How often a run saves and measures, and what it keeps."""

    title = "run"

    checkpointing_steps: int = _shown(500, "Steps between checkpoints.", minimum=1)
    checkpoints_total_limit: int = option(
        3, "Number of checkpoints to keep; 0: all.", influence=False, why="what stays, not what is made"
    )
    resume_from_checkpoint: str = option(
        LATEST,
        "Checkpoint to resume from: latest, the newest in the output folder, of the same settings; or the folder of a "
        "checkpoint, whose settings may differ.",
        influence=False,
        why="where a run is taken up",
    )
    validation_steps: int = _shown(1000, "Steps between measurements.", minimum=1)
    report_to: tuple[str, ...] | None = _shown(None, "Trackers: tensorboard, wandb, …, or all.")


@dataclass(frozen=True, kw_only=True)
class DrawsSamples(Config):
    """How often a run draws, and how many images."""

    title = "run"

    sample_steps: int = _shown(1000, "Steps between grids of samples.", minimum=1)
    num_samples: int = _shown(16, "Images in a grid; 0: no grids.")
