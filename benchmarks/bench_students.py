# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students against the head that teaches them and against the same network from scratch, clean and under shift.

    python benchmarks/bench_students.py --model MODEL --dataset_name DATA --output_dir OUT

The labelled images are the first of the training split of the configuration `labeled`; those without labels are of
`unlabeled`, evenly spread. Arms:

* `head`: the default recipe, one for each number of labels; it teaches.
* `scratch`: the student's network, on the labels alone.
* `distilled`: the same network, half of what it sees being soft targets of images without labels, labels alone last.
* `generated`: likewise, with the images of `--generated_dataset_name` in place of those without labels.
* `both`: likewise, with both kinds of images.
* `together`: head and distilled student of a seed, the mean of their probabilities.
* `finetuned`: the denoiser itself with an output for each class, on the labels alone.
* `finetuned+`: the denoiser, on labels and soft targets.

All networks see the same number of images, `--images` (`--denoiser_images` for the denoiser), with the same
augmentation, and are measured without the mirror image. The same command line resumes where it was cut off; several
processes may be given different `--arms`, `--counts` or `--seeds` and an `--output_dir` each, with one
`--targets_dir`.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from bench_labels import SHIFTS, Shifted

from diffuseseg_diffusers import (
    LabeledImages,
    evaluate_segmentation,
    fit_segmentation_head,
    load_labeled_images,
    load_pipeline,
)
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.heads.ensemble import PixelClassifierEnsemble
from diffuseseg_diffusers.jobs.files import write_json
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.jobs.run import Results
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.segmenter import Segmenter
from diffuseseg_diffusers.students.choosing import RATES, new_student
from diffuseseg_diffusers.students.targets import SoftTargets, compute_targets
from diffuseseg_diffusers.students.training import StudentTraining, TrainingOptions


ARMS = ("head", "scratch", "distilled", "generated", "both", "together", "finetuned", "finetuned+")
TAUGHT = {"distilled": ("real",), "generated": ("generated",), "both": ("real", "generated"), "finetuned+": ("real",)}
EPOCHS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--train_range", type=int, nargs=2, help="Labelled images to draw from; for cross-validation.")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["head", "scratch", "distilled", "together"])
    parser.add_argument("--unlabeled", type=int, default=1500, help="Images without labels, of each kind.")
    parser.add_argument("--generated_dataset_name", help="What `diffuseseg generate` made of the model.")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--denoiser_images", type=int, default=4_000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--unlabeled_fraction", type=float, default=0.5)
    parser.add_argument("--labels_last", type=float, default=0.25)
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--layer_decay", type=float, default=1.0)
    parser.add_argument("--no_shifts", action="store_true")
    parser.add_argument("--targets_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    train = load_labeled_images(args.dataset_name, "labeled", "train")
    names = {"label_names": train.label_names, "num_classes": train.num_classes}
    test = load_labeled_images(args.dataset_name, "labeled", args.test_split, **names)
    if args.train_range:  # the test split is not looked at
        first, end = args.train_range
        test = train.select([i for i in range(len(train)) if not first <= i < end])
        train = train.select(range(first, end))
    sets = {"clean": test} | ({} if args.no_shifts else {s: Shifted(test, s) for s in SHIFTS})
    settings = {k: str(v) for k, v in vars(args).items() if k not in ("counts", "seeds", "arms", "output_dir")}
    cells = Results(args.output_dir / "cells.jsonl", settings)
    keys = [(arm, count, seed) for count in args.counts for arm in args.arms for seed in args.seeds]
    for arm, count, seed in keys:

        def run(arm=arm, count=count, seed=seed) -> dict:
            began = time.perf_counter()
            own = train.select(range(count))
            if arm in ("head", "together"):
                model: Segmenter = teacher(args, own, seed)
            else:
                model = student(args, own, train, arm, seed)
            if arm == "together":
                model = AveragedSegmenter({"head": model, "student": student(args, own, train, "distilled", seed)})
            seconds, scores = time.perf_counter() - began, {}
            for name, data in sets.items():
                metrics, _ = evaluate_segmentation(model, data, show_progress=False)
                scores[name] = metrics["mean_iou"]
                if name == "clean":
                    scores["seconds_per_image"] = metrics["seconds_per_image"]
            return {"seconds": seconds, **scores}

        found = cells.get(f"{arm} {count} {seed}", run)
        line = "  ".join(f"{k} {v:.3f}" for k, v in found.items())
        print(f"{count} labels, {arm}, seed {seed}: {line}", flush=True)
    report(args, cells)


def teacher(args: argparse.Namespace, own: LabeledImages, seed: int) -> Segmenter:
    """The model with a head for these labels, kept beside its targets."""
    folder = args.targets_dir / f"head-{len(own)}-{seed}"
    pipe = load_pipeline(args.model)
    if not (folder / "config.json").is_file():
        fit_segmentation_head(pipe, own, seed=seed).save_pretrained(folder)
    pipe.segmentation_head = PixelClassifierEnsemble.from_pretrained(folder)
    return pipe


def soft(args: argparse.Namespace, own: LabeledImages, kind: str) -> SoftTargets:
    """What the teacher of seed 0 says of images without labels, `real` or `generated` ones."""
    pipe = teacher(args, own, 0)
    where = (args.dataset_name, "unlabeled") if kind == "real" else (args.generated_dataset_name,)
    dataset, column = load_unlabeled(*where)
    dataset = dataset.select([i * len(dataset) // args.unlabeled for i in range(args.unlabeled)])
    folder = args.targets_dir / (f"targets-{len(own)}" if kind == "real" else f"targets-generated-{len(own)}")
    return compute_targets(pipe, dataset, column, folder, pipe.image_size, pipe.in_channels)


def student(args: argparse.Namespace, own: LabeledImages, train: LabeledImages, arm: str, seed: int) -> Segmenter:
    """A student after its training, kept beside the targets."""
    beside = ("arms", "counts", "seeds", "output_dir", "no_shifts", "test_split")  # they do not change the training
    chosen = {k: str(v) for k, v in vars(args).items() if k not in beside}
    key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
    folder = args.targets_dir / f"{arm}-{len(own)}-{seed}-{key}"
    if (folder / "student.json").is_file():  # it is written last
        return load_pipeline(folder, device="cpu", dtype="float32")
    set_seed(seed)
    grey = own[0].image.mode == "L"
    name = args.model if arm.startswith("finetuned") else "unet"
    model, kind = new_student(name, train.label_names, own[0].image.size[::-1], 1 if grey else 3)
    images = args.denoiser_images if arm.startswith("finetuned") else args.images
    options = TrainingOptions(
        num_epochs=EPOCHS,
        images_per_epoch=images // EPOCHS,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate or RATES[kind],
        unlabeled_fraction=args.unlabeled_fraction,
        labels_last=args.labels_last,
        layer_decay=args.layer_decay,
        num_workers=0,
        seed=seed,
    )
    paths = [path for kind in TAUGHT.get(arm, ()) for path in soft(args, own, kind).paths]
    unlabeled = SoftTargets(paths) if paths else None
    training = StudentTraining(Accelerator(cpu=True), model, own, None, options, unlabeled)
    for epoch in range(EPOCHS):
        loss = training.run_epoch(epoch)
    print(f"{arm} {len(own)} {seed}: loss {loss:.3f}", flush=True)
    model.save_pretrained(folder)
    return model


def report(args: argparse.Namespace, cells: Results) -> None:
    """Prints a row for each arm and number of labels: mean over the seeds, least and most."""
    rows = []
    for key in cells.by_key:
        arm, count, seed = key.split()
        rows.append((int(count), arm, int(seed), cells.by_key[key]))
    print("| labels | arm | seeds | clean | " + " | ".join(SHIFTS) + " | s an image | s to train |")
    print("|---" * (6 + len(SHIFTS)) + "|")
    for count, arm in sorted({(r[0], r[1]) for r in rows}, key=lambda x: (x[0], ARMS.index(x[1]))):
        own = [r[3] for r in rows if r[:2] == (count, arm)]
        clean = np.array([100 * r["clean"] for r in own])
        shifted = [f"{100 * np.mean([r[s] for r in own]):.1f}" if s in own[0] else "" for s in SHIFTS]
        spread = f"{clean.mean():.1f} ({clean.min():.1f} to {clean.max():.1f})"
        times = [f"{np.median([r[k] for r in own]):.{d}f}" for k, d in (("seconds_per_image", 3), ("seconds", 0))]
        print(f"| {count} | {arm} | {len(own)} | {spread} | " + " | ".join([*shifted, *times]) + " |")
    machine = f"{hardware(torch.device('cpu'))}"
    write_json(args.output_dir / "students.json", {"hardware": machine, "cells": cells.by_key})
    print(machine)


if __name__ == "__main__":
    main()
