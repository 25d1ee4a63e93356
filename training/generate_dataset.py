# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Generates a dataset of images with masks: `diffuseseg generate`.

    accelerate launch training/generate_dataset.py --model MODEL --num_samples 10000 --output_dir OUT

On several processes, each generates a share of the batches. Image `i` depends on the seed and `i`; the same batch size,
arithmetic and number of threads give the same bytes, on any number of processes. The same command line goes on where a
run was cut off.
"""

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from diffuseseg_diffusers.commands import (
    add_model_arguments,
    check_output_folder,
    default_device,
    hardware,
    load_pipeline,
    run_command,
    write_json,
)
from diffuseseg_diffusers.data import decode_picture, describe_dataset
from diffuseseg_diffusers.generation import (
    IMAGE_FORMATS,
    PARTS,
    SCHEDULERS,
    Samples,
    check_settings,
    distances,
    fingerprint,
    generate_batch,
    keep_balanced,
    keep_certain,
    keep_distinct,
    part_path,
    scheduler_for,
    thumbnail,
    uncertainty_histogram,
    write_shards,
    write_table,
)
from diffuseseg_diffusers.hub import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.unlabeled_data import load_unlabeled
from diffuseseg_diffusers.visualization import samples_page


MAX_CLASSES = 255  # a mask holds ids 0 to 255, and 255 means that there is no label
COMPARED = 2000  # generated images whose nearest neighbours are looked for, at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    group = parser.add_argument_group("generation")
    group.add_argument("--num_samples", type=int, required=True, help="Images to generate, before any are left out.")
    group.add_argument("--batch_size", type=int, default=16, help="Images at once (default: 16).")
    group.add_argument("--scheduler", choices=list(SCHEDULERS), default="ddim", help="Sampler (default: ddim).")
    group.add_argument("--num_inference_steps", type=int, default=50, help="Denoising steps (default: 50).")
    group.add_argument(
        "--masks_while_sampling",
        action="store_true",
        help="Masks from the denoising steps themselves, without a further pass of the U-Net.",
    )
    group.add_argument("--seed", type=int, default=0, help="Of the noise of all images (default: 0).")
    group = parser.add_argument_group("what is left out")
    group.add_argument(
        "--drop_uncertain", type=float, default=0.1, help="Most uncertain fraction (default: 0.1; 0: none)."
    )
    group.add_argument(
        "--drop_common", type=float, default=0.0, help="Fraction that shows the least of rare classes (default: 0)."
    )
    group.add_argument(
        "--min_distance",
        type=float,
        default=0.0,
        help="Images nearer than this to an earlier one, or to a training image, are left out: root mean squared "
        "difference at 16 × 16 pixels, 0 to 1 (default: 0, none).",
    )
    group.add_argument("--train_dataset_name", help="Images that the model was trained on, to look for copies.")
    group.add_argument("--train_dataset_config_name", help="Configuration of that dataset.")
    group.add_argument("--train_split", default="train", help="Part of it (default: train).")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, required=True, help="For the dataset.")
    group.add_argument("--overwrite", action="store_true", help="Replace what is in the output folder.")
    group.add_argument("--image_format", choices=IMAGE_FORMATS, default="png", help="Of the images (default: png).")
    group.add_argument("--shard_mb", type=float, default=500, help="Size of a Parquet file in MB (default: 500).")
    add_hub_arguments(parser, "dataset")


def check_arguments(args: argparse.Namespace) -> None:
    for name in ("num_samples", "batch_size", "num_inference_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    for name in ("drop_uncertain", "drop_common"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"--{name} is a fraction from 0 to below 1, got {getattr(args, name)}.")
    if args.shard_mb <= 0:
        raise ValueError(f"--shard_mb must be above 0, got {args.shard_mb}.")


def main(args: argparse.Namespace) -> None:
    # 1. The pipeline, and what the run is made with.
    check_arguments(args)
    device = torch.device(args.device or default_device())
    accelerator = Accelerator(cpu=device.type == "cpu")
    pipe = load_pipeline(args.model, args.revision, args.device or accelerator.device, args.dtype)
    head = pipe.segmentation_head
    if head is None:
        raise ValueError(f"{args.model} has no segmentation head, and would give no masks; fit one: `diffuseseg fit`.")
    if head.config.num_classes > MAX_CLASSES:
        raise ValueError(f"Masks hold at most {MAX_CLASSES} classes, but this head has {head.config.num_classes}.")
    pipe.scheduler = scheduler_for(args.scheduler, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    settings = {
        "weights": fingerprint(pipe.unet, head),
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
    }
    names = ("num_samples", "batch_size", "num_inference_steps", "masks_while_sampling", "seed", "image_format")
    names += ("drop_uncertain", "drop_common", "min_distance", "shard_mb")
    names += ("train_dataset_name", "train_dataset_config_name", "train_split")
    settings |= {name: getattr(args, name) for name in names}
    if accelerator.is_main_process:
        prepare_push(args, "dataset")
        if args.overwrite:
            shutil.rmtree(args.output_dir, ignore_errors=True)
        if not (args.output_dir / "generation.json").is_file():
            check_output_folder(args.output_dir, overwrite=False)
        check_settings(args.output_dir, settings)
    accelerator.wait_for_everyone()
    done = check_settings(args.output_dir, settings) is not None

    # 2. Batches, each in a file of its own; what is there is not made again.
    num_batches = -(-args.num_samples // args.batch_size)
    mine = range(accelerator.process_index, num_batches, accelerator.num_processes)
    missing = [] if done else [b for b in mine if not part_path(args.output_dir, b).is_file()]
    began = time.perf_counter()
    show = {"desc": "Generating", "unit": "image", "disable": not accelerator.is_main_process}
    with tqdm(total=len(mine) * args.batch_size, initial=(len(mine) - len(missing)) * args.batch_size, **show) as bar:
        for batch in missing:
            table = generate_batch(
                pipe,
                batch,
                args.batch_size,
                args.seed,
                args.num_inference_steps,
                args.masks_while_sampling,
                args.image_format,
            )
            write_table(part_path(args.output_dir, batch), table)
            bar.update(args.batch_size)
    seconds = time.perf_counter() - began
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return

    # 3. What is kept, and where it goes.
    if not done:
        samples = Samples(args.output_dir, args.num_samples, args.batch_size)
        kept, nearest = select(args, samples)
        shards = write_shards(args.output_dir, samples, kept, int(args.shard_mb * 1e6))
        write_json(args.output_dir / "id2label.json", dict(enumerate(pipe.label_names)))
        shown = samples.rows(kept[:8], ["image", "mask"])
        pictures = [[decode_picture(cell, name)[0] for cell in shown[name].to_pylist()] for name in ("image", "mask")]
        samples_page(*pictures, pipe.label_names, pipe.palette).savefig(args.output_dir / "samples.png")
        uncertainty_histogram(samples.uncertainty, kept).savefig(args.output_dir / "uncertainty.png")
        made = len(missing) * args.batch_size
        model = describe_dataset(args.model, None, None)
        result = {
            "model": {"name": model["name"], "on_hub": model["on_hub"]},
            "num_kept": len(kept),
            "mean_uncertainty": float(samples.uncertainty[kept].mean()),
            "nearest_neighbours": nearest,
            "seconds_per_image": seconds / made if made else None,  # of this process, in this run
            "hardware": hardware(pipe.unet.device),
            "num_processes": accelerator.num_processes,
            "shards": shards,
        }
        write_json(args.output_dir / "generation.json", {"settings": settings, "result": result})
        print(f"{len(kept)} of {args.num_samples} images are in {args.output_dir}, {len(shards)} files.")
        for name, quantiles in nearest.items():
            print(f"Distance to the nearest, {name}: median {quantiles['median']:.3f}, least {quantiles['least']:.3f}.")
    else:
        print(f"{args.output_dir} is complete.")
    shutil.rmtree(args.output_dir / PARTS, ignore_errors=True)
    finish_push(args)


def select(args: argparse.Namespace, samples: Samples) -> tuple[np.ndarray, dict]:
    """Indices of the samples that are kept, and how far they are from each other and from the training images.

    Raises:
        ValueError: None is kept.
    """
    kept = np.arange(samples.num_samples)
    kept = keep_certain(samples, kept, args.drop_uncertain)
    if args.drop_common and len(kept):
        kept = keep_balanced(samples, kept, args.drop_common)
    references = None
    if args.train_dataset_name:
        rows, column = load_unlabeled(args.train_dataset_name, args.train_dataset_config_name, args.train_split)
        pictures = (decode_picture(row[column], f"row {i}")[0] for i, row in enumerate(rows))
        mode = samples.image_mode
        references = np.stack([thumbnail(p, mode) for p in tqdm(pictures, "Training images", len(rows), leave=False)])
    if args.min_distance and len(kept):
        kept = keep_distinct(samples.thumbnails(np.arange(samples.num_samples)), kept, args.min_distance, references)
    if not len(kept):
        raise ValueError(
            f"Nothing of {samples.num_samples} images would be left with --drop_uncertain {args.drop_uncertain}, "
            f"--drop_common {args.drop_common} and --min_distance {args.min_distance}; the batches are kept."
        )
    some, measured = samples.thumbnails(kept[:COMPARED]), {}
    if len(some) > 1:
        measured["generated to generated"] = distances(some, some, skip_self=True)
    if references is not None:
        measured["generated to training"] = distances(some, references)
        measured["training to training"] = distances(references[:COMPARED], references, skip_self=True)
    return kept, {name: {"median": float(np.median(d)), "least": float(d.min())} for name, d in measured.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
