# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Compares fitted models, students and ONNX files on labelled images: `diffuseseg compare`."""

import argparse
import os

from ..arguments import add_cache_argument, add_model_options, add_output_arguments, check_at_least_one, inputs_of
from ..datasets.arguments import add_data_arguments
from ..datasets.columns import describe_dataset
from ..datasets.labeled import load_data
from ..evaluation.comparison import compare_models, format_comparison
from ..figures.curves import accuracy_over_speed
from ..jobs.errors import UserError
from ..jobs.files import check_output_folder, output_folder, shown_name, write_json
from ..jobs.hardware import find_device, hardware
from ..pipelines.loading import load_pipelines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    group.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="Fitted models, students and ONNX files: local folders, files or names on the Hub; the others are "
        "compared with the first.",
    )
    add_model_options(group)
    add_data_arguments(parser, split="test")
    add_cache_argument(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="Number of images in a pass (default: 8).")
    add_output_arguments(parser, "comparison.json and comparison.png")


def main(args: argparse.Namespace) -> None:
    check_at_least_one(args, "batch_size")
    check_output_folder(args.output_dir, args.overwrite, inputs_of(args), "compare")
    real = [os.path.realpath(name) if os.path.exists(name) else name for name in args.models]
    if twice := next((name for name, path in zip(args.models, real) if real.count(path) > 1), None):
        raise UserError(f"{twice} is given twice; give every model once.")
    where = (args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    models = load_pipelines(args.models, *where)
    for model in models.values():
        model.check_can_segment()
    first = models[args.models[0]]
    for name, model in models.items():
        if model.channels.config != first.channels.config:
            raise UserError(f"{name} reads other channels of an image than {args.models[0]}; compare those alike.")
    dataset = load_data(args, ignore_index=first.ignore_index, classes=first.label_names, channels=first.channels)
    results = compare_models(models, dataset, args.batch_size)
    report = {
        "dataset": describe_dataset(args.dataset_name, args.dataset_config_name, args.split),
        "num_images": len(dataset),
        "batch_size": args.batch_size,
        "hardware": hardware(find_device(args.device)),
        "models": results,
    }
    with output_folder(args.output_dir, args.overwrite, "compare", inputs_of(args)) as folder:
        write_json(folder / "comparison.json", report)
        accuracy_over_speed([r | {"model": shown_name(r["model"])} for r in results]).savefig(folder / "comparison.png")
    print(format_comparison(results))
    print(f"{len(dataset)} images in batches of {args.batch_size}, {report['hardware']}. Written to {args.output_dir}.")
