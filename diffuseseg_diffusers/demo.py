# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The whole idea on drawn faces, without a download: `diffuseseg demo`.

A small diffusion model comes with the package; with `--train` it is trained first, by the same command that made it.
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler

from .commands import check_output_folder, default_device, format_metrics, load_pipeline, write_json
from .data import LabeledImages
from .drawn_faces import LABEL_NAMES, drawn_faces, write_drawn_faces
from .evaluation import evaluate_segmentation
from .head_training import fit_segmentation_head
from .visualization import contact_sheet


SHIPPED_MODEL = Path(__file__).parent / "drawn_faces_ddpm"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output_dir", type=Path, required=True, help="For the contact sheet, figures and the model.")
    parser.add_argument(
        "--overwrite", action="store_true", help="Write into a folder that holds something; training goes on."
    )
    parser.add_argument("--train", action="store_true", help="Train the diffusion model first.")
    parser.add_argument("--train_minutes", type=float, default=56, help="For --train (default: 56).")
    parser.add_argument("--num_faces", type=int, help="Unlabelled faces for --train, 1 to 8000 (default: 8000).")
    parser.add_argument("--num_labeled", type=int, default=5, help="Labelled images to fit on, 1 to 20 (default: 5).")
    parser.add_argument("--num_test", type=int, default=100, help="Images to measure on, 1 to 100 (default: 100).")
    parser.add_argument("--num_generated", type=int, default=16, help="Images to generate (default: 16).")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="DDIM steps (default: 50).")
    parser.add_argument("--seed", type=int, default=0, help="Of fitting and generating (default: 0).")


def train_arguments(data: Path, output_dir: Path, minutes: float) -> list[str]:
    """Arguments of `train-ddpm` that made the shipped model."""
    return [
        *("--dataset_name", str(data), "--dataset_config_name", "unlabeled"),
        *("--model_config", str(SHIPPED_MODEL), "--random_flip", "--train_batch_size", "16"),
        *("--learning_rate", "4e-4", "--lr_scheduler", "cosine", "--max_train_minutes", str(minutes)),
        *("--use_ema", "--mixed_precision", "bf16", "--seed", "0", "--output_dir", str(output_dir)),
    ]


def main(args: argparse.Namespace) -> None:
    check_output_folder(args.output_dir, args.overwrite)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    labeled = LabeledImages(drawn_faces("train", args.num_labeled), label_names=LABEL_NAMES)
    unseen = LabeledImages(drawn_faces("test", args.num_test), label_names=LABEL_NAMES)
    model = train(args) if args.train else SHIPPED_MODEL

    seconds, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = round(now - began, 1), now

    pipe = load_pipeline(str(model), device=default_device())
    lap("load")
    pipe.segmentation_head = fit_segmentation_head(pipe, labeled, seed=args.seed)
    lap("fit")
    metrics, examples = evaluate_segmentation(pipe, unseen, num_examples=args.num_generated)
    lap("evaluate")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generated = pipe(
        batch_size=args.num_generated,
        num_inference_steps=args.num_inference_steps,
        generator=torch.Generator().manual_seed(args.seed),
    )
    lap("generate")
    pipe.save_pretrained(args.output_dir / "model")
    for i, (image, mask) in enumerate(zip(generated.images, generated.masks)):
        (args.output_dir / "generated").mkdir(exist_ok=True)
        image.save(args.output_dir / "generated" / f"{i:02d}.png")
        mask.save(args.output_dir / "generated" / f"{i:02d}_mask.png")
    sheet = contact_sheet(
        [(labeled[i].image, labeled[i].mask) for i in range(len(labeled))],
        examples,
        list(zip(generated.images, generated.masks)),
        pipe.label_names,
        pipe.palette,
    )
    sheet.savefig(args.output_dir / "contact_sheet.png")
    write_json(args.output_dir / "metrics.json", {**metrics, "seconds": seconds})
    print(format_metrics(metrics))
    print(f"Fitted on {len(labeled)} labelled images. Seconds: {', '.join(f'{k} {v}' for k, v in seconds.items())}.")
    print(f"Contact sheet: {args.output_dir / 'contact_sheet.png'}")
    print(f"Images with masks: {args.output_dir / 'generated'}")
    print(f"Pipeline, for `diffuseseg segment`: {args.output_dir / 'model'}")


def train(args: argparse.Namespace) -> Path:
    """Trains the diffusion model on drawn faces; started again after it was cut off, it goes on."""
    from .training import train_ddpm

    data, output_dir = args.output_dir / "drawn-faces", args.output_dir / "ddpm"
    if not (data / "README.md").exists():  # it is written last
        write_drawn_faces(data, args.num_faces)
    parser = argparse.ArgumentParser()
    train_ddpm.add_arguments(parser)
    given = [*train_arguments(data, output_dir, args.train_minutes), "--resume_from_checkpoint", "latest"]
    given += ["--num_samples", str(args.num_generated), "--num_inference_steps", str(args.num_inference_steps)]
    if train_ddpm.main(parser.parse_args(given)):
        raise KeyboardInterrupt
    return output_dir
