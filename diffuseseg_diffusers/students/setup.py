# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a training of a student reads: images, teacher and network, from its configuration."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from diffusers.optimization import get_scheduler

from ..datasets.columns import dataset_contents
from ..datasets.crops import LabeledTiles, RandomCrops
from ..datasets.find_labeled import load_labeled_images
from ..datasets.labeled import LabeledImages
from ..datasets.unlabeled import count_channels, evenly_spread, load_unlabeled
from ..images.image_processor import unnamed_classes
from ..jobs.contents import contents_of
from ..jobs.errors import UserError
from ..pipelines.identity import digest
from ..pipelines.loading import load_pipeline
from ..pipelines.segmenter import Segmenter
from ..trainer.loop import Trainer
from ..trainer.schedule import Plan
from .batches import EpochBatches, Mix
from .choosing import RATES, SMALL, UNET, check_reads, new_student, student_size
from .objective import parameter_groups
from .student import Student
from .targets import SoftTargets, WholeImages, crops_as_read


@dataclass(frozen=True)
class Tiles:
    """How images are cut."""

    size: tuple[int, int]  # height and width of what the student reads
    scale: float | None  # see `scale_of`
    pixel_size: float | None
    max_tiles: int  # with labels
    seed: int

    def cut(self, images: LabeledImages) -> LabeledTiles:
        """The tiles of images that hold labels."""
        return LabeledTiles(images, self.size, self.scale, self.pixel_size, self.max_tiles, self.seed)


@dataclass
class StudentData:
    """Images that a student learns from and is measured on; `None` where there are none."""

    train: LabeledImages | None
    real: LabeledImages | None
    validation: LabeledImages | None  # held out of `train`
    evaluation: LabeledImages | None
    unlabeled: tuple[Dataset, str] | None  # images without masks, and their column
    tiles: Tiles | None = None  # how all of them are cut

    def mix(self, config: Any) -> Mix:
        """Which images an epoch shows."""
        count = sum(len(part) for part in (self.train, self.real, self.unlabeled and self.unlabeled[0]) if part)
        shown = config.images_per_epoch or max(1000, count)
        return Mix(config.num_epochs, shown, config.real_fraction, config.unlabeled_fraction, config.labels_last)


def load_teacher(config: Any, device: torch.device) -> Segmenter | None:
    """The teacher of a configuration, if it names one.

    Raises:
        UserError: It has no head, or reads other images than students do.
    """
    if not config.teacher:
        return None
    where = None if os.path.isfile(config.teacher) else device  # ONNX files have their own devices
    teacher = load_pipeline(config.teacher, device=where, cache_dir=config.cache_dir)
    teacher.check_can_segment()
    if teacher.channels.config is not None or teacher.in_channels not in (1, 3):
        raise UserError(
            f"{config.teacher} reads chosen channels; students take pictures of 1 or 3 channels of eight bits."
        )
    return teacher


def load_student_data(config: Any, teacher: Segmenter | None) -> StudentData:
    """The datasets of a configuration, with the classes of the teacher if there is one, or of the first dataset.

    Raises:
        UserError: A dataset cannot be loaded, or has other classes.
    """

    tiles = tiles_of(config, teacher)

    def load(part: str, first: LabeledImages | None = None) -> LabeledImages | None:
        name, config_name, split = config.part(part)
        if name is None:
            return None
        given: dict = {"cache_dir": config.cache_dir}
        given |= config.masks(255 if teacher is None else teacher.ignore_index)
        if teacher is not None:
            given["classes"] = teacher.label_names
        elif first is not None:
            given["classes"] = first.label_names or unnamed_classes(first.num_classes)
        return load_labeled_images(name, config_name, split, **given)

    train, validation = load("train"), None
    if train is not None and config.held_out > 0:
        train, validation = train.split(config.held_out, config.seed)
    real = load("real", train)
    evaluation = load("eval", train or real)
    if tiles is not None:
        labeled = (train, real, validation, evaluation)
        train, real, validation, evaluation = (part if part is None else tiles.cut(part) for part in labeled)
    unlabeled = None
    if teacher is not None:
        dataset, column = load_unlabeled(*config.part("unlabeled"), cache_dir=config.cache_dir)
        if tiles is None and config.max_unlabeled is not None and config.max_unlabeled < len(dataset):
            dataset = dataset.select(evenly_spread(len(dataset), config.max_unlabeled))
        unlabeled = dataset, column
    return StudentData(train, real, validation, evaluation, unlabeled, tiles)


def tiles_of(config: Any, teacher: Segmenter | None) -> Tiles | None:
    """How images are cut for a student: as its teacher read them, or as the configuration says; `None` if not.

    Raises:
        UserError: The configuration asks for another reading than the teacher's.
    """
    fitted = {} if teacher is None else teacher.fitted_tiles
    by_tiles = bool(fitted.get("tiles"))
    if teacher is not None and config.tile not in (None, by_tiles):
        read, other = ("tiles", "--whole") if by_tiles else ("whole images", "--tile")
        raise UserError(f"{config.teacher} reads {read}, and a student reads images as its teacher; leave {other} out.")
    if not (by_tiles or config.tile):
        return None
    own = student_size(config.model, (SMALL, SMALL)) if teacher is None else teacher.image_size
    if teacher is not None and config.size not in (None, own):
        raise UserError(
            f"{config.teacher} reads tiles of {own[0]} x {own[1]}, and a student reads images as its teacher; leave "
            f"--resolution out."
        )
    scale = config.scale or fitted.get("scale")
    pixel_size = config.pixel_size or (None if config.scale else fitted.get("pixel_size"))
    return Tiles(config.size or own, scale, pixel_size, config.max_tiles, config.seed)


def unlabeled_images(config: Any, data: StudentData, student: Student) -> WholeImages | RandomCrops | None:
    """What the teacher computes soft targets for, if there is anything."""
    if data.unlabeled is None:
        return None
    if data.tiles is None:
        return WholeImages(*data.unlabeled, student.image_size, student.in_channels)
    crops = crops_as_read(student, *data.unlabeled, config.seed)
    number = min(len(crops), config.max_unlabeled or len(crops))
    print(f"Soft targets are computed for {number} of {len(crops)} tiles of {len(data.unlabeled[0])} pictures.")
    return crops.select(evenly_spread(len(crops), number))


def make_segmenter(config: Any, data: StudentData, teacher: Segmenter | None) -> tuple[Student, str, str]:
    """The student before its training, its kind (a key of `RATES`), and where its weights are from, empty for fresh
    ones. It has the resolution of the configuration, its own, or that of the images; where nothing is labelled, the
    teacher states size, channels and classes."""
    labeled, tiles = data.train or data.real, data.tiles
    asked_for = config.size if tiles is None else tiles.size
    if labeled is not None:
        first = labeled[0].image
        if tiles is not None:
            images = tiles.size
        elif isinstance(first, PIL.Image.Image):
            images = first.size[::-1]
        else:
            raise UserError(f"Students take pictures of 1 or 3 channels of eight bits, and {labeled[0].name} is none.")
        grey = count_channels(labeled.dataset, labeled.image_column) == 1
        names = labeled.label_names or unnamed_classes(labeled.num_classes)
    elif teacher is not None:
        images, grey, names = teacher.image_size, teacher.in_channels == 1, teacher.label_names
    else:
        raise UserError("There is nothing to learn from: give images with masks, or a teacher.")
    set_seed(config.seed)
    size = asked_for or student_size(config.model, images)
    if size != images and not asked_for:
        print(f"The student reads images at {size[0]} x {size[1]}; the first one has {images[0]} x {images[1]} pixels.")
    palette = teacher.palette if teacher is not None else labeled.palette if labeled is not None else None
    given = (config.model, names, size, 1 if grey else 3, palette)
    student, kind = new_student(*given, config.from_scratch, config.cache_dir)
    check_reads(student)
    if tiles is not None:
        scale = labeled.tiling["scale"] if labeled is not None else tiles.scale or 1.0
        student.fitted_tiles = {"tiles": True, "scale": scale, "pixel_size": tiles.pixel_size}
    fresh = "" if config.from_scratch or config.model in (None, UNET) else config.model
    return student, kind, getattr(student.model, "name_or_path", fresh)


def make_optimizer(config: Any, student: Student, kind: str) -> torch.optim.Optimizer:
    """AdamW with the learning rates of a configuration for a kind of network, a key of `RATES`."""
    groups = parameter_groups(student.model, config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate or RATES[kind], weight_decay=config.weight_decay)


def make_trainer(
    config: Any,
    accelerator: Accelerator,
    student: Student,
    optimizer: torch.optim.Optimizer,
    data: StudentData,
    unlabeled: SoftTargets | None,
) -> Trainer:
    """The trainer of a student: the learning rate warms up over a twentieth of the steps and falls as a cosine."""
    stream = EpochBatches(
        *(data.train, data.real, unlabeled, data.mix(config), student.image_size, student.in_channels),
        *(config.train_batch_size, config.seed, config.dataloader_num_workers),
    )
    total, highest = stream.steps * config.num_epochs, optimizer.param_groups[0]["lr"]
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=total // 20, num_training_steps=total)
    factor = schedule.lr_lambdas[0]  # a function of the step alone
    plan = Plan(max_steps=total, max_grad_norm=config.max_grad_norm, total_limit=1, events=(stream.steps,))
    given = (accelerator, config.output_dir, student.model, optimizer, stream)
    trainer = Trainer(*given, lambda step, _: highest * factor(step), plan)
    trainer.state |= {"best": -1.0, "epochs": []}
    return trainer


def teacher_contents(config: Any, teacher: Segmenter) -> dict[str, Any]:
    """Everything that a teacher's probabilities depend on, beside the images."""
    if os.path.isfile(config.teacher):
        return {"file": contents_of([config.teacher])[config.teacher]}
    return dict(teacher.identity())


def targets_settings(config: Any, data: StudentData, teacher: Segmenter, student: Student) -> dict[str, Any]:
    """Everything that soft targets depend on, for [`claim_targets`]."""
    names = ("teacher", "unlabeled_dataset_name", "unlabeled_dataset_config_name", "unlabeled_split", "max_unlabeled")
    return {name: getattr(config, name) for name in names} | {
        "unlabeled_images": len(data.unlabeled[0]),
        "unlabeled_contents": digest(dataset_contents(*data.unlabeled)),
        "teacher_contents": digest(teacher_contents(config, teacher)),
        "image_size": list(student.image_size),
        "tiles": None if data.tiles is None else asdict(data.tiles),
        "in_channels": student.in_channels,
    }


def student_contents(config: Any, data: StudentData, teacher: Segmenter | None) -> dict[str, Any]:
    """Contents of all that a student's training reads, for [`open_run`]."""
    found: dict[str, Any] = {}
    for part, images in (("train", data.train), ("real", data.real), ("eval", data.evaluation)):
        if images is not None:
            found[f"{part}_dataset_name"] = dataset_contents(images.dataset, images.image_column, images.mask_column)
    if (held := data.validation) is not None:  # by which weights are chosen
        rows = dataset_contents(held.dataset, held.image_column, held.mask_column)
        found["train_dataset_name"] |= {f"held out, {row}": content for row, content in rows.items()}
    if data.unlabeled is not None:
        found["unlabeled_dataset_name"] = dataset_contents(*data.unlabeled)
    if teacher is not None:
        found["teacher"] = teacher_contents(config, teacher)
    if config.model:
        found["model"] = contents_of([config.model])[config.model]
    return found
