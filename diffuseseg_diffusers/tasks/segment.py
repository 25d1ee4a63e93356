# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segments images of any size and format, and whole datasets: `diffuseseg segment`."""

import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..jobs.config import option
from ..jobs.contents import contents_of
from ..jobs.errors import IncompleteError, UserError
from ..jobs.executors import is_worker, load_executor, share_work
from ..jobs.files import read_json, shown_name
from ..jobs.install import missing_extra
from ..jobs.parts import PARTS, finish_parts
from ..jobs.run import check_run, open_run
from ..tiling.options import Reading
from .options import MODEL, MODEL_ALIASES, CachesDownloads, ReadsDataset, RunsModel, SharesWork, WritesFolder


logger = logging.getLogger(__name__)

COMMAND = "segment"


@dataclass(frozen=True, kw_only=True)
class SegmentConfig(RunsModel, CachesDownloads, ReadsDataset, Reading, SharesWork, WritesFolder):
    """Segment images."""

    model: str | None = option(None, MODEL, aliases=MODEL_ALIASES, group="model", reads=True)
    images: tuple[str, ...] = option(
        (), "Images: files, folders of them, or addresses (https://…); or --dataset_name.", positional=True, reads=True
    )
    dataset_name: str | None = option(
        None, "Images: a local folder or a name on the Hub, anything `datasets` loads.", group="data", reads=True
    )
    streaming: bool = option(False, "Read while segmenting, without storing the dataset.", group="data")
    max_pixels: int | None = option(
        None, "Limit of pixels of images that are decoded whole (default: 178956970, as Pillow's).", minimum=1
    )
    format: str | None = option(
        None,
        "Masks as files, or as a dataset in Parquet files (default: files; of datasets, parquet).",
        group="output",
        choices=("files", "parquet"),
    )
    rows_per_file: int = option(512, "Images per Parquet file.", group="output", minimum=1)
    copy_images: bool = option(False, "Store the images in the Parquet files, beside their masks.", group="output")

    def check(self) -> None:
        super().check()
        if self.model is None:
            raise UserError(
                "No --model was given, and the general denoiser has no head yet: make one with `diffuseseg fit "
                "--dataset_name DATA --output_dir OUT`, then give --model OUT."
            )
        if bool(self.images) == bool(self.dataset_name):
            raise UserError("Give images, or a --dataset_name; one of the two.")
        if self.streaming and not self.dataset_name:
            raise UserError("Files are read as they are; --streaming is for --dataset_name.")
        if self.format is None:
            object.__setattr__(self, "format", "parquet" if self.dataset_name else "files")
        if self.dataset_name and self.format == "files":
            raise UserError("Masks of a dataset go into Parquet files; leave --format files out.")
        if self.format == "files" and self.copy_images:
            raise UserError("--copy_images is for --format parquet.")
        if self.format == "parquet" and self.instances:
            raise UserError("Objects are counted in files; --instances and --format parquet exclude each other.")


def segment(config: SegmentConfig) -> Path:
    """Segments files into masks and overlays, or a dataset into Parquet files with masks.

    A run that was cut off is resumed.

    Returns:
        `Path`: The list of results in the output folder: `segments.jsonl` of files, a line of JSON each;
        `segmentation.json` of a dataset. With Slurm it is there when the job has ended.

    Raises:
        UserError: Model, images or folder cannot be used.
        IncompleteError: Some images cannot be read; the others are segmented.

    Examples:
        >>> from diffuseseg_diffusers import SegmentConfig, segment
        >>> lines = segment(SegmentConfig(model="out/model", images=["photo.jpg"], output_dir="out/masks"))
    """
    from ..images.image_processor import limit_pixels
    from ..pipelines.loading import load_pipeline

    # 1. The inputs, and only then the folder.
    if config.executor != "local":
        load_executor(config.executor)
    limit_pixels(config.max_pixels)
    check_run(config, COMMAND)
    images = list_images(config.images)
    dataset = load_dataset_of(config, images)
    pipe = load_pipeline(config.model, **config.loading())
    with pipe.prepared():
        return _segment(config, pipe, images, dataset)


def _segment(config: SegmentConfig, pipe: Any, images: list[str], dataset: tuple[Any, str] | None) -> Path:
    run, owns, last, total = plan_run(config, pipe, images, dataset)

    # 2. The folder: a new run, or one that is there, which this process resumes or joins.
    open_run(config, COMMAND, contents_read(pipe, images, dataset), owns, together=True)
    complete = config.output_dir / last
    if complete.is_file():
        if dataset is None:
            check_results(complete, len(images))
        print(f"{config.output_dir} is complete.")
        return complete

    # 3. Part after part, together with other processes.
    def work() -> None:
        unit = "shard" if config.streaming else "image"
        with tqdm(total=total, desc="Segmenting", unit=unit) as bar:
            finish_parts(run.parts(), bar)

    if not share_work(config, COMMAND, work):
        print(f"The job is submitted; the results appear in {config.output_dir}, and {last} when all are there.")
        return complete
    if not complete.is_file():
        raise UserError(f"The run in {config.output_dir} is not complete; see {PARTS}/logs there, and start it again.")
    finish(config, complete, len(images), dataset is not None)
    return complete


def contents_read(pipe: Any, images: list[str], dataset: tuple[Any, str] | None) -> dict[str, Any]:
    """What the masks depend on beside the options: the model, and the contents of the images."""
    if dataset is not None and not images:
        from ..datasets.columns import dataset_contents

        return {"model": pipe.identity(), "dataset_name": dataset_contents(*dataset)}
    from ..images.formats.opening import files_of
    from ..images.image_processor import is_address

    names = ([name] if is_address(name) else files_of(os.path.abspath(name)) for name in images)
    return {"model": pipe.identity(), "images": contents_of(chain.from_iterable(names))}


def plan_run(
    config: SegmentConfig, pipe: Any, images: list[str], dataset: tuple[Any, str] | None
) -> tuple[Any, list[str], str, int]:
    """The run over files or a dataset, patterns of its files, the file that is written last, and how much there is."""
    from ..tiling.files import LINES, FileRun

    if dataset is not None:
        from ..tiling.collections import COLLECTION_FILES, SUMMARY, CollectionRun

        data, column = dataset
        described = {"model": shown_name(config.model)}
        how = (config, config.rows_per_file, config.copy_images, described)
        collection = CollectionRun(pipe, data, column, config.output_dir, *how)
        return collection, list(COLLECTION_FILES), SUMMARY, len(collection)
    run = FileRun(pipe, images, config.output_dir, config)
    if not is_worker():
        for note in run.notes[:5]:
            print(note)
        if len(run.notes) > 5:
            print(f"{len(run.notes) - 5} more such notes are left out.")
        for error in run.unopened.values():
            print(f"error: {error}", file=sys.stderr)
    return run, run.files, LINES, len(images)


def finish(config: SegmentConfig, complete: Path, number: int, is_collection: bool) -> None:
    """Removes what is needed no more, and says what the run did; raises [`IncompleteError`] if images were left out."""
    from ..tiling.files import UNREADABLE

    shutil.rmtree(config.output_dir / PARTS, ignore_errors=True)
    unreadable = config.output_dir / UNREADABLE
    broken = count_lines(unreadable)
    if is_collection:
        number = read_json(complete)["rows"] + broken
    else:
        check_results(complete, number)
    print(f"{number - broken} of {number} images segmented; the masks are in {config.output_dir}.")
    if broken and not is_worker():
        raise IncompleteError(
            f"{broken} of {number} images cannot be read; {unreadable} lists them. The others are done."
        )


def check_results(lines: Path, number: int) -> None:
    """Raises [`IncompleteError`] if the list of results lacks images, or names files that are not there."""
    from ..tiling.files import UNREADABLE

    folder = lines.parent
    rows = [json.loads(line) for line in lines.read_text(encoding="utf-8").split("\n") if line]
    names = [row[kind] for row in rows for kind in ("mask", "overlay")]
    missing = [name for name in names if not (folder / name).exists()]
    if missing or len(rows) + count_lines(folder / UNREADABLE) != number:
        what = f"{missing[0]} is missing" if missing else f"{lines.name} lists {len(rows)} of {number} images"
        raise IncompleteError(f"The results in {folder} are not whole: {what}. Pass --overwrite to make them anew.")


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def load_dataset_of(config: SegmentConfig, images: list[str]) -> tuple[Any, str] | None:
    """The dataset to segment into Parquet files, and its column of images; `None` if files are wanted."""
    if config.format == "files":
        return None
    try:
        from datasets import Dataset, Features, Image

        from ..datasets.unlabeled import load_unlabeled
    except ModuleNotFoundError as error:
        raise missing_extra("train", error.name) from error
    if not config.dataset_name:
        return Dataset.from_dict({"image": images}, features=Features({"image": Image(decode=False)})), "image"
    names = (config.dataset_name, config.dataset_config_name, config.split, None, config.image_column)
    return load_unlabeled(*names, config.streaming, cache_dir=config.cache_dir, revision=config.dataset_revision)


def list_images(given: Sequence[str]) -> list[str]:
    """Expands folders into the images anywhere below them; addresses and files stay as they are."""
    from ..datasets.layouts import find_pictures
    from ..images.formats.opening import is_raster, pictures_at, whole_images
    from ..images.image_processor import is_address

    found: list[str] = []
    for name in given:
        if not is_address(name) and Path(name).is_dir():
            inside = pictures_at(Path(name)) if is_raster(name) else find_pictures(Path(name))
            if not inside:
                raise UserError(f"The folder {name} has no images in it.")
            found += map(str, inside)
        else:
            found.append(name)
    if given and not any(is_address(name) or os.path.exists(name) for name in found):
        raise UserError(f"There is no file or folder {', '.join(found)}.")
    whole = set(whole_images(Path(name) for name in found if not is_address(name)))
    found = [name for name in found if is_address(name) or Path(name) in whole]
    once: dict[str, str] = {}
    for name in found:
        once.setdefault(name if is_address(name) else os.path.abspath(name), name)
    if len(once) < len(found):
        logger.warning(f"Of {len(found)} images, {len(found) - len(once)} are given twice; each is segmented once.")
    return list(once.values())
