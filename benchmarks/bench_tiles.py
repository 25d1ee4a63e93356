# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Large pictures by tiles: accuracy, seams and cost over overlap, blending and size of tiles.

    python benchmarks/bench_tiles.py --model out/camvid --dataset_name DATA --dataset_config_name labeled

Labelled images of one size are laid out as a mosaic, whose truth is known, from whose edge a few rows and columns are
cut, so that tiles do not lie on the images. `images` is the mean IoU of the same images segmented one by one. `seams`
is how much more class probabilities change across the lines where tiles begin and end than elsewhere (1: not to be
seen). `mismatch` is the share of pixels whose class changes when the tiles begin elsewhere. Seconds are medians of
`--repeats` runs on the first rows of the mosaic.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import evaluate
import matplotlib.pyplot as plt
import numpy as np
import torch

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.images.channels import to_rgb
from diffuseseg_diffusers.images.formats.base import ArrayRaster
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.metrics import MEAN_IOU
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tiling.tiles import BLENDS, Tiling, segment_tiled


def mosaic(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Arrays `[..., h, w]` side by side, row after row."""
    rows = [np.concatenate(images[i : i + columns], -1) for i in range(0, len(images) - columns + 1, columns)]
    return np.concatenate(rows, -2)


def mean_iou(prediction: np.ndarray, reference: np.ndarray, classes: int) -> float:
    """In percent; 255 is ignored, classes that are absent too."""
    metric = evaluate.load(MEAN_IOU)
    metric.add_batch(predictions=[prediction], references=[reference])
    return 100 * metric.compute(num_labels=classes, ignore_index=255)["mean_iou"]


def seam_ratio(probabilities: np.ndarray, tiling: Tiling, image_size: tuple[int, int], cut: int) -> float:
    """Change of probabilities across the lines where tiles begin and end, over that elsewhere; not between images."""
    ratios = []
    for axis in (0, 1):
        change = np.abs(np.diff(probabilities, axis=axis + 1)).mean(axis=(0, 2 - axis))  # [length-1]
        length = len(change) + 1
        starts = np.array(tiling.starts(length, axis))
        lines = np.concatenate([starts[1:], starts[:-1] + tiling.tile[axis]])
        if tiling.blend == "crop":  # what is taken changes between the middles of two tiles
            lines = (starts[1:] + starts[:-1] + tiling.tile[axis]) // 2
        lines = np.unique(lines[lines < length]) - 1
        between = (np.arange(length - 1) + 1 + cut) % image_size[axis] == 0
        at = np.zeros(length - 1, bool)
        at[lines] = True
        near = np.convolve(at, np.ones(5), "same") > 0
        ratios.append(change[at & ~between].mean() / change[~near & ~between].mean())
    return float(np.mean(ratios))


def seams_page(picture: np.ndarray, shown: dict[str, np.ndarray], path: Path) -> None:
    """The same part of the mosaic: the picture, and the probability of a class for each overlap."""
    figure, axes = plt.subplots(1, 1 + len(shown), figsize=(3.2 * (1 + len(shown)), 3.4), layout="constrained")
    values = picture[:, : next(iter(shown.values())).shape[0], : next(iter(shown.values())).shape[1]]
    axes[0].imshow(to_rgb(values.astype(np.float32) / 255))
    axes[0].set_title("picture", fontsize=9)
    for axis, (title, probability) in zip(axes[1:], shown.items()):
        axis.imshow(probability, cmap="magma", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--columns", type=int, default=15, help="Images in a row, and in a column.")
    parser.add_argument("--cut", type=int, default=37, help="Rows and columns that are cut off.")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0, 0.25, 0.5])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2], help="Sides of tiles, in those of the model.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--figure", type=Path, help="Page of the probability of a class for each overlap.")
    parser.add_argument("--shown_class", type=int, default=1)
    args = parser.parse_args()

    pipe = load_pipeline(args.model, dtype=args.dtype)
    dataset = load_labeled_images(args.dataset_name, args.dataset_config_name, args.split)
    number, classes = args.columns**2, len(pipe.label_names)
    rows = [dataset[i % len(dataset)] for i in range(number)]
    images = [np.asarray(row.image.convert("L" if pipe.in_channels == 1 else "RGB")) for row in rows]
    images = [image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in images]
    size = images[0].shape[1:]
    picture = mosaic(images, args.columns)[:, args.cut :, args.cut :]
    truth = mosaic([row.mask for row in rows], args.columns)[args.cut :, args.cut :]
    alone = []
    for i in range(0, number, args.batch_size):
        chunk = [row.image for row in rows[i : i + args.batch_size]]
        output = pipe.segment(chunk, args.batch_size, output_type="np", return_probabilities=True)
        alone += [p.argmax(0).astype(np.uint8) for p in output.probabilities]  # as tiles are: by mean probability
    alone_mosaic = mosaic(alone, args.columns)[args.cut :, args.cut :]
    report = {"images": mean_iou(alone_mosaic, truth, classes), "pixels": list(picture.shape[1:])}
    report |= {"hardware": hardware(torch.device("cpu")), "tiles": []}
    print(f"{number} images one by one: mean IoU {report['images']:.2f} %", flush=True)
    shown: dict[str, np.ndarray] = {}
    raster, few = ArrayRaster(picture), ArrayRaster(picture[:, : 2 * size[0]])
    for factor in args.sizes:
        side = tuple(round(factor * s) for s in pipe.image_size)
        for overlap in args.overlaps:
            for blend in BLENDS if overlap else BLENDS[1:]:
                tiling = Tiling(side, overlap=overlap, blend=blend)
                found = segment_tiled(pipe, raster, tiling, batch_size=args.batch_size, return_probabilities=True)
                if factor == args.sizes[0] and blend == BLENDS[0] or not overlap:
                    part = found.probabilities[args.shown_class, : 5 * side[0] // 2, : 5 * side[1] // 2]
                    shown.setdefault(f"overlap {overlap:.2f}", part)
                other = ArrayRaster(picture[:, side[0] // 3 :, side[1] // 3 :])
                moved = segment_tiled(pipe, other, tiling, batch_size=args.batch_size)
                seconds = []
                for _ in range(args.repeats):
                    began = time.perf_counter()
                    segment_tiled(pipe, few, tiling, batch_size=args.batch_size)
                    seconds.append((time.perf_counter() - began) / few.height / few.width * 1e6)
                line = {"tile": list(side), "overlap": overlap, "blend": blend if overlap else "none"}
                line["mean_iou"] = mean_iou(found.labels, truth, classes)
                line["seams"] = seam_ratio(found.probabilities, tiling, size, args.cut)
                line["mismatch"] = float((found.labels[side[0] // 3 :, side[1] // 3 :] != moved.labels).mean())
                line["seconds_per_megapixel"] = statistics.median(seconds)
                report["tiles"].append(line)
                print(
                    f"tile {side[0]} × {side[1]}, overlap {overlap:.2f}, {line['blend']:<8}: mean IoU "
                    f"{line['mean_iou']:.2f} %, seams {line['seams']:.2f}, mismatch {line['mismatch']:.2%}, "
                    f"{line['seconds_per_megapixel']:.1f} s a megapixel",
                    flush=True,
                )
    if args.figure:
        seams_page(picture, shown, args.figure)
    if args.output:
        args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
