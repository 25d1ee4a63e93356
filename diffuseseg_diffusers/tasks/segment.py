# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segments pictures of any size and format, and whole datasets: `diffuseseg segment`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..arguments import add_cache_argument, add_model_arguments, add_output_arguments, check_at_least_one, inputs_of
from ..images.formats.opening import is_raster, rasters_without_masks
from ..images.image_processor import is_address, limit_pixels
from ..images.lengths import micrometres
from ..jobs.errors import UserError
from ..jobs.executors import add_executor_arguments, check_executor, is_worker, share_work
from ..jobs.files import check_output_folder, read_json, shown_name
from ..jobs.install import missing_extra
from ..jobs.parts import PARTS, finish_parts
from ..jobs.run import may_resume, open_run
from ..pipelines.loading import load_pipeline
from ..pipelines.segmenter import Segmenter
from ..tiling.files import LINES, UNREADABLE, FileRun, Reading
from ..tiling.objects import EXPORTS, METHODS, ObjectOptions
from ..tiling.tiles import BLENDS


logger = logging.getLogger(__name__)


COMMAND = "segment"
# Options on which the results depend.
SETTINGS = (
    *("model", "revision", "base_model", "mask_size", "alpha", "tile", "overlap", "blend", "scale", "pixel_size"),
    *("input_channels", "axes", "slice_axis", "max_memory", "batch_size", "instances", "object_classes", "min_area"),
    *("min_distance", "export", "dataset_name", "dataset_config_name", "dataset_revision", "split", "image_column"),
    *("streaming", "rows_per_file", "copy_images", "format"),
)
FORMATS = ("files", "parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="*", help="Pictures: files, folders of them, or addresses (https://…); or --dataset_name."
    )
    add_model_arguments(parser)
    add_cache_argument(parser)
    add_dataset_arguments(parser)
    add_reading_arguments(parser)
    add_object_arguments(parser)
    add_executor_arguments(parser)
    group = add_output_arguments(parser, f"masks, overlays and {LINES}")
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="Masks as files of their own, or as a dataset in Parquet files (default: files; of datasets, parquet).",
    )
    group.add_argument("--rows_per_file", type=int, default=512, help="Images in a Parquet file (default: 512).")
    group.add_argument("--copy_images", action="store_true", help="Images in the Parquet files, beside their masks.")
    group.add_argument(
        "--mask_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="Size of the masks (default: the images')."
    )
    group.add_argument("--alpha", type=float, default=0.5, help="Opacity of the overlay, 0 to 1 (default: 0.5).")


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """A dataset in place of files."""
    group = parser.add_argument_group("dataset")
    group.add_argument("--dataset_name", help="Images: a local folder or a Hub name, anything `datasets` loads.")
    group.add_argument("--dataset_config_name", help="Configuration of the dataset.")
    group.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    group.add_argument("--split", default="train", help="Part of the dataset (default: train).")
    group.add_argument("--image_column", help="Column of images (default: image, or a usual name).")
    group.add_argument("--streaming", action="store_true", help="Reading while segmenting, without storing it.")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """How pictures are read."""
    group = parser.add_argument_group("reading")
    group.add_argument("--batch_size", type=int, default=8, help="Images or tiles in a pass (default: 8).")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--tile",
        action="store_true",
        default=None,
        help="Tiles at a stated scale (default: as the head was fitted; for pictures much larger than the model).",
    )
    how.add_argument("--whole", dest="tile", action="store_false", help="The whole picture at once, resized.")
    group.add_argument(
        "--tile_overlap",
        dest="overlap",
        type=float,
        default=0.25,
        help="Part of a tile that the next one covers too, 0 to 0.75 (default: 0.25).",
    )
    group.add_argument("--blend", choices=BLENDS, default="gaussian", help="Blending of tiles (default: gaussian).")
    size = group.add_mutually_exclusive_group()
    size.add_argument(
        "--scale", type=float, help="The model's pixels for one of the picture (default: as the head was fitted, or 1)."
    )
    size.add_argument(
        "--pixel_size", type=micrometres, help="Side of what the model takes for a pixel, in µm, or with a unit: 10m."
    )
    group.add_argument(
        "--input_channels",
        nargs="+",
        help="Names or numbers of channels, in the model's order (default: as fitted).",
    )
    group.add_argument("--axes", help="Axes of TIFFs that do not say them: a letter each, such as CYX or ZYX.")
    group.add_argument(
        "--slice_axis", choices=("z", "y", "x"), default="z", help="Axis that slices of volumes lie along (default: z)."
    )
    group.add_argument(
        "--max_memory", type=float, default=1.0, help="GiB for a block of a large picture and its tiles (default: 1)."
    )
    group.add_argument(
        "--max_pixels", type=int, help="Limit for pictures that are decoded whole (default: 178956970, as Pillow's)."
    )


def add_object_arguments(parser: argparse.ArgumentParser) -> None:
    """What is counted."""
    group = parser.add_argument_group("objects")
    group.add_argument(
        "--instances", choices=METHODS, help="Counting of objects: connected pixels of a class, split or not."
    )
    group.add_argument(
        "--object_classes", nargs="+", help="Names of the classes to count (default: all but the first)."
    )
    group.add_argument("--min_area", type=int, default=0, help="Least number of pixels of an object (default: 0).")
    group.add_argument(
        "--min_distance", type=int, default=5, help="Pixels between middles of split objects (default: 5)."
    )
    group.add_argument("--export", nargs="+", choices=EXPORTS, default=[], help="Further formats of the objects.")


def main(args: argparse.Namespace) -> int:
    # 1. The inputs, and only then the folder.
    check_arguments(args)
    limit_pixels(args.max_pixels)
    if not is_worker() and not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    images = list_images(args.images)
    dataset = load_dataset_of(args, images)
    pipe = load_pipeline(args.model, args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    pipe.check_can_segment()
    reading = reading_of(args, pipe)
    run: Any
    if dataset is None:
        run = FileRun(pipe, images, args.output_dir, reading)
        for note in run.notes[:5] if not is_worker() else ():
            print(note)
        if len(run.notes) > 5 and not is_worker():
            print(f"Of {len(run.notes) - 5} more pictures there is as much to say.")
        for error in run.unopened.values() if not is_worker() else ():
            print(f"error: {error}", file=sys.stderr)
        owns, last, total, unit = run.files, LINES, len(images), "image"
    else:
        from ..tiling.collections import COLLECTION_FILES, SUMMARY, CollectionRun

        described = {"model": shown_name(args.model)}
        options: Any = (args.rows_per_file, args.copy_images, described)
        run = CollectionRun(pipe, *dataset, args.output_dir, reading, *options)
        owns, last = list(COLLECTION_FILES), SUMMARY
        total, unit = len(run), "shard" if args.streaming else "image"

    # 2. The folder: a new run, or one that is there, which this process resumes or joins.
    settings = {name: getattr(args, name) for name in SETTINGS} | {"images": images}
    overwrite = args.overwrite and not is_worker()
    open_run(args.output_dir, COMMAND, settings, owns, overwrite, inputs_of(args), together=True)
    complete = args.output_dir / last
    if complete.is_file():
        print(f"{args.output_dir} is complete.")
        return 0

    # 3. Part after part, together with whoever else is at it.
    def work() -> None:
        with tqdm(total=total, desc="Segmenting", unit=unit) as bar:
            finish_parts(run.parts(), bar)

    if not share_work(args, args.output_dir, work):
        print(f"The job is submitted; the results appear in {args.output_dir}, and {last} when all are there.")
        return 0
    if not complete.is_file():
        raise UserError(f"The run in {args.output_dir} is not complete; see {PARTS}/logs there, and start it again.")
    return describe_end(args, complete, len(images), dataset is not None)


def describe_end(args: argparse.Namespace, complete: Path, number: int, is_collection: bool) -> int:
    """Says what a run did; returns the status of the command."""
    from shutil import rmtree

    rmtree(args.output_dir / PARTS, ignore_errors=True)
    unreadable = args.output_dir / UNREADABLE
    broken = len(unreadable.read_text(encoding="utf-8").splitlines()) if unreadable.is_file() else 0
    number = read_json(complete)["rows"] + broken if is_collection else number
    print(f"{number - broken} of {number} images segmented; the masks are in {args.output_dir}.")
    if broken:
        print(f"Those that cannot be read are listed in {unreadable}.")
    return 1 if broken and not is_worker() else 0


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses numbers out of range, and what does not go together."""
    check_at_least_one(args, "batch_size", "rows_per_file", "max_pixels")
    for name in ("scale", "pixel_size", "max_memory"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be above 0, got {value:g}.")
    check_executor(args)
    if args.mask_size and min(args.mask_size) < 1:
        raise UserError(f"--mask_size is a height and a width of at least 1, got {args.mask_size}.")
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha must lie in 0 to 1, got {args.alpha}.")
    if bool(args.images) == bool(args.dataset_name):
        raise UserError("Give pictures, or a --dataset_name; one of the two.")
    if args.streaming and not args.dataset_name:
        raise UserError("Files are read as they are; --streaming is for --dataset_name.")
    args.format = args.format or ("parquet" if args.dataset_name else "files")
    if args.dataset_name and args.format == "files":
        raise UserError("Masks of a dataset go into Parquet files; leave --format files out.")
    if args.format == "files" and args.copy_images:
        raise UserError("--copy_images is for --format parquet.")
    if args.format == "parquet" and args.instances:
        raise UserError("Objects are counted in files; --instances and --format parquet exclude each other.")
    if not args.instances and (args.export or args.object_classes):
        raise UserError("--export and --object_classes need --instances.")
    if args.tile and args.mask_size:
        raise UserError("Masks of tiles have the size of the picture; leave --mask_size out.")


def reading_of(args: argparse.Namespace, pipe: Segmenter) -> Reading:
    """How pictures are to be read.

    Raises:
        UserError: An option is out of range, or does not fit the model.
    """
    objects = None
    if args.instances:
        classes = tuple(args.object_classes) if args.object_classes else None
        exports = tuple(dict.fromkeys(args.export))
        objects = ObjectOptions(args.instances, classes, args.min_area, args.min_distance, exports)
        objects.class_ids(pipe.label_names)
    names = (
        "tile",
        "overlap",
        "blend",
        "scale",
        "pixel_size",
        "axes",
        "slice_axis",
        "batch_size",
        "max_memory",
        "alpha",
    )
    return Reading(
        **{name: getattr(args, name) for name in names},
        channels=tuple(args.input_channels) if args.input_channels else None,
        mask_size=tuple(args.mask_size) if args.mask_size else None,
        objects=objects,
    )


def load_dataset_of(args: argparse.Namespace, images: list[str]) -> tuple[Any, str] | None:
    """The dataset to segment into Parquet files, and its column of images; `None` if files are wanted."""
    if args.format == "files":
        return None
    try:
        from datasets import Dataset, Features, Image

        from ..datasets.unlabeled import load_unlabeled
    except ModuleNotFoundError as error:
        raise missing_extra("train", error.name) from error
    if not args.dataset_name:
        return Dataset.from_dict({"image": images}, features=Features({"image": Image(decode=False)})), "image"
    where = dict(cache_dir=args.cache_dir, revision=args.dataset_revision)
    names = (args.dataset_name, args.dataset_config_name, args.split, None, args.image_column, args.streaming)
    return load_unlabeled(*names, **where)


def list_images(given: Sequence[str]) -> list[str]:
    """Addresses and files as they are, folders by the pictures anywhere below them.

    Raises:
        UserError: A folder has no images, or none of the files is there.
    """
    found: list[str] = []
    for name in given:
        if not is_address(name) and Path(name).is_dir():
            inside = [Path(name)] if is_raster(name) else rasters_without_masks(Path(name))
            if not inside:
                raise UserError(f"The folder {name} has no images in it.")
            found += map(str, inside)
        else:
            found.append(name)
    if given and not any(is_address(name) or os.path.exists(name) for name in found):
        raise UserError(f"There is no file or folder {', '.join(found)}.")
    once: dict[str, str] = {}
    for name in found:
        once.setdefault(name if is_address(name) else os.path.abspath(name), name)
    if len(once) < len(found):
        logger.warning(f"Of {len(found)} images, {len(found) - len(once)} are given twice; each is segmented once.")
    return list(once.values())
