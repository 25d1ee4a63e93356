# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many strokes is a mask worth, and what is a suggestion of where to draw worth?

    python benchmarks/bench_strokes.py --task faces64
    python benchmarks/bench_strokes.py --task drawn --suggestions

Of every training mask only some pixels are kept: so many random ones of each class in each image, or so many strokes of
each class (`annotator.py`). Heads of the default recipe are fitted on them with and without `sparse_labels`, and
measured on the test split; `whole masks` has all pixels.

With `--suggestions` the annotator labels `--pictures` pictures, `--each` strokes in each, where a rule says; after
every five strokes the live head is fitted again, as in `diffuseseg app`. Seeds are paired: each gives four fifths of
the pictures to label from, the order of random pictures, random places and the head's random weights. The table has the
mean over the seeds; the area under the curve (trapezoids over the numbers of strokes, divided by their range) of each
rule minus that of `random`, with the 95 % interval of a paired t-test; and the least IoU of a class at the end.
"""

from typing import Any

import numpy as np
from annotator import MARKS, RULES, Annotation, Data, true_stroke
from datasets import Dataset, Features, Image
from harness import Result, Task, arguments, drawn_faces, fit, mean_iou
from scipy import stats

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


def suggestions(task: Task, pipe: Any, args: Any) -> None:
    """The annotator with each rule."""
    pool = drawn_faces(range(200)) if args.task == "drawn" else task.train
    pairs = [[(rows[i].image, rows[i].mask) for i in range(len(rows))] for rows in (pool, task.test)]
    data = Data(pairs[0], pairs[1][:: args.test_every], pool.num_classes, pipe)
    marks = [m for m in MARKS if m <= args.each * args.pictures]
    columns = {"rule": ("rule", "text")} | {f"at_{m}": (f"{m} strokes", "percent") for m in marks}
    columns |= {"area": ("area, against random", "text"), "worst": ("worst class at the end", "percent")}
    about = f"Mean IoU in %; {len(pool)} pictures to label, {len(data.test)} to measure on."
    result = Result(args.name or f"suggestions-{args.task}", columns, args, about)

    def annotate(rule: str, seed: int) -> list[list[float]]:
        data.choose(seed)
        found = Annotation(data, rule, seed, args.each).run(args.pictures)
        return [found[m] for m in marks]

    found = {
        rule: np.array([result.cell(f"{rule} {s}", lambda r=rule, s=s: annotate(r, s)) for s in args.seeds])
        for rule in args.rules
    }  # [seeds,marks,2]
    base = found[args.rules[0]][..., 0]
    for rule, curve in found.items():
        gains = 100 * np.trapezoid(curve[..., 0] - base, marks, axis=1) / (marks[-1] - marks[0])
        spread = f" ± {stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains):.1f}" if len(gains) > 1 else ""
        row = {f"at_{m}": float(value) for m, value in zip(marks, curve[..., 0].mean(0))}
        area = "" if rule == args.rules[0] else f"{gains.mean():+.1f}{spread}"
        result.row(rule=rule, area=area, worst=float(curve[:, -1, 1].mean()), **row)
    result.show()


def main() -> None:
    live = dict(suggestions=False, rules=RULES, pictures=10, each=20, test_every=1)
    args = arguments(__doc__, seeds=[0], pixels=[3, 40], strokes=[1, 3], dtype="auto", **live)
    task = Task(args.task)
    pipe = task.pipe(args.dtype)
    if args.suggestions:
        return suggestions(task, pipe, args)
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
