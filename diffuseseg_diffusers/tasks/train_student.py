# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options of `diffuseseg train-student`; the training is `training/train_student.py`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..jobs.config import option
from ..jobs.errors import UserError
from .options import MODEL_ALIASES, CachesDownloads, CutsTiles, PushesModel, ReadsMasks, SetsSize, WritesFolder
from .train_options import LATEST, PRECISIONS, SPEED


_data, _training = (partial(option, group=name) for name in ("data", "training"))


@dataclass(frozen=True, kw_only=True)
class TrainStudentConfig(ReadsMasks, CutsTiles, SetsSize, CachesDownloads, PushesModel, WritesFolder):
    """Train a fast network on images and masks."""

    title = "model"

    train_dataset_name: str | None = _data(
        None, "Images with masks to train on: a local folder or a Hub name.", aliases=("--train_data_dir",), reads=True
    )
    train_dataset_config_name: str | None = _data(None, "Configuration of that dataset.")
    train_split: str = _data("train", "Split of that dataset.")
    real_dataset_name: str | None = _data(
        None, "More images with masks, mixed in at --real_fraction: a local folder or a Hub name.", reads=True
    )
    real_dataset_config_name: str | None = _data(None, "Configuration of that dataset.")
    real_split: str = _data("train", "Split of that dataset.")
    unlabeled_dataset_name: str | None = _data(
        None,
        "Images without labels, for which --teacher computes soft targets: a local folder or a Hub name.",
        reads=True,
    )
    unlabeled_dataset_config_name: str | None = _data(None, "Configuration of that dataset.")
    unlabeled_split: str = _data("train", "Split of that dataset.")
    eval_dataset_name: str | None = _data(
        None, "Images with masks to measure on: a local folder or a Hub name.", reads=True
    )
    eval_dataset_config_name: str | None = _data(None, "Configuration of that dataset.")
    eval_split: str = _data("test", "Split of that dataset.")
    real_fraction: float = _data(
        0.2, "Share of --real_dataset_name among the images with masks that are shown.", maximum=1
    )
    unlabeled_fraction: float = _data(0.5, "Share of images without labels among all that are shown.", maximum=1)
    max_unlabeled: int | None = _data(
        None, "Number of images or tiles without labels, evenly spread (default: all).", minimum=1
    )
    labels_last: float = _data(0.25, "Share of the epochs, the last, that show images with masks alone.", maximum=1)
    validation_fraction: float | None = _data(
        None,
        "Share of the training data to hold out and choose the weights on (default: 0.1; with a teacher 0, and the "
        "last weights are kept).",
    )
    resolution: tuple[int, ...] | None = _data(
        None, "Side, or height and width, in pixels (default: as the images).", minimum=1
    )
    no_augmentation: bool = _data(False, "Show images as they are, without augmented views.")
    no_flip: bool = _data(False, "Show no mirrored views: left and right mean something.")
    model: str | None = option(
        None,
        "unet, a U-Net of 2 million weights; the folder of a diffusion pipeline, whose denoiser is trained further; "
        "the folder of a student; or Hub name, folder or JSON config of a network of transformers (default: unet for "
        "images of up to 128 pixels, else nvidia/mit-b0).",
        aliases=MODEL_ALIASES,
        reads=True,
    )
    teacher: str | None = option(
        None, "Fitted model whose probabilities the student learns: a folder or a Hub name.", reads=True
    )
    from_scratch: bool = option(False, "Start from fresh weights, though there are pretrained ones.")
    num_epochs: int = _training(20, "Number of epochs.", minimum=1)
    images_per_epoch: int | None = _training(
        None, "Number of images in an epoch (default: all there are, 1000 at least).", minimum=1
    )
    train_batch_size: int = _training(16, "Images per process and step.", minimum=1)
    learning_rate: float | None = _training(
        None, "Highest learning rate of AdamW (default: 0.002 for unet, 0.0005 for denoiser, 0.0003 for transformers)."
    )
    layer_decay: float = _training(
        1.0, "Learning rate of a stage of a U-Net as a share of that of the stage behind it.", above=0, maximum=1
    )
    weight_decay: float = _training(0.01, "Weight decay of AdamW.")
    max_grad_norm: float = _training(1.0, "Norm that gradients are clipped to.")
    mixed_precision: str | None = _training(
        None, "Precision of the passes (default: as Accelerate is configured).", choices=PRECISIONS
    )
    dataloader_num_workers: int = _training(2, "Processes that decode while training.", influence=False, why=SPEED)
    seed: int = _training(0, "Seed of weights, order and augmentation.")
    resume_from_checkpoint: str | None = _training(
        None,
        "The default: the same command line always resumes.",
        choices=(LATEST,),
        influence=False,
        why="it names what is done anyway",
    )
    targets_dir: Path | None = option(
        None,
        "Folder for the soft targets of the teacher, which other runs can use too (default: below the output, until "
        "the end).",
        influence=False,
        why="where they are kept, not what they are",
        group="output",
    )

    def part(self, name: str) -> tuple[str | None, str | None, str]:
        """Name, configuration and split of one of the datasets: `train`, `real`, `unlabeled` or `eval`."""
        return tuple(getattr(self, f"{name}_{kind}") for kind in ("dataset_name", "dataset_config_name", "split"))

    @property
    def held_out(self) -> float:
        """Share of the training data that is held out."""
        if self.validation_fraction is not None:
            return self.validation_fraction
        return 0.0 if self.teacher else 0.1

    def check(self) -> None:
        super().check()
        if bool(self.teacher) != bool(self.unlabeled_dataset_name):
            raise UserError("--teacher and --unlabeled_dataset_name go together; give both, or neither.")
        if not (self.train_dataset_name or self.teacher):
            raise UserError("There is nothing to learn from: give --train_dataset_name, or --teacher with images.")
        if self.targets_dir and not self.teacher:
            raise UserError("--targets_dir is for the soft targets of a --teacher; leave it out.")
        if self.targets_dir and self.targets_dir.resolve().is_relative_to(self.output_dir.resolve()):
            raise UserError("--targets_dir lies in --output_dir, which is the run's own; give a folder beside it.")
        if self.teacher and self.unlabeled_fraction == 0:
            raise UserError("With --unlabeled_fraction 0 nothing is learned from --teacher; leave one of them out.")
        if self.teacher and self.labels_last == 1 and (self.train_dataset_name or self.real_dataset_name):
            raise UserError("With --labels_last 1 nothing is learned from --teacher; leave one of them out.")
        for folder, kind in ((self.output_dir, "output_dir"), (self.targets_dir, "targets_dir")):
            for name in (self.part(part)[0] for part in ("train", "real", "unlabeled", "eval")):
                if name and folder and Path(name).is_dir() and Path(name).resolve() in folder.resolve().parents:
                    raise UserError(
                        f"--{kind} {folder} lies in the dataset {name}, which it would change; choose another."
                    )
