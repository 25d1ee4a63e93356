# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU of the likeliest classes and of decisions for mean IoU, which images without labels gave.

    python benchmarks/bench_decisions.py --models MODEL [MODEL …] --dataset_name DATA

Models are fitted pipelines, students, or several joined by ` + `. The images without labels are of the configuration
`unlabeled`, evenly spread; the measured ones of `labeled`. Both ways decide on the same probabilities; the decisions
that a model was saved with do not count.
"""

import argparse
from pathlib import Path

import torch
from bench_labels import SHIFTS, Shifted

from diffuseseg_diffusers import load_labeled_images, load_pipeline
from diffuseseg_diffusers.datasets.columns import decode_cell
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.evaluation.decision_fitting import IMAGES, fit_decisions
from diffuseseg_diffusers.heads.decisions import winners
from diffuseseg_diffusers.jobs.hardware import hardware


def ious(counts: torch.Tensor) -> torch.Tensor:
    """IoU of each class, `[C]`, NaN where it is in neither, from counts `[C, C]` of pixels by true and found class."""
    both = counts.diag()
    return both / (counts.sum(0) + counts.sum(1) - both)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--shifts", action="store_true", help="Also rotated, darkened, blurred and shrunk images.")
    parser.add_argument("--classes", action="store_true", help="Print the IoU of each class too.")
    args = parser.parse_args()
    unlabeled, column = load_unlabeled(args.dataset_name, "unlabeled")
    number = min(IMAGES, len(unlabeled))
    rows = [i * len(unlabeled) // number for i in range(number)]
    sets = ("clean", *SHIFTS) if args.shifts else ("clean",)
    print("| model | images | likeliest, % | decided, % |\n|---|---|---|---|")
    for name in args.models:
        model = load_pipeline(name, dtype="float32")
        decisions = fit_decisions(model, (decode_cell(unlabeled[i][column], f"row {i}")[0] for i in rows), number)
        for kind in sets:
            data = load_labeled_images(args.dataset_name, "labeled", args.split, classes=model.label_names)
            shown = data if kind == "clean" else Shifted(data, kind)
            classes = len(model.label_names)
            counts = torch.zeros(2, classes, classes, dtype=torch.float64)
            for start in range(0, len(shown), 8):
                some = [shown[i] for i in range(start, min(start + 8, len(shown)))]
                found = model.segment([row.image for row in some], output_type="pt", return_probabilities=True)
                for row, p in zip(some, found.probabilities):
                    truth = torch.from_numpy(row.mask).long()
                    known = truth != data.ignore_index
                    for way, ids in enumerate((winners(p.float(), None, 0), winners(p.float(), decisions, 0))):
                        pairs = truth[known] * classes + ids[known]
                        counts[way] += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
            each = [100 * ious(c) for c in counts]
            means = " | ".join(f"{x.nanmean():.1f}" for x in each)
            print(f"| {Path(name).name} | {kind} | {means} |", flush=True)
            if args.classes and kind == "clean":
                for label, *values in zip(model.label_names, *each):
                    print(f"| | *{label}* | {values[0]:.1f} | {values[1]:.1f} |", flush=True)
    print(f"{len(data)} images, {number} without labels; {hardware(torch.device('cpu'))}.")


if __name__ == "__main__":
    main()
