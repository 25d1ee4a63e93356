# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of segmenting slides of 1 to 400 megapixels, and what tiles find of small and large things.

    python benchmarks/bench_slide.py --work_dir out/slides --train_minutes 4 --sides 1000 2000 5000 10000 20000

Everything is drawn (`data/drawn_slides.py`), so that the truth is exact. A small U-Net is trained by `train-ddpm --crop
random`, a head is fitted by `fit --tile`, and each slide is segmented by `diffuseseg segment`, in `--tasks` processes
of one thread each, whose peak of resident memory the system counts. `memory` is that peak without the one on a picture
of one tile. The last two lines segment one slide at once, resized to the model, and by tiles: IoU of small and large
things.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from diffuseseg_diffusers.datasets.drawn_slides import LABEL_NAMES, draw_slide, write_slide
from diffuseseg_diffusers.images.formats.base import Window, windows_over
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.jobs.hardware import hardware


U_NET = {
    "block_out_channels": [8, 16, 24, 32],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 4,
    "up_block_types": ["UpBlock2D"] * 4,
}


def command(*words: object) -> tuple[float, float]:
    """Runs `diffuseseg` with these words; returns seconds and the peak of its memory in GiB."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "diffuseseg_diffusers", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(process.stderr.read().decode())
    return time.perf_counter() - began, usage.ru_maxrss / 2**20


def prepare(folder: Path, minutes: float) -> Path:
    """A U-Net trained on crops of drawn slides, and a head fitted on tiles of two labelled ones."""
    model = folder / "model"
    if (model / "model_index.json").is_file():
        return model
    for kind in ("unlabeled", "labeled/train/images", "labeled/train/masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(1, 5):
        write_slide(folder / "unlabeled" / f"{seed}.tif", folder / "unlabeled.mask", 2000, 2000, seed)
    for seed in (5, 6):
        image, mask = draw_slide(Window(0, 0, 640, 640), seed)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / "labeled" / "train" / "images" / f"{seed}.png")
        Image.fromarray(mask).save(folder / "labeled" / "train" / "masks" / f"{seed}.png")
    (folder / "labeled" / "id2label.json").write_text(json.dumps(LABEL_NAMES))
    (folder / "unet.json").write_text(json.dumps(U_NET))
    command(
        *("train-ddpm", "--train_data_dir", folder / "unlabeled", "--crop", "random", "--resolution", 128),
        *(
            "--model_config",
            folder / "unet.json",
            "--train_batch_size",
            16,
            "--max_train_minutes",
            minutes,
            "--use_ema",
        ),
        *("--learning_rate", 1e-3, "--num_samples", 0, "--dataloader_num_workers", 1, "--output_dir", folder / "ddpm"),
        "--overwrite",
    )
    command(
        *("fit", "--model", folder / "ddpm", "--dataset_name", folder / "labeled", "--tile", "--recipe", "fast"),
        *("--blocks", 3, 7, "--timesteps", 20, "--num_members", 1, "--output_dir", model, "--overwrite"),
    )
    return model


def iou(mask: Path, truth: Path) -> list[float]:
    """IoU of each class in percent, of two pictures of class ids that are read window by window."""
    counts = np.zeros((3, 3), np.int64)
    with open_raster(mask) as one, open_raster(truth) as other:
        for window in windows_over(one.height, one.width, 2048):
            pair = other.read(0, window)[0].astype(np.int64) * 3 + one.read(0, window)[0]
            counts += np.bincount(pair.ravel(), minlength=9).reshape(3, 3)
    hits = np.diag(counts)
    return (100 * hits / (counts.sum(0) + counts.sum(1) - hits)).tolist()


def picture(lines: list[dict], path: Path) -> None:
    """Seconds a megapixel, and memory, over megapixels, both axes logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    sizes = [line["megapixels"] for line in lines]
    for axis, name, label in zip(
        axes, ("seconds_per_megapixel", "memory_gib"), ("process-seconds / megapixel", "GiB above the model")
    ):
        values = [line[name] for line in lines]
        axis.loglog(sizes, values, "o-", color="#0072b2")
        axis.set(xlabel="megapixels", ylabel=label, ylim=(min(values) / 5, max(values) * 5))
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--train_minutes", type=float, default=4)
    parser.add_argument("--sides", type=int, nargs="+", default=[1000, 2000, 5000, 10000, 20000])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=1, help="Processes that share each slide; memory is of one.")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()

    folder = args.work_dir
    folder.mkdir(parents=True, exist_ok=True)
    model = prepare(folder, args.train_minutes)
    how = ("--model", model, "--batch_size", args.batch_size, "--overwrite", "--tasks", args.tasks)
    write_slide(folder / "one.tif", folder / "one_mask.tif", 128, 128)
    runs = [command("segment", folder / "one.tif", "--tile", *how, "--output_dir", folder / "one") for _ in range(3)]
    start, base = (sorted(values)[1] for values in zip(*runs))  # medians
    lines: list[dict] = []
    for side in args.sides:
        slide, truth = folder / "slide.tif", folder / "truth.tif"
        write_slide(slide, truth, side, side, seed=9)
        seconds, peak = command("segment", slide, "--tile", *how, "--output_dir", folder / "out")
        ious = iou(folder / "out" / "slide_mask.tif", truth)
        megapixels = side * side / 1e6
        line = {"megapixels": megapixels, "seconds": seconds, "memory_gib": peak - base, "iou": ious}
        line["seconds_per_megapixel"] = args.tasks * (seconds - start) / megapixels  # of all processes together
        lines.append(line)
        print(
            f"{side} × {side}: {seconds:.0f} s, {line['seconds_per_megapixel']:.2f} process-seconds a megapixel, "
            f"{line['memory_gib']:.2f} GiB above {base:.2f} GiB, mean IoU {np.mean(ious):.1f} %",
            flush=True,
        )
    for way in ("--whole", "--tile"):
        write_slide(folder / "slide.tif", folder / "truth.tif", 1000, 1000, seed=9)
        command("segment", folder / "slide.tif", way, *how, "--output_dir", folder / "out")
        found = iou(folder / "out" / "slide_mask.tif", folder / "truth.tif")
        print(f"{way}: " + ", ".join(f"{name} {value:.1f} %" for name, value in zip(LABEL_NAMES, found)), flush=True)
    if len(lines) > 1:
        for name in ("seconds_per_megapixel", "memory_gib"):
            ratio = lines[-1][name] / lines[0][name]
            exponent = math.log(ratio) / math.log(lines[-1]["megapixels"] / lines[0]["megapixels"])
            print(f"{name} grows with the exponent {exponent:.2f}")
    print(f"{args.tasks} processes each; {hardware(torch.device('cpu'))}")
    if args.figure:
        picture(lines, args.figure)
    (folder / "slides.json").write_text(json.dumps(lines, indent=2) + "\n")


if __name__ == "__main__":
    main()
