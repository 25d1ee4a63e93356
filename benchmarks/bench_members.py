# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many members a head needs: mean IoU, and how well the uncertainty tells wrong pixels from right ones.

    diffuseseg fit --num_members 10 … --output_dir MODEL
    python benchmarks/bench_members.py --models MODEL [MODEL …] --dataset_name DATA --dataset_config_name labeled

Takes the first members of heads that were fitted with many: a member depends on the seed and on its number alone, so
that this is what fitting fewer gives. "AUROC" is the area under
the receiver operating characteristic of the uncertainty as a detector of wrong pixels, 0.5 for a blind one. The head's
time is for images one by one, on activations that are at hand.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from diffuseseg_diffusers import PixelClassifierEnsemble, load_labeled_images, load_pipeline
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.table import ActivationTable
from diffuseseg_diffusers.jobs.hardware import hardware


def fewer(head: PixelClassifierEnsemble, number: int) -> PixelClassifierEnsemble:
    """A head with the first members, as it would have been fitted with so many."""
    small = PixelClassifierEnsemble.from_config({**head.config, "num_members": number}).eval()
    small.load_state_dict({name: tensor[:number] for name, tensor in head.state_dict().items()})
    return small.to(head.device)


def auroc(score: torch.Tensor, wrong: torch.Tensor) -> float:
    """Probability that a wrong pixel has a higher score than a right one, ties by half (Mann-Whitney); both `[P]`."""
    positive, order = int(wrong.sum()), score.sort().values
    below = torch.searchsorted(order, score[wrong]).double() + torch.searchsorted(order, score[wrong], right=True)
    above = float(below.sum()) / 2 - positive**2 / 2
    return above / (positive * (len(score) - positive)) if 0 < positive < len(score) else float("nan")


def measure(
    head: PixelClassifierEnsemble, straight: ActivationTable, mirrored: ActivationTable | None
) -> tuple[float, float, float]:
    """Mean IoU, AUROC, and the head's seconds for an image."""
    entries, classes = range(len(straight.info)), head.config.num_classes
    confusion, wrong, uncertainty, seconds = torch.zeros(classes**2, dtype=torch.long), [], [], 0.0
    for i, labels in enumerate(straight.labels):
        views = [table.image(i, entries) for table in (straight, mirrored) if table is not None]
        began = time.perf_counter()
        output = head.predict(views[0], mirrored=views[1] if len(views) > 1 else None)
        seconds += time.perf_counter() - began
        known = labels != head.config.ignore_index
        true, found = labels[known].long(), output.labels[0].cpu()[known].long()
        confusion += torch.bincount(true * classes + found, minlength=classes**2)
        wrong.append(true != found)
        uncertainty.append(output.uncertainty[0].cpu()[known])
    pairs = confusion.view(classes, classes).double()  # reference × prediction
    iou = pairs.diag() / (pairs.sum(0) + pairs.sum(1) - pairs.diag())
    return float(iou.nanmean()), auroc(torch.cat(uncertainty), torch.cat(wrong)), seconds / len(straight.labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="Fitted models.")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--members", type=int, nargs="+", default=[10, 6, 4, 2, 1])
    args = parser.parse_args()
    print("| model | members | mean IoU, % | AUROC of the uncertainty | head, ms an image |\n|---|---|---|---|---|")
    for name in args.models:
        pipe: Any = load_pipeline(name)
        head, extractor = pipe.segmentation_head, pipe.head_extractor()
        data = load_labeled_images(args.dataset_name, args.dataset_config_name, args.split, classes=pipe.label_names)
        straight = extract_activations(extractor, data)
        mirrored = extract_activations(extractor, data, mirror=True) if head.config.flip else None
        for number in [n for n in args.members if n <= head.config.num_members]:
            iou, area, seconds = measure(fewer(head, number), straight, mirrored)
            row = f"{number} | {100 * iou:.2f} | {area:.3f} | {1e3 * seconds:.0f}"
            print(f"| {Path(name).name} | {row} |", flush=True)
    print(f"{len(data)} images; {hardware(pipe.device)}.")


if __name__ == "__main__":
    main()
