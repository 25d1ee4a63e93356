# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures a fitted model on labelled images: `diffuseseg evaluate`."""

import argparse

from ..arguments import add_cache_argument, add_model_arguments, add_output_arguments, check_at_least_one, inputs_of
from ..datasets.arguments import add_data_arguments, load_data
from ..datasets.columns import describe_dataset
from ..evaluation.evaluate import evaluate_segmentation, format_metrics
from ..figures.pages import examples_page
from ..jobs.files import check_output_folder, output_folder, write_json
from ..pipelines.loading import load_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_data_arguments(parser, split="test")
    add_cache_argument(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="Number of images in a pass (default: 8).")
    parser.add_argument(
        "--absent_as_zero", action="store_true", help="An IoU of 0 for absent classes, as in the paper."
    )
    parser.add_argument(
        "--count_ignored", action="store_true", help="Predictions on ignored pixels as errors, as in the paper."
    )
    parser.add_argument(
        "--num_examples", type=int, default=12, help="Number of images on the page of examples (default: 12; 0: none)."
    )
    add_output_arguments(parser, "metrics.json and examples.png")


def main(args: argparse.Namespace) -> None:
    check_at_least_one(args, "batch_size")
    check_output_folder(args.output_dir, args.overwrite, inputs_of(args), "evaluate")
    pipe = load_pipeline(args.model, args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    pipe.check_can_segment()
    names = pipe.label_names
    dataset = load_data(args, ignore_index=pipe.ignore_index, classes=names, channels=pipe.channels)
    metrics, examples = evaluate_segmentation(
        pipe, dataset, args.batch_size, args.absent_as_zero, args.count_ignored, num_examples=args.num_examples
    )
    metrics["dataset"] = describe_dataset(args.dataset_name, args.dataset_config_name, args.split)
    with output_folder(args.output_dir, args.overwrite, "evaluate", inputs_of(args)) as folder:
        write_json(folder / "metrics.json", metrics)
        if examples:
            examples_page(examples, names, pipe.palette, dataset.ignore_index).savefig(folder / "examples.png")
    print(format_metrics(metrics))
    print(f"Written to {args.output_dir}.")
