# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What do tiles of a large picture cost in accuracy and time, over overlap, blending and size?

    python benchmarks/bench_tiles.py --task camvid

Labelled images are laid out as a mosaic, whose truth is known, from whose edge a few rows and columns are cut, so that
tiles do not lie on the images. *Seams* is how much more class probabilities change across the lines where tiles begin
and end than elsewhere (1: not to be seen). *Mismatch* is the share of pixels whose class changes when the tiles begin
elsewhere.
"""

import evaluate
import numpy as np
from harness import Result, Task, arguments, fit, now

from diffuseseg_diffusers.images.formats.base import ArrayRaster
from diffuseseg_diffusers.metrics import MEAN_IOU
from diffuseseg_diffusers.tiling.tiles import BLENDS, Tiling, segment_tiled


def mosaic(images: list[np.ndarray], columns: int) -> np.ndarray:
    """Arrays `[..., h, w]` side by side, row after row."""
    rows = [np.concatenate(images[i : i + columns], -1) for i in range(0, len(images) - columns + 1, columns)]
    return np.concatenate(rows, -2)


def mean_iou(prediction: np.ndarray, reference: np.ndarray, classes: int) -> float:
    """In 0 to 1; 255 is ignored, classes that are absent too."""
    metric = evaluate.load(MEAN_IOU)
    metric.add_batch(predictions=[prediction], references=[reference])
    return metric.compute(num_labels=classes, ignore_index=255)["mean_iou"]


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


def main() -> None:
    tiles = dict(overlaps=[0.0, 0.25, 0.5], sizes=[1.0, 2.0], blends=list(BLENDS))
    args = arguments(__doc__, columns=8, cut=37, **tiles, batch_size=8, dtype="auto", seeds=[0])
    task = Task(args.task)
    pipe = fit(task.pipe(args.dtype), task.train, seed=args.seeds[0])
    number, classes = args.columns**2, len(pipe.label_names)
    rows = [task.test[i % len(task.test)] for i in range(number)]
    images = [np.asarray(row.image.convert("L" if pipe.in_channels == 1 else "RGB")) for row in rows]
    images = [image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in images]
    size = images[0].shape[1:]
    picture = mosaic(images, args.columns)[:, args.cut :, args.cut :]
    truth = mosaic([row.mask for row in rows], args.columns)[args.cut :, args.cut :]
    columns = {
        "tile": ("tile", "text"),
        "overlap": ("overlap", "text"),
        "blend": ("blending", "text"),
        "mean_iou": ("mean IoU, %", "percent"),
        "seams": ("seams", "2"),
        "mismatch": ("mismatch, %", "percent"),
        "seconds": ("s a megapixel", "1"),
    }
    about = f"{number} test images as a mosaic of {picture.shape[1]} × {picture.shape[2]} pixels; default recipe."
    result = Result(args.name or f"tiles-{args.task}", columns, args, about, pipe.unet.dtype)

    def alone() -> float:
        found = pipe.segment([row.image for row in rows], args.batch_size, output_type="np", return_probabilities=True)
        masks = [p.argmax(0).astype(np.uint8) for p in found.probabilities]  # as tiles are: by mean probability
        return mean_iou(mosaic(masks, args.columns)[args.cut :, args.cut :], truth, classes)

    def measure(tiling: Tiling) -> dict[str, float]:
        began, side = now(), tiling.tile
        raster = ArrayRaster(picture)
        found = segment_tiled(pipe, raster, tiling, batch_size=args.batch_size, return_probabilities=True)
        seconds = (now() - began) / raster.height / raster.width * 1e6
        other = ArrayRaster(picture[:, side[0] // 3 :, side[1] // 3 :])
        moved = segment_tiled(pipe, other, tiling, batch_size=args.batch_size)
        return {
            "mean_iou": mean_iou(found.labels, truth, classes),
            "seams": seam_ratio(found.probabilities, tiling, size, args.cut),
            "mismatch": float((found.labels[side[0] // 3 :, side[1] // 3 :] != moved.labels).mean()),
            "seconds": seconds,
        }

    result.row(tile="the images one by one", mean_iou=result.cell("alone", alone))
    for factor in args.sizes:
        side = tuple(round(factor * s) for s in pipe.image_size)
        for overlap in args.overlaps:
            for blend in args.blends if overlap else BLENDS[1:]:
                tiling = Tiling(side, overlap=overlap, blend=blend)
                name = f"{side[0]} × {side[1]}"
                found = result.cell(f"{name} {overlap} {blend}", lambda t=tiling: measure(t))
                result.row(tile=name, overlap=str(overlap), blend=blend if overlap else "", **found)
    result.show()


if __name__ == "__main__":
    main()
