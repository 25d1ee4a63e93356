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
from accelerate.utils import broadcast_object_list

from diffuseseg_diffusers import DiffuseSegPipeline, LabeledImages, evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.analysis import Budget, choose_features
from diffuseseg_diffusers.backbone import load_backbone
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
from diffuseseg_diffusers.features import up_block_outputs
from diffuseseg_diffusers.head_training import RECIPES, default_blocks, default_timesteps
from diffuseseg_diffusers.hub import add_hub_arguments, finish_push, prepare_push


AUTO = "auto"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser, backbone=True)
    add_data_arguments(parser, split="train")
    group = parser.add_argument_group("validation")
    held_out = group.add_mutually_exclusive_group()
    held_out.add_argument("--validation_split", help="Part of the dataset to measure on afterwards.")
    held_out.add_argument("--validation_fraction", type=float, help="Share of the images to hold out and measure on.")
    group = parser.add_argument_group("features")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--blocks",
        type=number_or_auto,
        nargs="+",
        help="Decoder blocks, the deepest is 0 (default: the recipe's); auto: chosen on these images.",
    )
    which.add_argument("--up_blocks", type=int, nargs="+", help="Outputs of whole up-blocks, the deepest is 0.")
    group.add_argument(
        "--timesteps",
        type=number_or_auto,
        nargs="+",
        help="Diffusion timesteps (default: the recipe's); auto: chosen on these images.",
    )
    group.add_argument(
        "--max_dimensions", type=int, help="Of a feature vector, for auto (default: as the paper's choice has)."
    )
    group.add_argument("--max_bytes", type=int, help="Of an image's activations in half precision, for auto.")
    group.add_argument("--max_milliseconds", type=float, help="Of the U-Net's passes for an image, for auto.")
    group.add_argument("--fresh_noise", action="store_true", help="Noise of its own for every image and timestep.")
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="default",
        help="Training procedure: default; paper, as published; fast, the paper's features trained in less time.",
    )
    group.add_argument("--no_flip", action="store_true", help="Left and right mean something: never mirror images.")
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


def number_or_auto(text: str) -> int | str:
    return text if text == AUTO else int(text)


def chosen_features(args: argparse.Namespace, pipe: DiffuseSegPipeline, dataset: LabeledImages, accelerator) -> list:
    """Puts blocks and timesteps in place of `auto`; returns all choices that were tried, the best first."""
    limits = (args.max_dimensions, args.max_bytes, args.max_milliseconds)
    auto = [name for name in ("blocks", "timesteps") if AUTO in (getattr(args, name) or ())]
    for name in auto:
        if getattr(args, name) != [AUTO]:
            raise ValueError(f"--{name} takes numbers or auto, got both: {getattr(args, name)}.")
    if not auto:
        if any(limits):
            raise ValueError(
                "--max_dimensions, --max_bytes and --max_milliseconds are for --blocks or --timesteps auto."
            )
        return []
    if "blocks" not in auto and args.up_blocks is not None:
        args.blocks = list(up_block_outputs(pipe.unet, args.up_blocks))
        args.up_blocks = None
    elif "blocks" not in auto and args.blocks is None:
        args.blocks = list(default_blocks(pipe.unet, RECIPES[args.recipe]))
    if "timesteps" not in auto and args.timesteps is None:
        args.timesteps = list(default_timesteps(pipe.scheduler, RECIPES[args.recipe]))
    tried = [None]
    if accelerator.is_main_process:  # the others would come to the same, but for what they measure of time
        tried[0] = choose_features(
            pipe,
            dataset,
            None if "blocks" in auto else args.blocks,
            None if "timesteps" in auto else args.timesteps,
            Budget(*limits) if any(limits) else None,
            seed=args.seed,
            batch_size=args.batch_size,
            cache_dir=args.activation_dir,
        )
    broadcast_object_list(tried)
    best = tried[0][0]
    args.blocks, args.timesteps = list(best["blocks"]), list(best["timesteps"])
    if accelerator.is_main_process:
        print(f"{'mean IoU':>8}  {'dimensions':>10}  {'MB':>6}  {'ms':>6}  blocks; timesteps")
        for c in tried[0][:5]:
            where = f"{' '.join(map(str, c['blocks']))}; {' '.join(map(str, c['timesteps']))}"
            costs = f"{c['dimensions']:>10}  {c['bytes'] / 1e6:>6.2f}  {c['milliseconds']:>6.1f}"
            print(f"{c['mean_iou']:>8.4f}  {costs}  {where}{'; as in the paper' if c['step'] == 0 else ''}")
        print(f"Of {len(tried[0])} choices, cross-validated on {len(dataset)} images, the first is taken.")
    return tried[0]


def main(args: argparse.Namespace) -> None:
    check_output_folder(args.output_dir, args.overwrite)
    device = torch.device(args.device or default_device())
    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.is_main_process:
        prepare_push(args)
    if args.backbone and (args.push_to_hub or AUTO in [*(args.blocks or ()), *(args.timesteps or ())]):
        raise ValueError("With --backbone, neither --push_to_hub nor auto is possible; give --blocks as numbers.")
    dataset = load_data(args)
    validation = None
    if args.validation_fraction is not None:
        dataset, validation = dataset.split(args.validation_fraction, args.seed)
    elif args.validation_split:
        validation = load_data(args, args.validation_split, num_classes=dataset.num_classes)
    device = args.device or accelerator.device
    if args.backbone:
        pipe = load_backbone(args.backbone, device)
    else:
        pipe = load_pipeline(args.model, args.revision, device, args.dtype)
        pipe.segmentation_head = None  # a head that is there already is replaced

    tried = chosen_features(args, pipe, dataset, accelerator)
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
    )
    name, network = args.model or args.backbone, getattr(pipe, "unet", None) or pipe.backbone
    report = {
        "model": name,
        "model_on_hub": None if os.path.isdir(name) else name,
        "dataset": describe_dataset(args.dataset_name, args.dataset_config_name, args.split),
        "num_images": len(dataset),
        "recipe": args.recipe,
        "seed": args.seed,
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": str(network.device),
        "hardware": hardware(network.device),
        "num_processes": accelerator.num_processes,
        "seconds": round(time.perf_counter() - began, 2),
    }
    if tried:
        report["selection"] = tried[:10]
    if not accelerator.is_main_process:
        return
    if validation is not None:
        report["validation"], _ = evaluate_segmentation(pipe, validation)
        split = args.validation_split or args.split
        report["validation"]["dataset"] = describe_dataset(args.dataset_name, args.dataset_config_name, split)
        print(format_metrics(report["validation"]))
    original = pipe
    if not args.backbone:  # the U-Net is saved as it was, not in the arithmetic that it ran in
        original = DiffuseSegPipeline.from_pretrained(args.model, revision=args.revision, segmentation_head=None)
        original.segmentation_head = pipe.segmentation_head
    with output_folder(args.output_dir, args.overwrite) as folder:
        original.save_pretrained(folder)
        write_json(folder / "head_training.json", report)
        trained = Path(name) / "training_state.json"  # how the U-Net was trained belongs to what it became
        if trained.is_file():
            shutil.copy(trained, folder)
    print(f"Fitted on {len(dataset)} images in {report['seconds']} s; the pipeline is in {args.output_dir}.")
    finish_push(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
