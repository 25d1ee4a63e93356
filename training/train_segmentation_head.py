# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a segmentation head for a diffusion model on a few labelled images: `diffuseseg fit`.

    accelerate launch training/train_segmentation_head.py --model MODEL --dataset_name DATA --output_dir OUT

On several processes, each fits a share of the ensemble's members.
"""

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.arguments import (
    add_cache_argument,
    add_model_arguments,
    add_output_arguments,
    block_name,
    check_at_least_one,
    height_and_width,
    inputs_of,
    run_script,
)
from diffuseseg_diffusers.datasets.arguments import (
    add_data_arguments,
    add_reading_arguments,
    check_reading_arguments,
    read_channels,
)
from diffuseseg_diffusers.datasets.columns import decode_cell, describe_dataset
from diffuseseg_diffusers.datasets.crops import LabeledTiles, Pictures
from diffuseseg_diffusers.datasets.labeled import load_data
from diffuseseg_diffusers.datasets.unlabeled import evenly_spread, load_unlabeled
from diffuseseg_diffusers.evaluation.agreement import IMAGES as COMPARED
from diffuseseg_diffusers.evaluation.agreement import agreement_line, measure_agreement
from diffuseseg_diffusers.evaluation.decision_fitting import IMAGES, fit_decisions
from diffuseseg_diffusers.evaluation.evaluate import format_metrics
from diffuseseg_diffusers.features.base import FeatureInfo
from diffuseseg_diffusers.heads.fit import recipe_extractor
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.heads.selection import Budget, choose_features, format_choices
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import check_output_folder, output_folder, write_json
from diffuseseg_diffusers.jobs.hardware import (
    default_dtype,
    find_device,
    find_dtype,
    hardware,
    report_processes,
    short_name,
)
from diffuseseg_diffusers.pipelines.backbone import load_backbone
from diffuseseg_diffusers.pipelines.composed import ComposedDiffuseSegPipeline
from diffuseseg_diffusers.pipelines.loading import load_pipeline, save_fitted
from diffuseseg_diffusers.pipelines.segmenter import HeadSegmenter


AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, backbone=True)
    add_data_arguments(parser, split="train")
    add_tile_arguments(parser)
    add_cache_argument(parser)
    group = parser.add_argument_group("validation")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--validation_split", help="Part of the dataset to measure on afterwards.")
    held_out.add_argument("--validation_fraction", type=float, help="Share of the images to hold out and measure on.")
    group = parser.add_argument_group("features")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--blocks",
        type=block_name,
        nargs="+",
        help="Blocks by number, or by the name of a module: see `diffuseseg taps` (default: the recipe's); auto: "
        "chosen on these images.",
    )
    which.add_argument("--up_blocks", type=int, nargs="+", help="Outputs of whole up-blocks, the deepest is 0.")
    when = group.add_mutually_exclusive_group()
    when.add_argument(
        "--timesteps",
        type=number_or_auto,
        nargs="+",
        help="Diffusion timesteps (default: the recipe's); auto: chosen on these images.",
    )
    when.add_argument(
        "--noise_levels",
        type=float,
        nargs="+",
        help="Noise-to-signal ratios above 0 in place of timesteps, the same for every model.",
    )
    group.add_argument(
        "--resolution",
        type=int,
        nargs="+",
        help="Side, or height and width, in pixels at which images are read (default: the model's own).",
    )
    group.add_argument("--prompt", help="Text that conditions the model (default: its null prompt).")
    group.add_argument(
        "--max_dimensions", type=int, help="Of a feature vector, for auto (default: as the recipe's own features have)."
    )
    group.add_argument("--max_bytes", type=int, help="Limit of an image's activations in half precision.")
    group.add_argument("--max_milliseconds", type=float, help="Of the U-Net's passes for an image, for auto.")
    group.add_argument("--fresh_noise", action="store_true", help="Noise of its own for every image and timestep.")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="default",
        help="Training procedure: default; paper, as published; fast, the paper's features trained in less time.",
    )
    group.add_argument(
        "--sparse_labels",
        action="store_true",
        help="Masks are strokes, the rest has no label: learn from that too; takes twice as long.",
    )
    group.add_argument(
        "--unlabeled_dataset_name",
        help="Images without labels, a folder or a Hub name: by what the head says of them, pixels go to the classes "
        "that raise mean IoU most, and not to the likeliest ones.",
    )
    group.add_argument("--unlabeled_dataset_config_name", help="Configuration of that dataset.")
    group.add_argument("--unlabeled_split", default="train", help="Split of that dataset (default: train).")
    group.add_argument("--max_unlabeled", type=int, help=f"Of these images, evenly spread (default: {IMAGES}).")
    group.add_argument("--no_flip", action="store_true", help="Left and right mean something: never mirror images.")
    group.add_argument(
        "--num_members", type=int, help="Members of the ensemble (default: as many as the recipe says, 4 or 10)."
    )
    group.add_argument(
        "--min_label_fraction",
        type=float,
        default=20 / 256**2,
        help="Ignore a class where it covers less of an image (default: 20 of 256 × 256 pixels).",
    )
    group.add_argument("--seed", type=int, default=0, help="Of noise, weights and pixel order (default: 0).")
    group.add_argument("--batch_size", type=int, default=4, help="Images in a pass of the U-Net (default: 4).")
    group.add_argument("--activation_dir", help="Keep activations in a temporary file here, not in memory.")
    add_output_arguments(parser, "the fitted pipeline")
    add_hub_arguments(parser)


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    """How large pictures are read."""
    group = parser.add_argument_group("large pictures and other channels")
    group.add_argument("--tile", action="store_true", help="Tiles of large pictures, those that hold labels.")
    group.add_argument("--max_tiles", type=int, default=200, help="Tiles at most, with --tile (default: 200).")
    add_reading_arguments(group)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses numbers out of range, what does not go together, and a folder that is not to be written to."""
    check_output_folder(args.output_dir, args.overwrite, inputs_of(args))
    check_at_least_one(args, "batch_size", "num_members", "max_tiles", "max_unlabeled")
    check_reading_arguments(args)
    args.resolution = height_and_width(args.resolution)
    if not args.tile and (args.scale or args.pixel_size):
        raise UserError("--scale and --pixel_size are for --tile; whole pictures are resized to the model.")
    if args.unlabeled_dataset_name and (args.tile or args.input_channels or args.axes):
        raise UserError(
            "--unlabeled_dataset_name takes whole pictures of eight bits; leave it out with tiles or channels."
        )
    for name in ("unlabeled_dataset_config_name", "max_unlabeled"):
        if getattr(args, name) is not None and not args.unlabeled_dataset_name:
            raise UserError(f"--{name} is of --unlabeled_dataset_name; give that too.")
    pictures = args.unlabeled_dataset_name
    if pictures and os.path.isdir(pictures) and args.output_dir.resolve().is_relative_to(Path(pictures).resolve()):
        raise UserError(f"--output_dir {args.output_dir} lies in {pictures}, which it would change; choose another.")
    if args.backbone and args.push_to_hub:
        raise UserError("A head on --backbone cannot be pushed yet; leave --push_to_hub out.")


def read_pictures(
    args: argparse.Namespace, pipe: Any, dataset: LabeledImages, validation: LabeledImages | None
) -> tuple[LabeledImages, LabeledImages | None]:
    """Labelled images with their channels and intensities; with `--tile`, their tiles that hold labels."""
    pictures = partial(Pictures, dataset.dataset, dataset.image_column, args.axes, args.slice_axis)
    dataset.channels = read_channels(args, pictures, pipe.channels)
    if validation is not None:
        validation.channels = dataset.channels
    if not args.tile:
        return dataset, validation
    size = args.resolution or pipe.feature_extractor().size
    options = (size, args.scale, args.pixel_size, args.max_tiles, args.seed)
    return LabeledTiles(dataset, *options), None if validation is None else LabeledTiles(validation, *options)


def number_or_auto(text: str) -> int | str:
    return text if text == AUTO else int(text)


def choose(args: argparse.Namespace, pipe: Any, dataset: LabeledImages, accelerator: Accelerator) -> list[dict]:
    """Puts blocks and timesteps in place of `auto`; returns all choices that were tried, the best first."""
    limits = (args.max_dimensions, args.max_bytes, args.max_milliseconds)
    auto = [name for name in ("blocks", "timesteps") if AUTO in (getattr(args, name) or ())]
    for name in auto:
        if getattr(args, name) != [AUTO]:
            raise UserError(f"--{name} takes numbers or auto, got both: {getattr(args, name)}.")
    reading = dict(size=args.resolution, prompt=args.prompt)
    if not auto:
        if args.max_dimensions or args.max_milliseconds:
            raise UserError("--max_dimensions and --max_milliseconds are for --blocks or --timesteps auto.")
        chosen = (args.blocks, args.timesteps, args.up_blocks, args.noise_levels)
        check_bytes(recipe_extractor(pipe, args.recipe, *chosen, **reading).feature_info(), args.max_bytes)
        return []
    if args.noise_levels:
        raise UserError("--noise_levels and auto exclude each other; leave one out.")
    numbers = {name: None if name in auto else getattr(args, name) for name in ("blocks", "timesteps")}
    usual = recipe_extractor(pipe, args.recipe, **numbers, up_blocks=args.up_blocks, **reading)
    fixed = {name: None if name in auto else getattr(usual, name) for name in numbers}
    tried = [None]
    if accelerator.is_main_process:  # the others would come to the same, but for what they measure of time
        budget = Budget(*limits) if any(limits) else None
        options = dict(share_noise=not args.fresh_noise, flip=False if args.no_flip else None, seed=args.seed)
        options |= dict(batch_size=args.batch_size, cache_dir=args.activation_dir, **reading)
        tried[0] = choose_features(pipe, dataset, args.recipe, **fixed, budget=budget, **options)
        print(format_choices(tried[0]))
        print(f"Of {len(tried[0])} choices, cross-validated on {len(dataset)} images, the first is taken.")
    broadcast_object_list(tried)
    best = tried[0][0]
    args.blocks, args.timesteps, args.up_blocks = list(best["blocks"]), list(best["timesteps"]), None
    return tried[0]


def unlabeled_images(args: argparse.Namespace) -> tuple[Iterator[Any], int] | None:
    """Images without labels, evenly spread, and their number, if there are any; all can be read."""
    if args.unlabeled_dataset_name is None:
        return None
    where = (args.unlabeled_dataset_name, args.unlabeled_dataset_config_name, args.unlabeled_split)
    dataset, column = load_unlabeled(*where, cache_dir=args.cache_dir)
    rows = evenly_spread(len(dataset), args.max_unlabeled or IMAGES)
    for i in rows:  # not after a fit that would be lost
        image, where = decode_cell(dataset[i][column], f"row {i}")
        try:
            image.load()
        except OSError as error:
            raise UserError(f"The image in {where} cannot be read ({error}); repair or remove it.") from error
    return (decode_cell(dataset[i][column], f"row {i}")[0] for i in rows), len(rows)


def check_bytes(info: list[FeatureInfo], limit: int | None) -> None:
    """Refuses features that take more than `--max_bytes` an image."""
    taken = sum(2 * i.channels * i.height * i.width for i in info)
    if limit is not None and taken > limit:
        raise UserError(
            f"The activations of an image take {taken:,} bytes, more than --max_bytes {limit:,}; choose fewer --blocks "
            f"or --timesteps, a smaller --resolution, or auto."
        )


def main(args: argparse.Namespace) -> None:
    # 1. Inputs, all of them checked before the long work.
    check_arguments(args)
    device = find_device(args.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    report_processes(accelerator)
    if accelerator.is_main_process:
        prepare_push(args)
    how = {"axes": args.axes, "slice_axis": args.slice_axis}
    dataset = load_data(args, **how)
    validation = None
    if args.validation_fraction is not None:
        dataset, validation = dataset.split(args.validation_fraction, args.seed)
    elif args.validation_split:
        validation = load_data(args, args.validation_split, num_classes=dataset.num_classes, **how)
        if validation.same_images(dataset):
            raise UserError(
                f"--split {args.split} and --validation_split {args.validation_split} of {args.dataset_name} are the "
                f"same images; hold some of them out with --validation_fraction."
            )
    device = find_device(args.device or accelerator.device)
    pipe = load_frozen(args, device, find_dtype(args.dtype, device, args.model or args.backbone))
    dataset, validation = read_pictures(args, pipe, dataset, validation)
    unlabeled = unlabeled_images(args)

    # 2. Features and head.
    tried = choose(args, pipe, dataset, accelerator)
    began = time.perf_counter()
    pipe.segmentation_head = fit_segmentation_head(
        pipe,
        dataset,
        blocks=args.blocks,
        timesteps=args.timesteps,
        up_blocks=args.up_blocks,
        num_members=args.num_members,
        recipe=args.recipe,
        min_label_fraction=args.min_label_fraction,
        share_noise=not args.fresh_noise,
        flip=False if args.no_flip else None,
        seed=args.seed,
        batch_size=args.batch_size,
        cache_dir=args.activation_dir,
        accelerator=accelerator,
        noise_levels=args.noise_levels,
        size=args.resolution,
        prompt=args.prompt,
        sparse_labels=args.sparse_labels,
    )
    if not accelerator.is_main_process:
        return
    if unlabeled is not None:
        pipe.decisions = fit_decisions(pipe, *unlabeled, args.batch_size)
    report = describe_fit(args, pipe, dataset, accelerator, time.perf_counter() - began, tried)

    # 3. What it is worth, and where it goes.
    if not isinstance(pipe, ComposedDiffuseSegPipeline):  # of which a second copy in float32 may not fit
        report["agreement"] = compare_precisions(args, pipe, dataset if validation is None else validation)
    if validation is not None:
        report["validation"], _ = evaluate_segmentation(pipe, validation)
        split = args.validation_split or args.split
        report["validation"]["dataset"] = describe_dataset(args.dataset_name, args.dataset_config_name, split)
        print(format_metrics(report["validation"]))
    with output_folder(args.output_dir, args.overwrite, "fit", inputs_of(args)) as folder:
        save_fitted(pipe, folder, args.model or args.backbone, args.revision, args.cache_dir)
        write_json(folder / "head_training.json", report)
    print(f"Fitted on {len(dataset)} images in {report['seconds']} s; the pipeline is in {args.output_dir}.")
    finish_push(args)


def load_frozen(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that `--model` or `--backbone` names, without a head: one that is there already is replaced."""
    if args.backbone:
        return load_backbone(args.backbone, device, dtype, args.revision, args.cache_dir)
    pipe: Any = load_pipeline(args.model, args.revision, device, dtype, args.cache_dir, args.base_model)
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(f"{args.model} is a student, which has no head to fit; give a diffusion model.")
    pipe.segmentation_head = None
    return pipe


def compare_precisions(args: argparse.Namespace, pipe: Any, dataset: LabeledImages) -> dict[str, float]:
    """Puts into the head on how many pixels of some images its masks are those of float32, and says it."""
    images = (dataset[i].image for i in evenly_spread(len(dataset), COMPARED))
    usual, own = default_dtype(pipe.segmentation_head.device), pipe.head_extractor().dtype
    if own == usual == torch.float32:
        return {}
    try:
        if own != torch.float32:
            agreement = measure_agreement(pipe, partial(in_dtype, args, pipe, torch.float32), images)
        else:  # in which `auto` would use it here
            agreement = measure_agreement(in_dtype(args, pipe, usual), lambda: pipe, images)
    except torch.cuda.OutOfMemoryError:  # not worth the head that was fitted
        print("Masks were not compared with those in float32: there is no memory for a second copy of the model.")
        return {}
    print(agreement_line(agreement))
    pipe.segmentation_head.register_to_config(agreement=agreement)
    return agreement


def in_dtype(args: argparse.Namespace, pipe: Any, dtype: torch.dtype) -> Any:
    """The same model with the same head in another precision."""
    other = load_frozen(args, pipe.segmentation_head.device, dtype)
    other.segmentation_head = pipe.segmentation_head
    return other


def describe_fit(
    args: argparse.Namespace,
    pipe: Any,
    dataset: LabeledImages,
    accelerator: Accelerator,
    seconds: float,
    tried: list[dict],
) -> dict:
    """What `head_training.json` says."""
    name, extractor = args.model or args.backbone, pipe.head_extractor()
    report = {
        "model": os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name,
        "model_on_hub": None if os.path.isdir(name) else name,
        "dataset": describe_dataset(args.dataset_name, args.dataset_config_name, args.split),
        "decisions": pipe.segmentation_head.config.decisions,
        "num_images": len(dataset),
        "mask_format": args.mask_format,
        "recipe": args.recipe,
        "num_members": pipe.segmentation_head.config.num_members,
        "sparse_labels": args.sparse_labels,
        "seed": args.seed,
        "dtype": short_name(extractor.dtype),
        "device": str(extractor.device),
        "hardware": hardware(extractor.device),
        "num_processes": accelerator.num_processes,
        "seconds": round(seconds, 2),
    }
    return {**report, "selection": tried[:10]} if tried else report


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
