# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs a benchmark of Baranchuk et al. (ICLR 2022) and prints our cell beside the paper's: `diffuseseg benchmark`.

    python training/run_benchmark.py horse_21 --data datasets/horse_21 --checkpoint lsun_horse.pt --output_dir OUT

The data are a folder of the published archive, with `real/train`, `real/test` and `ddpm` in it. The same command line
goes on where a run was cut off, after the last whole seed.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import torch
from diffusers import DDPMPipeline
from transformers import AutoModelForSemanticSegmentation

from diffuseseg_diffusers import (
    DiffuseSegPipeline,
    LabeledImages,
    evaluate_segmentation,
    fit_segmentation_head,
    load_labeled_images,
)
from diffuseseg_diffusers.analysis import Cells
from diffuseseg_diffusers.commands import (
    DTYPES,
    check_output_folder,
    default_device,
    format_metrics,
    load_pipeline,
    output_folder,
    run_command,
    write_json,
)
from diffuseseg_diffusers.data import LabeledImage
from diffuseseg_diffusers.guided_diffusion import PRESETS, Flags, convert_checkpoint, read_checkpoint
from diffuseseg_diffusers.head_training import RECIPES
from diffuseseg_diffusers.student import StudentSegmenter, make_processor
from diffuseseg_diffusers.training import generate_dataset, train_student
from diffuseseg_diffusers.visualization import examples_page


BENCHMARKS = {path.stem: path for path in sorted(Path(__file__).with_name("configs").glob("benchmarks/*.json"))}
RESULTS = "results.jsonl"
METHODS = {"ddpm": "DDPM", "dataset_ddpm": "DatasetDDPM"}  # and their names in the paper's table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmark", help=f"One of {', '.join(BENCHMARKS)}, or a file such as those in training/configs/benchmarks."
    )
    parser.add_argument("--data", type=Path, required=True, help="Folder with real/train, real/test and ddpm.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Of guided-diffusion: .pt or .safetensors.")
    parser.add_argument(
        "--method", choices=list(METHODS), default="ddpm", help="Row of the paper's table (default: ddpm)."
    )
    parser.add_argument("--num_seeds", type=int, default=1, help="Runs, with the seeds 0, 1, … (default: 1).")
    parser.add_argument("--recipe", choices=list(RECIPES), default="paper", help="Training procedure (default: paper).")
    parser.add_argument("--num_samples", type=int, help="Of dataset_ddpm, to generate (default: 50,000, as published).")
    parser.add_argument("--num_inference_steps", type=int, help="Of DDIM for them (default: DDPM with 1,000).")
    parser.add_argument("--batch_size", type=int, default=4, help="Images in a pass of the U-Net (default: 4).")
    parser.add_argument("--activation_dir", help="Keep activations in a temporary file here, not in memory.")
    parser.add_argument("--device", help="Where to run, such as cuda:1 (default: a GPU if there is one).")
    parser.add_argument("--dtype", choices=["auto", *DTYPES], default="auto", help="Arithmetic of the U-Net.")
    parser.add_argument("--output_dir", type=Path, required=True, help="For the pipeline, heads and results.")
    parser.add_argument("--overwrite", action="store_true", help="Replace what is in the output folder.")


class AtSize(LabeledImages):
    """Square labelled images at the benchmark's resolution, as the published code reads them."""

    def __init__(self, dataset: LabeledImages, size: int):
        self.__dict__.update(dataset.__dict__)
        self.size = size

    def __getitem__(self, index: int) -> LabeledImage:
        row = super().__getitem__(index)
        height, width = row.mask.shape
        if height != width:
            raise ValueError(f"{row.name} is {width} × {height}, but the benchmarks are of square images.")
        if height == self.size:
            return row
        nearest = np.arange(self.size) * height // self.size  # OpenCV's, which rounds down
        image = row.image.resize((self.size, self.size), PIL.Image.Resampling.BILINEAR)
        return replace(row, image=image, mask=row.mask[nearest][:, nearest])


def read_recipe(name: str) -> dict:
    path = BENCHMARKS.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"There is no benchmark {name}; there are {', '.join(BENCHMARKS)}, or give a JSON file.")
    return json.loads(path.read_text(encoding="utf-8"))


def load_images(recipe: dict, folder: Path, count: int) -> AtSize:
    """The first `count` images of a folder of the published layout."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}; the datasets are in {recipe['dataset_url']}.")
    if not any(folder.rglob("*.npy")):
        raise ValueError(f"The folder {folder} has no masks: images of the benchmarks have a .npy file beside each.")
    dataset = load_labeled_images(
        folder.parent,
        split=folder.name,
        label_names=recipe["label_names"],
        palette=recipe["palette"],
        ignore_index=recipe["ignore_index"],
    )
    if len(dataset) < count:
        print(f"Mind that {folder} has {len(dataset)} images, and the paper's benchmark {count}.")
    return AtSize(dataset.select(range(min(count, len(dataset)))), recipe["image_size"])


def convert(args: argparse.Namespace, recipe: dict) -> Path:
    """The checkpoint as a pipeline, made once."""
    folder = args.output_dir / "model"
    if not folder.is_dir():
        if not args.checkpoint.is_file():
            raise ValueError(
                f"There is no file {args.checkpoint}; {recipe['checkpoint']} is at {recipe['checkpoint_url']}."
            )
        flags = PRESETS[recipe["preset"]] if "preset" in recipe else Flags.parse(recipe["flags"])
        unet, scheduler = convert_checkpoint(read_checkpoint(args.checkpoint), flags)
        with output_folder(folder, overwrite=False) as partial:
            DDPMPipeline(unet, scheduler).save_pretrained(partial)
    return folder


def fit(args: argparse.Namespace, recipe: dict, pipe: DiffuseSegPipeline, folder: Path, seed: int) -> None:
    """Puts a head into the pipeline, fitted on the images of a folder."""
    pipe.segmentation_head = fit_segmentation_head(
        pipe,
        load_images(recipe, folder, recipe["train_images"]),
        recipe["blocks"],
        recipe["timesteps"],
        num_members=recipe["num_members"],
        recipe=replace(RECIPES["paper"], batch_size=recipe["batch_size"]) if args.recipe == "paper" else args.recipe,
        palette=recipe["palette"],
        seed=seed,
        batch_size=args.batch_size,
        cache_dir=args.activation_dir,
    )


def ddpm(args: argparse.Namespace, recipe: dict, seed: int, folder: Path) -> DiffuseSegPipeline:
    """The paper's method: a head on real images."""
    pipe = load_pipeline(str(convert(args, recipe)), device=args.device, dtype=args.dtype)
    fit(args, recipe, pipe, args.data / "real" / "train", seed)
    pipe.segmentation_head.save_pretrained(folder / "segmentation_head")
    return pipe


def dataset_ddpm(args: argparse.Namespace, recipe: dict, seed: int, folder: Path) -> StudentSegmenter:
    """A head on generated images, a dataset generated and labelled with it, and a student of that."""
    if "dataset_ddpm" not in recipe:
        raise ValueError(f"The paper has no DatasetDDPM for {recipe['title']}.")
    own = recipe["dataset_ddpm"]
    labeler = folder / "labeler"
    if not labeler.is_dir():
        pipe = load_pipeline(str(convert(args, recipe)), device=args.device, dtype=args.dtype)
        fit(args, recipe, pipe, args.data / "ddpm", seed)
        whole = DiffuseSegPipeline.from_pretrained(args.output_dir / "model", segmentation_head=None)
        whole.segmentation_head = pipe.segmentation_head
        with output_folder(labeler, overwrite=False) as partial:
            whole.save_pretrained(partial)
    steps, device = args.num_inference_steps, torch.device(args.device or default_device())
    command(
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
    student = folder / "student"
    if not (student / "config.json").is_file():
        command(
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
    model = AutoModelForSemanticSegmentation.from_pretrained(student)
    return StudentSegmenter(model.to(device), make_processor(str(student)))


def command(module: ModuleType, *switches: str, **options) -> None:
    """Runs another script as its command line would."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    module.main(parser.parse_args([*given, *switches]))


def main(args: argparse.Namespace) -> None:
    recipe = read_recipe(args.benchmark)
    if args.num_seeds < 1:
        raise ValueError(f"--num_seeds must be at least 1, got {args.num_seeds}.")
    if args.overwrite:
        shutil.rmtree(args.output_dir, ignore_errors=True)
    if not (args.output_dir / RESULTS).is_file():
        check_output_folder(args.output_dir, overwrite=False)
    test = load_images(recipe, args.data / "real" / "test", recipe["test_images"])
    settings = {
        "benchmark": recipe["title"],
        **{name: recipe[name] for name in ("blocks", "timesteps", "num_members", "batch_size")},
        "data": args.data.name,
        "checkpoint": args.checkpoint.name,
        "recipe": args.recipe,
        "dtype": args.dtype,
    }
    cells = Cells(args.output_dir / RESULTS, settings)
    convert(args, recipe)
    name = "-".join([args.method, *(str(n) for n in (args.num_samples, args.num_inference_steps) if n)])

    def run(seed: int) -> dict:
        folder = args.output_dir / f"{name}-seed{seed}"
        folder.mkdir(exist_ok=True)
        fitted = {"ddpm": ddpm, "dataset_ddpm": dataset_ddpm}[args.method](args, recipe, seed, folder)
        # As published: absent classes count as 0, and what is predicted where there is no label is wrong.
        metrics, examples = evaluate_segmentation(
            fitted, test, args.batch_size, absent_as_zero=True, count_ignored=True, num_examples=12
        )
        if args.method == "ddpm":  # a student has no uncertainty to show
            page = examples_page(examples, recipe["label_names"], recipe["palette"], recipe["ignore_index"])
            page.savefig(folder / "examples.png")
        write_json(folder / "metrics.json", metrics)
        print(format_metrics(metrics))
        return metrics

    ours = [100 * cells.get(f"{name} {s}", lambda s=s: run(s))["mean_iou"] for s in range(args.num_seeds)]
    report(recipe, METHODS[args.method], ours, args.output_dir / f"{name}.json")


def report(recipe: dict, method: str, ours: list[float], path: Path) -> None:
    """Our cell beside the column of the paper's table, printed and written."""
    mean, spread = float(np.mean(ours)), float(np.std(ours, ddof=1)) if len(ours) > 1 else None
    print(f"\n{recipe['title']}, mean IoU in %")
    for name, (published, deviation) in recipe["published_mean_iou"].items():
        mine = ""
        if name == method:
            mine = f"   here {mean:.1f}{'' if spread is None else f' ± {spread:.1f}'} ({len(ours)} run"
            mine += f"{'s' if len(ours) > 1 else ''})"
        print(f"  {name:<14}{published:>5.1f} ± {deviation:.1f}{mine}")
    write_json(path, {"benchmark": recipe["title"], "method": method, "mean_iou": ours, "mean": mean, "std": spread})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
