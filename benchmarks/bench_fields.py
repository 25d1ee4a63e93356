# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Is it ahead of a forest and a small U-Net on the pictures that people have?

    python benchmarks/bench_fields.py
    python benchmarks/bench_fields.py --methods forest unet --counts 2 5 all --seeds 0 --minutes 3
    python benchmarks/bench_fields.py --fields data/wood data/leaves --methods forest default:untrained

A field is a folder with `labeled/train-*.parquet`, `labeled/test-*.parquet`, `unlabeled/train-*.parquet` and
`id2label.json`; those without a slash are looked for in `../shared/data/fields`. `--counts` are numbers of labelled
pictures, `all`, or percentages: that share of the pixels of all labelled pictures, as strokes. Seed 0 takes the first
pictures, others random ones.

Methods: `forest` (`forest.py`); `unet` (`unet.py`), trained for `--minutes`, and `unet:16`, half as wide; `paper`,
`default`, `fast` and `best`, the recipes of `diffuseseg fit`, and `student`, distilled from the default recipe's head
with the unlabelled pictures. Their model follows after a colon: `default:untrained`, `best:FOLDER`; without one it is
`--model`. `best:own` takes the folder of the field's name in `--own`, a model trained on its unlabelled pictures. The
default and paper's recipe read tiles of 128 pixels where pictures are larger; `best` chooses by itself, within
`--minutes`.

Mean IoU is that of all pixels of `--max_test` test pictures at their own size, over the classes that occur. Boundary
IoU (Cheng et al. 2021) compares bands of two pixels inside the borders of each class. All cells stay in the result,
whatever was asked for since; `--again` measures those that are asked for once more.
"""

import math
import re
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from annotator import true_stroke
from datasets import Dataset, Features, Image
from forest import Forest
from harness import SHARED, Result, arguments, now
from scipy.ndimage import binary_erosion
from unet import train_unet

from diffuseseg_diffusers import (
    FitConfig,
    LabeledImages,
    TrainStudentConfig,
    fit,
    load_labeled_images,
    load_pipeline,
    train_student,
)
from diffuseseg_diffusers.datasets.labeled import LabeledImage
from diffuseseg_diffusers.datasets.unlabeled import evenly_spread
from diffuseseg_diffusers.evaluation.evaluate import segment_rows


FIELDS = ["blood-cells", "neurons", "car-parts", "crops-weeds", "nuclei"]
LABELS = ["1", "2", "5", "all", "0.25%", "1%", "2.5%"]
METHODS = ["forest", "unet", "paper", "default:untrained", "default", "best:untrained", "best", "student"]
TILE = 128  # side of tiles, for the recipes that do not choose
BAND = 2  # pixels, of the bands of boundary IoU

Segment = Callable[[LabeledImage], np.ndarray]


class Field:
    """Labelled pictures of a folder, to fit and to measure on."""

    def __init__(self, place: str, max_test: int):
        self.folder = Path(place) if "/" in place else SHARED / "data/fields" / place
        self.name = self.folder.name
        self.train = load_labeled_images(str(self.folder), "labeled", "train")
        names = {"label_names": self.train.label_names, "num_classes": self.train.num_classes}
        test = load_labeled_images(str(self.folder), "labeled", "test", **names)
        self.test = test.select(evenly_spread(len(test), max_test))

    @property
    def large(self) -> bool:
        """Whether pictures are larger than a tile."""
        return max(max(self.train[i].image.size) for i in range(len(self.train))) > TILE

    def labelled(self, labels: str, seed: int) -> LabeledImages:
        """So many labelled pictures, or all with strokes on so many percent of their pixels."""
        random = np.random.default_rng(seed)
        if labels.endswith("%"):
            rows, share = [self.train[i] for i in range(len(self.train))], float(labels[:-1]) / 100
            masks = [strokes(row.mask, share, random) for row in rows]
        else:
            order = random.permutation(len(self.train)) if seed else np.arange(len(self.train))
            number = len(self.train) if labels == "all" else int(labels)
            rows = [self.train[int(i)] for i in order[:number]]
            masks = [row.mask for row in rows]
        columns = {"image": [row.image for row in rows], "mask": masks}
        dataset = Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))
        return LabeledImages(dataset, num_classes=self.train.num_classes, label_names=self.train.label_names)


def strokes(mask: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Strokes of each class in turn, until at least this share of the pixels has a label."""
    kept = np.full_like(mask, 255)
    classes = random.permutation(np.unique(mask[mask != 255]))
    number = 0
    while (kept != 255).mean() < share:
        places = np.flatnonzero((mask == classes[number % len(classes)]) & (kept == 255))
        number += 1
        if len(places):
            stroke = true_stroke(mask, *divmod(int(random.choice(places)), mask.shape[1]))
            kept[stroke[0]] = stroke[1]
    return kept


# Methods


def by_forest(field: Field, own: LabeledImages, seed: int, **_: Any) -> Segment:
    forest = Forest(own, seed)
    return lambda row: forest.segment(row.image)


def by_unet(field: Field, own: LabeledImages, seed: int, args: Any, model: str, **_: Any) -> Segment:
    net = train_unet(own, seed, minutes=args.minutes, width=16 if model == "16" else 32)
    return lambda row: net.segment_whole(row.image)


def by_head(field: Field, own: LabeledImages, seed: int, args: Any, recipe: str, model: str, labels: str, work: Path):
    """As a user does: `diffuseseg fit` on a folder."""
    own.dataset.to_parquet(work / "labels" / "train-00000-of-00001.parquet")
    shutil.copy(field.folder / "id2label.json", work / "labels")
    options: dict[str, Any] = {"sparse_labels": True} if labels.endswith("%") else {}
    if recipe == "best":
        options["max_minutes"] = args.minutes
    elif field.large:
        options |= {"tile": True, "resolution": (TILE, TILE), "scale": 1.0}
    where = {"dataset_name": str(work / "labels"), "output_dir": work / "head"}
    pipe = fit(FitConfig(model=model, recipe=recipe, seed=seed, **where, **options))
    return lambda row: segment_rows(pipe, [row], 8, tiled=True)[0][0]


def by_student(field: Field, own: LabeledImages, seed: int, work: Path, **more: Any) -> Segment:
    by_head(field, own, seed, work=work, **more | {"recipe": "default"})
    train_student(
        TrainStudentConfig(
            teacher=str(work / "head"),
            train_dataset_name=str(work / "labels"),
            unlabeled_dataset_name=str(field.folder),
            unlabeled_dataset_config_name="unlabeled",
            dataloader_num_workers=0,
            seed=seed,
            output_dir=work / "student",
        )
    )
    model = load_pipeline(str(work / "student"))
    return lambda row: segment_rows(model, [row], 8, tiled=True)[0][0]


FUNCTIONS = {"forest": by_forest, "unet": by_unet, "student": by_student}  # recipes: by_head


def prepare(field: Field, labels: str, method: str, seed: int, args: Any, work: Path) -> tuple[Segment, LabeledImages]:
    """A fitted method, and what it was fitted on."""
    own = field.labelled(labels, seed)
    recipe, _, model = method.partition(":")
    model = str(Path(args.own, field.name)) if model == "own" else model or args.model
    how = dict(args=args, recipe=recipe, model=model, labels=labels, work=work)
    return FUNCTIONS.get(recipe, by_head)(field, own, seed, **how), own


# Measures


def confusion(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels `[classes, classes]`, true classes in rows."""
    known = truth != 255
    pairs = truth[known].astype(np.int64) * classes + prediction[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def bands(mask: np.ndarray, label: int) -> np.ndarray:
    """The pixels of a class within `BAND` of another; the edge of the picture and of what has no label is no border."""
    own = mask == label
    return own & ~binary_erosion(own | (mask == 255), np.ones((3, 3)), BAND, border_value=1)


def boundary_counts(prediction: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Pixels in both bands and in either, `[classes, 2]`."""
    known = truth != 255
    pairs = [(bands(prediction, c) & known, bands(truth, c) & known) for c in range(classes)]
    return np.array([[(a & b).sum(), (a | b).sum()] for a, b in pairs])


def compare(segment: Segment, test: LabeledImages) -> dict[str, float]:
    """Mean IoU, boundary IoU and least IoU of a class, in 0 to 1; seconds a megapixel."""
    k = test.num_classes
    counts, borders, seconds, pixels = np.zeros((k, k)), np.zeros((k, 2)), 0.0, 0
    for i in range(len(test)):
        row = test[i]
        began = now()
        found = segment(row)
        seconds += now() - began
        pixels += found.size
        counts += confusion(found, row.mask, k)
        borders += boundary_counts(found, row.mask, k)
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    iou, near = counts.diagonal()[union > 0] / union[union > 0], borders[borders[:, 1] > 0]
    boundary = float((near[:, 0] / near[:, 1]).mean()) if len(near) else 1.0
    shares = {"mean_iou": float(iou.mean()), "boundary_iou": boundary, "worst": float(iou.min())}
    return shares | {"megapixel": seconds / pixels * 1e6}


def measure(field: Field, labels: str, method: str, seed: int, args: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        (work := Path(folder)).joinpath("labels").mkdir()
        began = now()
        segment, own = prepare(field, labels, method, seed, args, work)
        found = {"fit": now() - began} | compare(segment, field.test)
    found["labelled"] = float(np.mean([(own[i].mask != 255).mean() for i in range(len(own))]))
    return found


# Tables


def order(place: str, known: list[str]) -> tuple[int, str]:
    return (known.index(place) if place in known else len(known), place)


def grouped(cells: dict[str, Any], settings: str) -> dict[tuple, dict[int, dict]]:
    """Cells of these settings by field, labels and method, and then by seed."""
    found: dict[tuple, dict[int, dict]] = {}
    for key, cell in cells.items():
        field, labels, method, seed, own = key.split(" | ")
        if own == settings:
            found.setdefault((field, labels, method), {})[int(seed)] = cell

    def place(key: tuple) -> tuple:
        field, labels, method = key
        amount = math.inf if labels == "all" else float(labels.rstrip("%"))
        return order(field, FIELDS), labels.endswith("%"), amount, order(method, METHODS)

    return dict(sorted(found.items(), key=lambda item: place(item[0])))


def overview(found: dict[tuple, dict[int, dict]], result: Result) -> None:
    """Mean IoU: a row for each field and number of labels, then the mean over the fields; a column for each method."""
    result.content["rows"] = []
    methods = sorted({method for _, _, method in found}, key=lambda m: order(m, METHODS))
    result.content["columns"] = {"field": ["field", "text"], "labels": ["labels", "text"]}
    result.content["columns"] |= {m: [f"`{m}`", "percent"] for m in methods}
    values: dict[tuple, dict[str, list]] = {}
    for (field, labels, method), seeds in found.items():
        values.setdefault((field, labels), {})[method] = [cell["mean_iou"] for cell in seeds.values()]
    for (field, labels), row in values.items():
        result.row(field=field, labels=labels, **row)
    fields, every = {field for field, _ in values}, dict.fromkeys(labels for _, labels in values)
    for labels in every if len(fields) > 1 else ():
        rows = [row for (_, own), row in values.items() if own == labels]
        whole = [m for m in methods if len(rows) == len(fields) and all(m in row for row in rows)]
        if whole:
            means = {m: statistics.mean(statistics.mean(row[m]) for row in rows) for m in whole}
            result.row(field="mean", labels=labels, **means)


def details(found: dict[tuple, dict[int, dict]], result: Result) -> None:
    """All measures of each cell."""
    result.content["rows"] = []
    for (field, labels, method), seeds in found.items():
        row = {k: [cell[k] for cell in seeds.values()] for k in DETAILS if k in next(iter(seeds.values()))}
        row |= {"commit": "; ".join(dict.fromkeys(row["commit"])), "labelled": statistics.mean(row["labelled"])}
        result.row(field=field, labels=labels, method=f"`{method}`", **row)


DETAILS = {
    "field": ("field", "text"),
    "labels": ("labels", "text"),
    "labelled": ("pixels labelled, %", "percent"),
    "method": ("method", "text"),
    "mean_iou": ("mean IoU, %", "percent"),
    "boundary_iou": ("boundary IoU, %", "percent"),
    "worst": ("worst class, %", "percent"),
    "fit": ("fit, s", "0"),
    "megapixel": ("s a megapixel", "1"),
    "commit": ("commit", "text"),
}


def main() -> None:
    models = dict(model="general", own="own", minutes=3.0, max_test=20, again=False)
    args = arguments(__doc__, None, fields=FIELDS, counts=LABELS, methods=METHODS, seeds=[0, 1, 2], **models)
    wrong = [labels for labels in args.counts if not re.fullmatch(r"all|[1-9]\d*|\d*\.?\d+%", labels)]
    if wrong:
        raise SystemExit(f"--counts are numbers, all, or percentages such as 2.5%, got {wrong[0]}.")
    if wrong := [method for method in args.methods if method.startswith("unet:") and method != "unet:16"]:
        raise SystemExit(f"There are unet and unet:16, got {wrong[0]}.")
    settings = f"{args.max_test} test, {args.minutes:g} min"
    pictures = f"up to {args.max_test} test pictures; {args.minutes:g} minutes for `unet` and `best`"
    about = f"Mean IoU in %, mean over the seeds with its range; {pictures}."
    result = Result(args.name or "fields", {}, args, about, keep=True)
    about = f"Means over the seeds with their range; {pictures}; bands of {BAND} pixels for boundary IoU."
    every = Result(f"{args.name or 'fields'}-details", DETAILS, args, about)
    for place in args.fields:
        field = Field(place, args.max_test)
        for seed in args.seeds:
            for labels in args.counts:
                if labels.isdigit() and int(labels) > len(field.train):
                    print(f"{field.name} has {len(field.train)} labelled pictures; {labels} is left out.")
                    continue
                for method in args.methods:
                    key = " | ".join([field.name, labels, method, str(seed), settings])
                    result.cell(key, lambda m=method, n=labels, s=seed, f=field: measure(f, n, m, s, args), args.again)
                    found = grouped(result.content["cells"], settings)
                    overview(found, result)  # after each cell, so that the table can be read meanwhile
                    details(found, every)
    result.show()
    every.show()


if __name__ == "__main__":
    main()
