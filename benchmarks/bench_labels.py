# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a label is worth: mean IoU over the number of labelled images, for several methods, clean and under shift.

    python benchmarks/bench_labels.py --model MODEL --dataset_name DATA --dataset_config_name labeled --output_dir OUT

The labelled images are the first of the training split. Methods: `paper`, the published recipe with its features;
`default`, what `diffuseseg fit` does; `unet`, the U-Net from scratch of `bench_unet.py`. The same command line
resumes where it was cut off.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFilter
import torch
from bench_unet import train as train_unet
from tqdm.auto import tqdm

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, fit_segmentation_head, load_labeled_images
from diffuseseg_diffusers.datasets.labeled import LabeledImage
from diffuseseg_diffusers.figures.curves import label_curves
from diffuseseg_diffusers.images.image_processor import to_eight_bit
from diffuseseg_diffusers.jobs.files import write_json
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.jobs.run import Results
from diffuseseg_diffusers.pipelines.loading import load_pipeline


SHIFTS = ("rotated", "darkened", "blurred", "shrunk")
METHODS = {"paper": "published recipe", "default": "default recipe", "unet": "U-Net from scratch"}


class Shifted(LabeledImages):
    """Images rotated by 15°, darkened to 60 %, blurred, or shrunk to 75 % within their frame; masks alike."""

    def __init__(self, dataset: LabeledImages, shift: str):
        self.__dict__.update(dataset.__dict__)
        self.shift = shift

    def __getitem__(self, index: int) -> LabeledImage:
        row = super().__getitem__(index)
        image, mask = to_eight_bit(row.image), PIL.Image.fromarray(row.mask)
        if self.shift == "darkened":
            return replace(row, image=image.point(lambda x: round(0.6 * x)))
        if self.shift == "blurred":
            return replace(row, image=image.filter(PIL.ImageFilter.GaussianBlur(min(image.size) / 64)))
        moved = []
        for whole, resample, outside in ((image, 2, None), (mask, 0, self.ignore_index)):
            pixels = np.asarray(whole)
            border = [(s // 2, s // 2) for s in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
            how = {"mode": "reflect"} if outside is None else {"constant_values": outside}
            wide = PIL.Image.fromarray(np.pad(pixels, border, **how))  # so that nothing comes from outside of it
            if self.shift == "rotated":
                wide = wide.rotate(15, resample=resample)
                moved.append(wide.crop(centred(wide.size, whole.size)))
            else:
                frame = centred(wide.size, [x / 0.75 for x in whole.size])
                moved.append(wide.crop(frame).resize(whole.size, resample))
        return replace(row, image=moved[0], mask=np.asarray(moved[1]))


def centred(size, inner) -> tuple[int, int, int, int]:
    (left, top), (width, height) = [(a - b) / 2 for a, b in zip(size, inner)], inner
    return round(left), round(top), round(left + width), round(top + height)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--no_shifts", action="store_true", help="Clean images alone.")
    parser.add_argument("--minutes", type=float, default=3, help="For the U-Net from scratch (default: 3).")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    train = load_labeled_images(args.dataset_name, args.dataset_config_name, "train")
    names = {"label_names": train.label_names, "num_classes": train.num_classes}
    test = load_labeled_images(args.dataset_name, args.dataset_config_name, args.test_split, **names)
    pipe = load_pipeline(args.model)
    threads = torch.get_num_threads()
    settings = {"model": args.model, "dataset": args.dataset_name, "test": args.test_split, "minutes": args.minutes}
    cells = Results(args.output_dir / "cells.jsonl", settings)
    runs = [(m, n, s) for m in args.methods for n in args.counts for s in range(args.seeds)]

    def run(method: str, count: int, seed: int) -> dict:
        own, began = train.select(range(count)), time.perf_counter()
        if method == "unet":
            fitted = train_unet(own, args.minutes, seed)
        else:
            pipe.segmentation_head = fit_segmentation_head(pipe, own, recipe=method, seed=seed)
            fitted = pipe
        seconds = time.perf_counter() - began
        sets = {"clean": test} | ({} if args.no_shifts else {s: Shifted(test, s) for s in SHIFTS})
        scores, segment = {}, None
        for name, data in sets.items():
            metrics, _ = evaluate_segmentation(fitted, data, show_progress=False)
            scores[name], segment = metrics["mean_iou"], segment or metrics["seconds_per_image"]
        return {"seconds": seconds, "seconds_per_image": segment, **scores}

    results = {}
    for method, count, seed in tqdm(runs, "Methods, counts and seeds", unit="run"):
        key = f"{method} {count} {seed}"
        results[method, count, seed] = cells.get(key, lambda m=method, n=count, s=seed: run(m, n, s))
        tqdm.write(f"{key}: {100 * results[method, count, seed]['clean']:.1f}")

    curves, table = {}, []
    for method in args.methods:
        for count in args.counts:
            own = [results[method, count, s] for s in range(args.seeds)]
            row = {"method": method, "labelled_images": count}
            for name in own[0]:
                values = np.array([r[name] for r in own])
                row[name], row[f"{name}_least"], row[f"{name}_most"] = values.mean(), values.min(), values.max()
            table.append({k: v if isinstance(v, str | int) else float(v) for k, v in row.items()})
            curve = {k: row[k] for k in ("labelled_images",)} | {
                "mean": row["clean"],
                "least": row["clean_least"],
                "most": row["clean_most"],
            }
            curves.setdefault(METHODS[method], []).append(curve)
            print(
                f"{METHODS[method]:<20}{count:>3}  "
                + "  ".join(f"{n} {100 * row[n]:.1f}" for n in own[0] if not n.startswith("seconds"))
                + f"  fit {row['seconds']:.1f} s  segment {row['seconds_per_image']:.3f} s"
            )
    write_json(
        args.output_dir / "labels.json", {"hardware": hardware(pipe.unet.device), "threads": threads, "rows": table}
    )
    figure = label_curves(curves)
    for suffix in ("png", "svg"):
        figure.savefig(args.output_dir / f"labels.{suffix}")


if __name__ == "__main__":
    main()
