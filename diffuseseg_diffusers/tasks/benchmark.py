# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs a benchmark of Baranchuk et al. (ICLR 2022) and prints its result beside the paper's: `diffuseseg benchmark`.

    diffuseseg benchmark horse_21 --data datasets/horse_21 --checkpoint lsun_horse.pt --output_dir OUT

The data are a folder of the published archive, with `real/train`, `real/test` and `ddpm` in it. The same command line
resumes after the last whole seed.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusers import DDPMPipeline

from diffuseseg_diffusers import DiffuseSegPipeline, evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.arguments import add_output_arguments, run_script
from diffuseseg_diffusers.evaluation.evaluate import format_metrics
from diffuseseg_diffusers.figures.pages import examples_page
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import check_output_folder, output_folder, write_json
from diffuseseg_diffusers.jobs.hardware import DTYPES, find_device
from diffuseseg_diffusers.jobs.run import Results, may_resume, open_run
from diffuseseg_diffusers.paper.guided_diffusion import PRESETS, Flags, convert_checkpoint, read_checkpoint
from diffuseseg_diffusers.paper.published_benchmarks import (
    Benchmark,
    compare_with_published,
    load_benchmark_images,
    read_benchmark,
)
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.students.student import StudentSegmenter, load_student
from diffuseseg_diffusers.training import generate_dataset, train_student


COMMAND = "benchmark"
BENCHMARKS = {path.stem: path for path in sorted(Path(__file__).parents[1].glob("paper/benchmarks/*.json"))}
RESULTS = "results.jsonl"
METHODS = {"ddpm": "DDPM", "dataset_ddpm": "DatasetDDPM"}  # and their names in the paper's table
OWNED = (RESULTS, "model/*", *(f"{method}*.json" for method in METHODS))
OWNED += tuple(
    f"{method}*-seed[0-9]*/{part}"
    for method in METHODS
    for part in ("metrics.json", "examples.png", "segmentation_head/*", "labeler/*", "synthetic/*", "student/*")
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark", help=f"One of {', '.join(BENCHMARKS)}, or a file such as those of paper/benchmarks."
    )
    parser.add_argument("--data", type=Path, required=True, help="Folder with real/train, real/test and ddpm.")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="Checkpoint of guided-diffusion, .pt or .safetensors."
    )
    parser.add_argument(
        "--method", choices=list(METHODS), default="ddpm", help="Row of the paper's table (default: ddpm)."
    )
    parser.add_argument("--num_seeds", type=int, default=1, help="Number of runs, with seeds 0, 1, … (default: 1).")
    parser.add_argument("--recipe", choices=list(RECIPES), default="paper", help="Training procedure (default: paper).")
    parser.add_argument(
        "--num_samples", type=int, help="Number of images that dataset_ddpm generates (default: 50,000, as published)."
    )
    parser.add_argument(
        "--num_inference_steps", type=int, help="Number of DDIM's steps for them (default: DDPM with 1,000)."
    )
    parser.add_argument("--batch_size", type=int, default=4, help="Images in a pass of the U-Net (default: 4).")
    parser.add_argument("--activation_dir", help="Folder for a temporary file of activations (default: in memory).")
    parser.add_argument("--device", help="Device to run on, such as cuda:1 (default: a GPU if there is one).")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="Precision of the U-Net.")
    add_output_arguments(parser, "the pipeline, heads and results")


def main(args: argparse.Namespace) -> None:
    # 1. The inputs, and only then the folder.
    spec = read_benchmark(find_benchmark(args.benchmark))
    check_arguments(args, spec)
    if not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    test = load_benchmark_images(spec, args.data / "real" / "test", spec.test_images)
    train = load_benchmark_images(spec, train_folder(args), spec.train_images)
    is_new = args.overwrite or not model_folder(args).is_dir()
    converted = convert(args, spec) if is_new else None
    settings = {
        "benchmark": spec.title,
        **{name: getattr(spec, name) for name in ("blocks", "timesteps", "num_members", "batch_size")},
        "data": args.data.name,
        "checkpoint": args.checkpoint.name,
        "recipe": args.recipe,
        "dtype": args.dtype,
    }
    open_run(args.output_dir, COMMAND, settings, OWNED, args.overwrite)
    results = Results(args.output_dir / RESULTS, settings)
    if converted is not None:
        with output_folder(model_folder(args), overwrite=False, command=COMMAND) as new:
            converted.save_pretrained(new)

    # 2. A model for each seed, measured.
    name = "-".join([args.method, *(str(n) for n in (args.num_samples, args.num_inference_steps) if n)])

    def run(seed: int) -> dict:
        folder = args.output_dir / f"{name}-seed{seed}"
        folder.mkdir(exist_ok=True)
        fitted = {"ddpm": ddpm, "dataset_ddpm": dataset_ddpm}[args.method](args, spec, train, seed, folder)
        # As published: absent classes count as 0, and what is predicted where there is no label is wrong.
        metrics, examples = evaluate_segmentation(
            fitted, test, args.batch_size, absent_as_zero=True, count_ignored=True, num_examples=12
        )
        if args.method == "ddpm":  # a student has no uncertainty to show
            page = examples_page(examples, spec.label_names, spec.palette, spec.ignore_index)
            page.savefig(folder / "examples.png")
        write_json(folder / "metrics.json", metrics)
        print(format_metrics(metrics))
        return metrics

    found = [results.get(f"{name} {seed}", partial(run, seed)) for seed in range(args.num_seeds)]

    # 3. Beside the paper.
    table, report = compare_with_published(spec, METHODS[args.method], [100 * metrics["mean_iou"] for metrics in found])
    print(f"\n{table}")
    write_json(args.output_dir / f"{name}.json", report)


def find_benchmark(name: str) -> Path:
    path = BENCHMARKS.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"There is no benchmark {name}; there are {', '.join(BENCHMARKS)}, or give a JSON file.")
    return path


def check_arguments(args: argparse.Namespace, spec: Benchmark) -> None:
    """Refuses numbers out of range, and a method that the paper has no result of."""
    for name in ("num_seeds", "batch_size", "num_samples", "num_inference_steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if args.method == "dataset_ddpm" and spec.dataset_ddpm is None:
        raise UserError(f"The paper has no DatasetDDPM for {spec.title}; use --method ddpm.")


def model_folder(args: argparse.Namespace) -> Path:
    return args.output_dir / "model"


def train_folder(args: argparse.Namespace) -> Path:
    return args.data / "ddpm" if args.method == "dataset_ddpm" else args.data / "real" / "train"


def convert(args: argparse.Namespace, spec: Benchmark) -> DDPMPipeline:
    """The checkpoint as a pipeline."""
    if not args.checkpoint.is_file():
        raise UserError(f"There is no file {args.checkpoint}; {spec.checkpoint} is at {spec.checkpoint_url}.")
    flags = PRESETS[spec.preset] if spec.preset else Flags.parse(spec.flags)
    return DDPMPipeline(*convert_checkpoint(read_checkpoint(args.checkpoint), flags))


def fitted_pipeline(args: argparse.Namespace, spec: Benchmark, train, seed: int) -> DiffuseSegPipeline:
    """The model with a head that is fitted on the training images."""
    pipe: Any = load_pipeline(str(model_folder(args)), device=args.device, dtype=args.dtype)
    pipe.segmentation_head = fit_segmentation_head(
        pipe,
        train,
        spec.blocks,
        spec.timesteps,
        num_members=spec.num_members,
        recipe=replace(RECIPES["paper"], batch_size=spec.batch_size) if args.recipe == "paper" else args.recipe,
        palette=spec.palette,
        seed=seed,
        batch_size=args.batch_size,
        cache_dir=args.activation_dir,
    )
    return pipe


def ddpm(args: argparse.Namespace, spec: Benchmark, train, seed: int, folder: Path) -> DiffuseSegPipeline:
    """The paper's method: a head on real images."""
    pipe = fitted_pipeline(args, spec, train, seed)
    pipe.segmentation_head.save_pretrained(folder / "segmentation_head")
    return pipe


def dataset_ddpm(args: argparse.Namespace, spec: Benchmark, train, seed: int, folder: Path) -> StudentSegmenter:
    """A head on generated images, a dataset generated and labelled with it, and a student of that."""
    own, labeler, student = spec.dataset_ddpm, folder / "labeler", folder / "student"
    if not labeler.is_dir():
        whole = DiffuseSegPipeline.from_pretrained(model_folder(args), segmentation_head=None)
        whole.segmentation_head = fitted_pipeline(args, spec, train, seed).segmentation_head
        with output_folder(labeler, overwrite=False, command=COMMAND) as new:
            whole.save_pretrained(new)
    steps, device = args.num_inference_steps, find_device(args.device)
    run_other(
        generate_dataset,
        model=labeler,
        num_samples=args.num_samples or own["num_samples"],
        scheduler="ddim" if steps else own["scheduler"],
        num_inference_steps=steps or own["num_inference_steps"],
        drop_uncertain=own["drop_uncertain"],
        seed=seed,
        batch_size=args.batch_size,
        device=device,
        dtype=args.dtype,
        output_dir=folder / "synthetic",
    )
    run_other(
        train_student,
        "--from_scratch",
        "--no_augmentation",
        train_dataset_name=folder / "synthetic",
        model=own["student"],
        num_epochs=own["num_epochs"],
        train_batch_size=own["train_batch_size"],
        learning_rate=own["learning_rate"],
        seed=seed,
        output_dir=student,
    )
    return load_student(student, device)


def run_other(module: ModuleType, *switches: str, **options) -> None:
    """Runs another script as its command line would; it resumes by itself."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    module.main(parser.parse_args([*given, *switches]))


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
