# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many strokes a mask is worth: the same images, labelled in part.

    python benchmarks/bench_strokes.py --dataset FACES64 --model MODEL --json strokes.json

Of every training mask only some pixels are kept: so many random ones of each class in each image, or so many strokes of
each class (`simulated_annotator.py`). Heads of the default recipe are fitted on them with and without
`sparse_labels`, and measured on the test split; `all` has the whole masks.
"""

import argparse
import io
import json
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset, Features, Image, load_dataset
from simulated_annotator import true_stroke

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, fit_segmentation_head, load_pipeline


def keep_pixels(mask: np.ndarray, each: int, random: np.random.Generator) -> np.ndarray:
    """So many random pixels of each class."""
    kept = np.full_like(mask, 255)
    for label in np.unique(mask[mask != 255]):
        where = np.flatnonzero(mask == label)
        kept.flat[random.permutation(where)[:each]] = label
    return kept


def keep_strokes(mask: np.ndarray, each: int, random: np.random.Generator) -> np.ndarray:
    """So many strokes of each class, each begun at a random pixel of it."""
    kept = np.full_like(mask, 255)
    for label in np.unique(mask[mask != 255]):
        for start in random.permutation(np.flatnonzero(mask == label))[:each]:
            stroke = true_stroke(mask, *divmod(int(start), mask.shape[1]))
            kept[stroke[0]] = label
    return kept


def png(image: PIL.Image.Image) -> dict:
    """An image as `datasets` keeps it."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="Folder with the configuration `labeled`.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", nargs="+", help="Of them only these, by name.")
    parser.add_argument("--json", type=Path, help="File for the results.")
    args = parser.parse_args()
    splits = {s: LabeledImages(load_dataset(args.dataset, "labeled", split=s)) for s in ("train", "test")}
    arms = {f"{n} pixels": (keep_pixels, n) for n in (3, 10, 40)} | {
        f"{n} stroke{'s' * (n > 1)}": (keep_strokes, n) for n in (1, 3)
    }
    arms = {name: arm for name, arm in arms.items() if args.labels is None or name in args.labels}
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        for name, (keep, each) in arms.items():
            random = np.random.default_rng(seed)
            kept = [keep(e.mask, each, random) for e in splits["train"]]
            shares.setdefault(name, []).append(float(np.mean([(m != 255).mean() for m in kept])))
            measure(args, splits, kept, seed, name, (False, True), found, seconds)
        if args.labels is None:
            measure(args, splits, [e.mask for e in splits["train"]], seed, "all", (False,), found, seconds)
        if args.json:
            args.json.write_text(json.dumps({"mean_iou": found, "seconds": seconds}, indent=1))
    print(f"{args.seeds} seeds, {torch.get_num_threads()} threads: mean IoU in percent, and median seconds of fitting")
    print("| labels in each image, of each class | share of pixels | the pixels alone | with sparse_labels |")
    print("|---|---|---|---|")
    for name in arms:
        cells = [
            f"{100 * np.mean(found[k]):.1f} ± {100 * np.std(found[k]):.1f}, {np.median(seconds[k]):.0f} s"
            for k in (f"{name}/False", f"{name}/True")
        ]
        print(f"| {name} | {100 * np.mean(shares[name]):.1f} % | {cells[0]} | {cells[1]} |")
    if "all/False" in found:
        print(f"| all | 100 % | {100 * np.mean(found['all/False']):.1f} ± {100 * np.std(found['all/False']):.1f} | |")


def measure(
    args: argparse.Namespace,
    splits: dict[str, LabeledImages],
    masks: list[np.ndarray],
    seed: int,
    name: str,
    sparse: tuple[bool, ...],
    found: dict[str, list[float]],
    seconds: dict[str, list[float]],
) -> None:
    """Fits and measures, and adds to the results."""
    columns = {
        "image": [png(e.image) for e in splits["train"]],
        "mask": [png(PIL.Image.fromarray(m)) for m in masks],
    }
    rows = Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))
    dataset = LabeledImages(rows, num_classes=splits["train"].num_classes)
    for how in sparse:
        pipe = load_pipeline(args.model)
        began = time.perf_counter()
        options = {"sparse_labels": True} if how else {"min_label_fraction": 0.0}
        pipe.segmentation_head = fit_segmentation_head(pipe, dataset, seed=seed, **options)
        seconds.setdefault(f"{name}/{how}", []).append(round(time.perf_counter() - began, 1))
        metrics, _ = evaluate_segmentation(pipe, splits["test"])
        found.setdefault(f"{name}/{how}", []).append(metrics["mean_iou"])
        print(f"seed {seed}, {name}, sparse_labels={how}: {metrics['mean_iou']:.4f}", flush=True)


if __name__ == "__main__":
    main()
