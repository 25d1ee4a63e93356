# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The whole idea on drawn faces, without a download: `diffuseseg demo`.

A small diffusion model comes with the package; with `--train` it is trained first, by the same command that made it.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from ..arguments import add_output_arguments, check_at_least_one
from ..datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL, drawn_faces, write_drawn_faces
from ..datasets.labeled import LabeledImages
from ..evaluation.evaluate import evaluate_segmentation, format_metrics
from ..figures.pages import contact_sheet
from ..heads.fit import fit_segmentation_head
from ..jobs.command_line import config_line, parse
from ..jobs.files import check_output_folder, output_folder, write_json
from ..jobs.hardware import default_device, default_dtype
from ..jobs.run import may_resume, open_run
from ..pipelines.loading import load_pipeline
from . import run_task
from .train_ddpm import TrainDDPMConfig


COMMAND = "demo"
METRICS = "metrics.json"  # written last
SHEET = "contact_sheet.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", action="store_true", help="Training of the diffusion model first.")
    parser.add_argument("--train_minutes", type=float, default=56, help="Minutes of that training (default: 56).")
    parser.add_argument(
        "--num_faces", type=int, help="Number of unlabelled faces to train on, 1 to 8000 (default: 8000)."
    )
    parser.add_argument(
        "--num_labeled", type=int, default=5, help="Number of labelled images to fit on, 1 to 20 (default: 5)."
    )
    parser.add_argument(
        "--num_test", type=int, default=100, help="Number of images to measure on, 1 to 100 (default: 100)."
    )
    parser.add_argument("--num_generated", type=int, default=16, help="Number of images to generate (default: 16).")
    parser.add_argument("--num_inference_steps", type=int, default=50, help="Number of DDIM steps (default: 50).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of fitting and generating (default: 0).")
    add_output_arguments(parser, "the contact sheet, figures and the model")


def train_arguments(data: Path, output_dir: Path, minutes: float) -> list[str]:
    """Arguments of `train-ddpm` that made the shipped model, in bfloat16 where that is fast."""
    precision = "bf16" if default_dtype(default_device()) == torch.bfloat16 else "no"
    return [
        *("--dataset_name", str(data), "--dataset_config_name", "unlabeled"),
        *("--model_config", SHIPPED_MODEL, "--random_flip", "--train_batch_size", "16"),
        *("--learning_rate", "4e-4", "--lr_scheduler", "cosine", "--max_train_minutes", str(minutes)),
        *("--use_ema", "--mixed_precision", precision, "--seed", "0", "--output_dir", str(output_dir)),
    ]


def main(args: argparse.Namespace) -> int | None:
    # 1. The inputs, and only then the folder.
    check_at_least_one(args, "num_faces", "num_generated", "num_inference_steps")
    labeled = LabeledImages(drawn_faces("train", args.num_labeled), label_names=LABEL_NAMES)
    unseen = LabeledImages(drawn_faces("test", args.num_test), label_names=LABEL_NAMES)
    if not may_resume(args.output_dir, COMMAND) or (args.output_dir / METRICS).exists():
        check_output_folder(args.output_dir, args.overwrite)
    settings = {name: value for name, value in vars(args).items() if name not in ("output_dir", "overwrite", "command")}
    open_run(args.output_dir, COMMAND, settings, own_files(args), args.overwrite)
    if args.train:
        train(args)
    model = str(args.output_dir / "ddpm") if args.train else SHIPPED_MODEL

    # 2. Fitting, measuring and generating, each with its time.
    seconds, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = round(now - began, 1), now

    pipe: Any = load_pipeline(model, device=default_device())
    lap("load")
    pipe.segmentation_head = fit_segmentation_head(pipe, labeled, seed=args.seed)
    lap("fit")
    metrics, examples = evaluate_segmentation(pipe, unseen, num_examples=args.num_generated)
    lap("evaluate")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(args.seed)
    generated = pipe(args.num_generated, generator, args.num_inference_steps)
    lap("generate")

    # 3. What is left behind.
    write(args.output_dir, pipe, labeled, examples, list(zip(generated.images, generated.masks)))
    write_json(args.output_dir / METRICS, {**metrics, "seconds": seconds})
    print(format_metrics(metrics))
    print(f"Fitted on {len(labeled)} labelled images. Seconds: {', '.join(f'{k} {v}' for k, v in seconds.items())}.")
    print(f"Contact sheet: {args.output_dir / SHEET}")
    print(f"Images with masks: {args.output_dir / 'generated'}")
    print(f"Pipeline, for `diffuseseg segment`: {args.output_dir / 'model'}")
    return None


def own_files(args: argparse.Namespace) -> list[str]:
    """What the record lists; the folders of data, training and model have records of their own."""
    generated = [f"generated/{i:02d}{kind}.png" for i in range(args.num_generated) for kind in ("", "_mask")]
    return ["drawn-faces/*", "ddpm/*", "model/*", *generated, SHEET, METRICS]


def write(folder: Path, pipe: Any, labeled: LabeledImages, examples: list, generated: list[tuple]) -> None:
    """Writes the pipeline, the generated images with their masks, and the contact sheet of all."""
    with output_folder(folder / "model", overwrite=True, command=COMMAND) as partial:
        pipe.save_pretrained(partial)
    (folder / "generated").mkdir(exist_ok=True)
    for i, (image, mask) in enumerate(generated):
        image.save(folder / "generated" / f"{i:02d}.png")
        mask.save(folder / "generated" / f"{i:02d}_mask.png")
    shown = [(labeled[i].picture, labeled[i].mask) for i in range(len(labeled))]
    contact_sheet(shown, examples, generated, pipe.label_names, pipe.palette).savefig(folder / SHEET)


def train(args: argparse.Namespace) -> None:
    """Trains the diffusion model on drawn faces, or resumes its training."""
    data, output_dir = args.output_dir / "drawn-faces", args.output_dir / "ddpm"
    if not data.exists():
        with output_folder(data, overwrite=False, command=COMMAND) as partial:
            write_drawn_faces(partial, args.num_faces)
    given = train_arguments(data, output_dir, args.train_minutes)
    given += ["--num_samples", str(args.num_generated), "--num_inference_steps", str(args.num_inference_steps)]
    run_task(parse(config_line("train-ddpm", TrainDDPMConfig), given))
