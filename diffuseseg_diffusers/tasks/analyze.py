# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shows which features of a frozen model tell classes apart: `diffuseseg analyze`.

    diffuseseg analyze --model MODEL --dataset_name DATA --study blocks-timesteps --output_dir OUT

Each study leaves its results as JSON and CSV, and its figures as PNG and SVG. The same command line resumes where a
study was cut off, and other studies of the same model and images may share the folder.
"""

import argparse
import csv
import io
from pathlib import Path

from diffuseseg_diffusers.arguments import (
    add_cache_argument,
    add_model_arguments,
    add_output_arguments,
    block_name,
    inputs_of,
    run_script,
)
from diffuseseg_diffusers.datasets.arguments import add_data_arguments
from diffuseseg_diffusers.datasets.columns import describe_dataset
from diffuseseg_diffusers.datasets.labeled import LabeledImages, load_data
from diffuseseg_diffusers.figures.studies import FIGURES, study_figures
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import atomic_file, check_output_folder, write_json, write_text
from diffuseseg_diffusers.jobs.run import may_resume, open_run
from diffuseseg_diffusers.paper.catalogue import STUDIES
from diffuseseg_diffusers.paper.study import Study, StudyReport
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.pipelines.segmenter import HeadSegmenter


COMMAND = "analyze"
OWNED = [f"{name}.{suffix}" for name in STUDIES for suffix in ("json", "jsonl", "csv")]
OWNED += [f"{title}.{suffix}" for figures in FIGURES.values() for title in figures for suffix in ("png", "svg")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_data_arguments(parser, split="train")
    add_cache_argument(parser)
    group = parser.add_argument_group("study")
    group.add_argument(
        "--study", nargs="+", choices=list(STUDIES), default=["blocks-timesteps"], help="Studies to make."
    )
    group.add_argument(
        "--recipe",
        choices=list(RECIPES),
        default="default",
        help="Training procedure that everything is measured with; it also says which blocks and timesteps are read "
        "where none are given. Cross-validations shorten it (default: default).",
    )
    group.add_argument(
        "--test_split",
        default="test",
        help="Part of the dataset that labels and corruptions measure on (default: test).",
    )
    group.add_argument("--folds", type=int, default=5, help="Number of folds of cross-validations (default: 5).")
    group.add_argument(
        "--blocks",
        type=block_name,
        nargs="+",
        help="Blocks by number, or by the name of a module (default: all for blocks-timesteps, else the recipe's).",
    )
    group.add_argument(
        "--timesteps",
        type=int,
        nargs="+",
        help="Diffusion timesteps (default: ten for blocks-timesteps, five for clusters, else the recipe's).",
    )
    group.add_argument("--num_clusters", type=int, default=5, help="Number of clusters (default: 5).")
    group.add_argument("--num_images", type=int, default=3, help="Number of images that are clustered (default: 3).")
    group.add_argument(
        "--counts",
        type=int,
        nargs="+",
        default=[1, 2, 5, 10, 20],
        help="Numbers of labelled images for labels (default: 1 2 5 10 20).",
    )
    group.add_argument(
        "--draws",
        type=int,
        default=5,
        help="Number of draws of labelled images, and of noises that are averaged (default: 5).",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="Seed of noise, folds, draws, augmented views and classifiers (default: 0)."
    )
    group.add_argument(
        "--batch_size", type=int, default=4, help="Number of images in a pass of the model (default: 4)."
    )
    group.add_argument("--activation_dir", help="Folder for a temporary file of activations (default: in memory).")
    add_output_arguments(parser, "tables and figures")


def main(args: argparse.Namespace) -> None:
    # 1. The inputs, and only then the folder.
    for name in ("num_clusters", "num_images", "draws", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    study = load_study(args)
    for name in args.study:
        STUDIES[name].check(study)
    open_run(args.output_dir, COMMAND, study.settings, OWNED, args.overwrite, inputs_of(args))

    # 2. One study after another.
    for name in args.study:
        report = STUDIES[name].run(study)
        print("\n".join(report.summary))
        write_report(args.output_dir, name, report)


def load_study(args: argparse.Namespace) -> Study:
    """The model and the images that all studies share."""
    pipe = load_pipeline(args.model, args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(
            f"{args.model} is a student, which has no features to study; give the model that it learnt from."
        )
    dataset = load_data(args)
    test, about = None, {"dataset": describe_dataset(args.dataset_name, args.dataset_config_name, args.split)}
    if any(STUDIES[name].needs_test for name in args.study):
        test = load_test_data(args, dataset)
    return Study(
        pipe,
        dataset,
        args.output_dir,
        args.recipe,
        args.blocks,
        args.timesteps,
        test,
        args.folds,
        args.draws,
        args.counts,
        args.num_clusters,
        args.num_images,
        args.seed,
        args.batch_size,
        args.activation_dir,
        about,
    )


def load_test_data(args: argparse.Namespace, dataset: LabeledImages) -> LabeledImages:
    """The images of `--test_split`, with the classes of the others."""
    return load_data(args, args.test_split, label_names=dataset.label_names, num_classes=dataset.num_classes)


def write_report(folder: Path, name: str, report: StudyReport) -> None:
    """The results of a study: `NAME.json`, `NAME.csv`, and each figure as PNG and SVG."""
    write_json(folder / f"{name}.json", {"settings": report.settings, "rows": report.rows})
    flat = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in report.rows]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    write_text(folder / f"{name}.csv", table.getvalue())
    figures = study_figures(name, report)
    for title, figure in figures.items():
        for suffix in ("png", "svg"):
            with atomic_file(folder / f"{title}.{suffix}") as partial:
                figure.savefig(partial, format=suffix)
    files = [f"{name}.json", f"{name}.csv", *(f"{title}.png" for title in figures)]
    print(f"{name}: {len(report.rows)} rows; {', '.join(files)} are in {folder}.")


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
