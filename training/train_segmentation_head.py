# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a segmentation head for a diffusion model on a few labelled images: `diffuseseg fit`.

    accelerate launch training/train_segmentation_head.py --model MODEL --dataset_name DATA --output_dir OUT

On several processes, each fits a share of the ensemble's members.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from diffuseseg_diffusers import DiffuseSegPipeline, evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.commands import (
    add_data_arguments,
    add_model_arguments,
    check_output_folder,
    default_device,
    format_metrics,
    hardware,
    load_data,
    load_pipeline,
    output_folder,
    run_command,
    write_json,
)
from diffuseseg_diffusers.data import describe_dataset
from diffuseseg_diffusers.features import PAPER_TIMESTEPS
from diffuseseg_diffusers.head_training import RECIPES
from diffuseseg_diffusers.hub import add_hub_arguments, finish_push, prepare_push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_data_arguments(parser, split="train")
    group = parser.add_argument_group("validation")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--validation_split", help="Part of the dataset to measure on afterwards.")
    held_out.add_argument("--validation_fraction", type=float, help="Share of the images to hold out and measure on.")
    group = parser.add_argument_group("features")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--blocks", type=int, nargs="+", help="Decoder blocks, the deepest is 0 (default: the paper's, or up-blocks)."
    )
    which.add_argument("--up_blocks", type=int, nargs="+", help="Outputs of whole up-blocks, the deepest is 0.")
    group.add_argument("--timesteps", type=int, nargs="+", default=list(PAPER_TIMESTEPS), help="Diffusion timesteps.")
    group.add_argument("--fresh_noise", action="store_true", help="Noise of its own for every image and timestep.")
    group = parser.add_argument_group("training")
    group.add_argument("--recipe", choices=list(RECIPES), default="fast", help="Training procedure (default: fast).")
    group.add_argument("--num_members", type=int, default=10, help="Members of the ensemble (default: 10).")
    group.add_argument(
        "--min_label_fraction",
        type=float,
        default=20 / 256**2,
        help="Ignore a class where it covers less of an image (default: 20 of 256 × 256 pixels).",
    )
    group.add_argument("--seed", type=int, default=0, help="Of noise, weights and pixel order (default: 0).")
    group.add_argument("--batch_size", type=int, default=4, help="Images in a pass of the U-Net (default: 4).")
    group.add_argument("--activation_dir", help="Keep activations in a temporary file here, not in memory.")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, required=True, help="Where the fitted pipeline goes.")
    group.add_argument("--overwrite", action="store_true", help="Replace the output folder if there is one.")
    add_hub_arguments(parser)


def main(args: argparse.Namespace) -> None:
    check_output_folder(args.output_dir, args.overwrite)
    device = torch.device(args.device or default_device())
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.is_main_process:
        prepare_push(args)
    dataset = load_data(args)
    validation = None
    if args.validation_fraction is not None:
        dataset, validation = dataset.split(args.validation_fraction, args.seed)
    elif args.validation_split:
        validation = load_data(args, args.validation_split, num_classes=dataset.num_classes)
    pipe = load_pipeline(args.model, args.revision, args.device or accelerator.device, args.dtype)
    pipe.segmentation_head = None  # a head that is there already is replaced

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
        seed=args.seed,
        batch_size=args.batch_size,
        cache_dir=args.activation_dir,
        accelerator=accelerator,
    )
    report = {
        "model": args.model,
        "model_on_hub": None if os.path.isdir(args.model) else args.model,
        "dataset": describe_dataset(args.dataset_name, args.dataset_config_name, args.split),
        "num_images": len(dataset),
        "recipe": args.recipe,
        "seed": args.seed,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "device": str(pipe.unet.device),
        "hardware": hardware(pipe.unet.device),
        "num_processes": accelerator.num_processes,
        "seconds": round(time.perf_counter() - began, 2),
    }
    if not accelerator.is_main_process:
        return
    if validation is not None:
        report["validation"], _ = evaluate_segmentation(pipe, validation)
        split = args.validation_split or args.split
        report["validation"]["dataset"] = describe_dataset(args.dataset_name, args.dataset_config_name, split)
        print(format_metrics(report["validation"]))
    # The U-Net is saved as it was, not in the arithmetic that it ran in.
    original = DiffuseSegPipeline.from_pretrained(args.model, revision=args.revision, segmentation_head=None)
    original.segmentation_head = pipe.segmentation_head
    with output_folder(args.output_dir, args.overwrite) as folder:
        original.save_pretrained(folder)
        write_json(folder / "head_training.json", report)
        trained = Path(args.model) / "training_state.json"  # how the U-Net was trained belongs to what it became
        if trained.is_file():
            shutil.copy(trained, folder)
    print(f"Fitted on {len(dataset)} images in {report['seconds']} s; the pipeline is in {args.output_dir}.")
    finish_push(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
