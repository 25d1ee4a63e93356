# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many strokes is a mask worth? The same images, labelled in part.

    python benchmarks/bench_strokes.py --task faces64

Of every training mask only some pixels are kept: so many random ones of each class in each image, or so many strokes of
each class (`annotator.py`). Heads of the default recipe are fitted on them with and without `sparse_labels`, and
measured on the test split; `whole masks` has all pixels.
"""

import numpy as np
from annotator import true_stroke
from datasets import Dataset, Features, Image
from harness import Result, Task, arguments, fit, mean_iou

from diffuseseg_diffusers import LabeledImages


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


def in_part(dataset: LabeledImages, masks: list[np.ndarray]) -> LabeledImages:
    """The same images with other masks."""
    columns = {"image": [dataset[i].image for i in range(len(dataset))], "mask": masks}
    rows = Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))
    return LabeledImages(rows, num_classes=dataset.num_classes)


def main() -> None:
    args = arguments(__doc__, seeds=[0], pixels=[3, 40], strokes=[1, 3], dtype="auto")
    task = Task(args.task)
    pipe = task.pipe(args.dtype)
    columns = {
        "labels": ("labels in each image, of each class", "text"),
        "share": ("pixels labelled, %", "percent"),
        "plain": ("mean IoU, %", "percent"),
        "sparse": ("with `--sparse_labels`", "percent"),
    }
    about = f"{len(task.train)} labelled images, default recipe, {len(task.test)} test images."
    result = Result(args.name or f"strokes-{args.task}", columns, args, about, pipe.unet.dtype)
    arms = {f"{n} pixels": (keep_pixels, n) for n in args.pixels}
    arms |= {f"{n} stroke{'s' * (n > 1)}": (keep_strokes, n) for n in args.strokes}
    whole = [task.train[i].mask for i in range(len(task.train))]

    def measure(masks: list[np.ndarray], seed: int, sparse: bool) -> float:
        options = {"sparse_labels": True} if sparse else {"min_label_fraction": 0.0}
        return mean_iou(fit(pipe, in_part(task.train, masks), seed=seed, **options), task.test)

    for name, (keep, each) in arms.items():
        found: dict[str, list[float]] = {"share": [], "plain": [], "sparse": []}
        for seed in args.seeds:
            random = np.random.default_rng(seed)
            masks = [keep(mask, each, random) for mask in whole]
            found["share"].append(float(np.mean([(m != 255).mean() for m in masks])))
            for way in ("plain", "sparse"):
                run = lambda m=masks, s=seed, w=way: measure(m, s, w == "sparse")  # noqa: E731
                found[way].append(result.cell(f"{name} {seed} {way}", run))
        result.row(labels=name, **found)
    every = [result.cell(f"whole {seed}", lambda s=seed: measure(whole, s, False)) for seed in args.seeds]
    result.row(labels="whole masks", share=1.0, plain=every, sparse=None)
    result.show()


if __name__ == "__main__":
    main()
