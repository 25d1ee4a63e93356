# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options that several tasks share, so that the same name means the same everywhere."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from ..jobs.config import Config, exclusive, option
from ..jobs.config import WritesFolder as WritesFolder  # tasks take all their shared fields from here
from ..jobs.errors import UserError
from ..jobs.executors import check_executor
from ..tiling.options import ReadsRasters, StatesAxes, StatesScale


DTYPES = ("auto", "float32", "bfloat16", "float16")
MASK_FORMATS = ("index", "binary", "rgb", "instances")
ANNOTATION_FORMATS = ("auto", "coco", "labelme", "cvat", "label_studio", "qupath", "yolo", "supervisely")
RECIPES = ("default", "paper", "fast")
MODEL = "Pipeline: a local folder, a name on the Hub, or general, the denoiser that comes with the package."
MODEL_ALIASES = ("--pretrained_model_name_or_path",)


@dataclass(frozen=True, kw_only=True)
class RunsModel(Config):
    """Where a model comes from, and how it runs."""

    title = "model"

    revision: str | None = option(None, "Branch, tag or commit of a model on the Hub.")
    base_model: str | None = option(
        None,
        "Base of a head that was saved alone: a local folder or a name on the Hub (default: as the head says).",
        reads=True,
    )
    lora: tuple[str, ...] = option(
        (), "LoRAs to load onto a pipeline of diffusers: a folder, file or name each, with =SCALE if not 1."
    )
    device: str | None = option(
        None,
        "Device to run on, such as cuda:1 (default: a GPU if there is one).",
        influence=False,
        why="results are the same up to rounding",
    )
    dtype: str = option(
        "auto",
        "Precision of the model. auto: bfloat16 where it was timed to be faster on this machine, unless the masks were "
        "found to differ from those in float32; else float32.",
        choices=DTYPES,
    )
    verbose: bool = option(
        False, "Say in which precision models compute, and why.", influence=False, why="it only prints"
    )

    def loading(self, **changes: Any) -> dict[str, Any]:
        """Arguments of `load_pipeline` beside the name of the model; `changes` replace those of the options."""
        names = ("revision", "device", "dtype", "cache_dir", "base_model", "lora")
        return {name: getattr(self, name) for name in names} | changes

    def inputs(self) -> list[str]:
        return [*super().inputs(), *(one.rpartition("=")[0] or one for one in self.lora), *self.lora]


@dataclass(frozen=True, kw_only=True)
class NamesModel(RunsModel):
    """`--model`, and how it runs."""

    title = "model"

    model: str = option(help=MODEL, aliases=MODEL_ALIASES, reads=True)


@dataclass(frozen=True, kw_only=True)
class NamesModelOrBackbone(RunsModel):
    """`--model` or `--backbone`, and how it runs; without either, the task uses the general denoiser."""

    title = "model"

    model: str | None = option(None, f"{MODEL[:-1]} (default: general).", aliases=MODEL_ALIASES, reads=True)
    backbone: str | None = option(
        None, "Vision model of transformers in its place: a local folder or a name on the Hub.", reads=True
    )

    def check(self) -> None:
        super().check()
        exclusive(self, "model", "backbone")


@dataclass(frozen=True, kw_only=True)
class SetsSize(Config):
    """`--resolution`."""

    title = "features"

    resolution: tuple[int, ...] | None = option(
        None, "Side, or height and width, of images in pixels (default: the model's own).", minimum=1
    )

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width in pixels that `--resolution` states: one side of squares, or both."""
        return (self.resolution[0], self.resolution[-1]) if self.resolution else None

    def check(self) -> None:
        super().check()
        if self.resolution is not None and len(self.resolution) not in (1, 2):
            given = " ".join(map(str, self.resolution))
            raise UserError(f"--resolution is one side, or height and width, in pixels; got {given}.")


@dataclass(frozen=True, kw_only=True)
class FitsHeads(Config):
    """How features are computed and kept while heads are fitted."""

    title = "fitting"

    batch_size: int | None = option(
        None, "Images per forward pass (default: while fitting as many as have 65,536 pixels, 4 at least).", minimum=1
    )
    activation_dir: Path | None = option(
        None,
        "Folder for a temporary file of activations (default: in memory).",
        influence=False,
        why="the same activations, kept elsewhere",
    )


@dataclass(frozen=True, kw_only=True)
class CachesDownloads(Config):
    """`--cache_dir`."""

    title = "downloads"

    cache_dir: str | None = option(
        None,
        "Folder for downloads from the Hub, of models and datasets (default: the libraries' own).",
        influence=False,
        why="the same files, kept elsewhere",
    )


@dataclass(frozen=True, kw_only=True)
class ReadsDataset(Config):
    """Which part of a dataset to read. Subclasses add its name, and may state another default of `split`."""

    title = "data"

    dataset_config_name: str | None = option(None, "Configuration of the dataset.")
    dataset_revision: str | None = option(None, "Branch, tag or commit of a dataset on the Hub.")
    split: str = option("train", "Split of the dataset.")
    image_column: str | None = option(None, "Column of images (default: image, or a usual name).")


@dataclass(frozen=True, kw_only=True)
class ReadsMasks(Config):
    """What the values of masks mean."""

    title = "data"

    mask_format: str = option(
        "index",
        "Content of the masks: class ids; binary, white is class 1; rgb, colours of --palette; instances, every object "
        "is class 1.",
        choices=MASK_FORMATS,
    )
    palette: Path | None = option(
        None, 'JSON file with a colour of each class, [red, green, blue] or "#rrggbb".', reads=True
    )
    nearest_color: bool = option(False, "Read other colours as the nearest of the palette.")
    label_names: tuple[str, ...] | None = option(None, "Names of the classes (default: the dataset's id2label.json).")
    ignore_index: int | None = option(
        None, "Mask value without a label (default: 255, or what the model was fitted with).", maximum=255
    )

    def masks(self, ignore_index: int = 255) -> dict[str, Any]:
        """Arguments of `LabeledImages` that these are; `ignore_index` is that of no option."""
        names = ("mask_format", "palette", "nearest_color", "label_names")
        given = ignore_index if self.ignore_index is None else self.ignore_index
        return {name: getattr(self, name) for name in names} | {"ignore_index": given}


@dataclass(frozen=True, kw_only=True)
class ReadsLabels(ReadsDataset, ReadsMasks, StatesAxes):
    """Which labelled images to read, and how."""

    title = "data"

    dataset_name: str = option(
        help="Labelled images: a local folder or a name on the Hub.", aliases=("--train_data_dir",), reads=True
    )
    annotations: Path | None = option(
        None, "File or folder of annotations (default: those in the dataset's folder, if it has no masks).", reads=True
    )
    annotation_format: str = option("auto", "Format of the annotations.", choices=ANNOTATION_FORMATS)
    mask_column: str | None = option(None, "Column of masks (default: mask, or a usual name).")


@dataclass(frozen=True, kw_only=True)
class CutsTiles(StatesScale):
    """Whether labelled images are cut into tiles."""

    title = "reading"

    tile: bool | None = option(
        None,
        "Learn from tiles of large images, those that hold labels, or from whole images, resized (default: whole; "
        "with --recipe best tiles where sides exceed 160 pixels; a student as its teacher).",
        negative="--whole",
    )
    max_tiles: int = option(200, "Maximum number of tiles, with --tile.", minimum=1)

    def check(self) -> None:
        super().check()
        if not self.tile and (self.scale or self.pixel_size):
            raise UserError("--scale and --pixel_size are for --tile; whole images are resized to the model.")


@dataclass(frozen=True, kw_only=True)
class ReadsChannels(ReadsRasters):
    """Which channels of images are read, between which values, and at which scale large ones are cut."""

    title = "reading"

    intensity_window: tuple[float, ...] | None = option(
        None, "Values that are black and white: low and high, for all channels or for each.", minimum=float("-inf")
    )
    intensity_percentiles: tuple[float, float] | None = option(
        None, "The same as percentiles of the images, such as 0.5 99.5.", maximum=100
    )

    def check(self) -> None:
        super().check()
        exclusive(self, "intensity_window", "intensity_percentiles")
        if len(self.intensity_window or ()) % 2:
            raise UserError(
                f"--intensity_window is pairs of a low and a high value, got {len(self.intensity_window)} values."
            )


_hub = partial(option, influence=False, why="where it goes, not what it is")
_repository = partial(
    _hub, None, "Name of the repository on the Hub, user/name (default: the name of the output folder)."
)


@dataclass(frozen=True, kw_only=True)
class Pushes(Config):
    """`--push_to_hub` and what goes with it; subclasses add the name of the repository."""

    title = "Hub"

    push_to_hub: bool = _hub(False, "Upload the result at the end, with its card.")
    hub_private_repo: bool = _hub(False, "Make a new repository private.")
    license: str | None = _hub(None, "Identifier of the licence on the Hub, such as cc-by-4.0 (default: unknown).")

    @property
    def hub_id(self) -> str | None:
        """Name of the repository, if one is given."""
        return getattr(self, "hub_model_id", None) or getattr(self, "hub_dataset_id", None)


@dataclass(frozen=True, kw_only=True)
class PushesModel(Pushes):
    """`--push_to_hub` of a model."""

    title = "Hub"

    hub_model_id: str | None = _repository()


@dataclass(frozen=True, kw_only=True)
class PushesDataset(Pushes):
    """`--push_to_hub` of a dataset."""

    title = "Hub"

    hub_dataset_id: str | None = _repository()


def needs(config: Config, name: str, *others: str) -> None:
    """Raises [`UserError`] if one of the others is given without the field that it belongs to."""
    defaults = {one.name: one.default for one in fields(config)}
    for other in others:
        if getattr(config, other) != defaults[other] and not getattr(config, name):
            raise UserError(f"--{other} is of --{name}; give that too.")


_processes = partial(option, influence=False, why="results do not depend on who computes them")


@dataclass(frozen=True, kw_only=True)
class SharesWork(Config):
    """How many processes share the work, and where they run."""

    title = "processes"

    executor: str = _processes(
        "local",
        "Where processes run: on this machine, or by datatrove on a Slurm or Ray cluster with a common folder.",
        choices=("local", "slurm", "ray"),
    )
    tasks: int = _processes(1, "Number of processes.", minimum=1)
    executor_options: tuple[str, ...] = _processes(
        (), "Arguments of datatrove's executor, NAME=VALUE each, such as partition=gpu time=08:00:00 gpus_per_task=1."
    )

    def check(self) -> None:
        super().check()
        if self.executor != "local" or self.executor_options:
            check_executor(self.executor, self.executor_options)
