# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures fitted models on labelled images."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import evaluate
import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..datasets.labeled import LabeledImage, LabeledImages
from ..datasets.unlabeled import evenly_spread
from ..heads.fit import STROKES
from ..images.channels import InputChannels
from ..images.formats.base import ArrayRaster, Raster
from ..images.formats.pictures import PictureRaster
from ..metrics import MEAN_IOU
from ..pipelines.segmenter import Segmenter
from ..tiling.tiles import choose_tiling, segment_tiled


@dataclass
class Example:
    """An evaluated image."""

    image: PIL.Image.Image
    reference: np.ndarray  # [H,W] uint8 class ids
    prediction: np.ndarray  # [H,W] uint8 class ids
    uncertainty: np.ndarray | None  # [H,W] float32 in nats; tiles that are not blended have none


def evaluate_segmentation(
    pipe: Segmenter,
    dataset: LabeledImages,
    batch_size: int | None = None,
    absent_as_zero: bool = False,
    count_ignored: bool = False,
    num_examples: int = 0,
    show_progress: bool = True,
) -> tuple[dict, list[Example]]:
    """Segments labelled images at their own size and compares.

    Args:
        pipe ([`Segmenter`]): A pipeline with a segmentation head, or a student.
        dataset ([`LabeledImages`]): What to measure on; its classes are the head's.
        batch_size (`int`, *optional*): Images that go through the model at once; 8 if not given.
        absent_as_zero (`bool`, defaults to `False`): Count classes that are absent from the set as 0, not NaN.
        count_ignored (`bool`, defaults to `False`): Count predictions on ignored pixels against their class.
        num_examples (`int`, defaults to 0): Examples to keep, for a figure; chosen so that as many of them as possible
            show each class, else evenly spread.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar.

    Returns:
        `(metrics, examples)`: a dict with `mean_iou` and `pixel_accuracy` (0 to 1, or `None` if no pixel has a label),
        `per_class_iou` (class name to 0 to 1, or `None` for an absent class), `labelled_fraction` (of all pixels, 0 to
        1), `num_images` and `seconds_per_image` (segmentation alone, the first batch left out as a warm-up where there
        are several); and a list of [`Example`], in the order of the dataset.

    Raises:
        UserError: An image or mask cannot be used.
    """
    metric, batch_size = evaluate.load(MEAN_IOU), batch_size or 8
    examples: dict[int, Example] = {}
    spread, seconds, timed = set(evenly_spread(len(dataset), num_examples)), 0.0, 0
    labelled = pixels = 0
    with tqdm(total=len(dataset), desc="Evaluating", unit="image", disable=not show_progress) as bar:
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            began = time.perf_counter()
            found = segment_rows(pipe, rows, batch_size, tiled=dataset.tiling is None)
            if start > 0 or len(dataset) <= batch_size:
                seconds += time.perf_counter() - began
                timed += len(rows)
            metric.add_batch(predictions=[mask for mask, _ in found], references=[r.mask for r in rows])
            labelled += sum(int((row.mask != dataset.ignore_index).sum()) for row in rows)
            pixels += sum(row.mask.size for row in rows)
            shown = rows if num_examples else ()
            for i, row, (prediction, uncertainty) in zip(range(start, len(dataset)), shown, found):
                examples[i] = Example(row.picture, row.mask, prediction, uncertainty)
                if len(examples) > num_examples:
                    del examples[_most_redundant(examples, dataset.ignore_index, spread)]
            bar.update(len(rows))
    result = metric.compute(
        num_labels=dataset.num_classes,
        ignore_index=dataset.ignore_index,
        absent_as_zero=absent_as_zero,
        count_ignored=count_ignored,
    )
    metrics = {
        "mean_iou": _known(result["mean_iou"]),
        "per_class_iou": dict(zip(pipe.label_names, map(_known, result["per_category_iou"]))),
        "pixel_accuracy": _known(result["overall_accuracy"]),
        "labelled_fraction": labelled / pixels,
        "num_images": len(dataset),
        "seconds_per_image": seconds / timed,
    }
    return metrics, list(examples.values())


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _most_redundant(examples: dict[int, Example], ignore_index: int, spread: set[int]) -> int:
    """The example whose rarest class most of them show; of equals the last that is not in `spread`."""
    classes = {i: set(np.unique(e.reference).tolist()) - {ignore_index} for i, e in examples.items()}
    counts = Counter(c for shown in classes.values() for c in shown)

    def redundancy(i: int) -> tuple:
        return min((counts[c] for c in classes[i]), default=len(examples) + 1), i not in spread, i

    return max(examples, key=redundancy)


def segment_rows(
    pipe: Segmenter, rows: Sequence[LabeledImage], batch_size: int, tiled: bool
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Mask and uncertainty of each image; if `tiled`, those are cut that `diffuseseg segment` would cut into tiles."""
    found: dict[int, tuple] = {}
    for i, row in enumerate(rows if tiled else ()):
        if isinstance(row.image, PIL.Image.Image):
            raster: Raster = PictureRaster(row.image, row.name)
        else:
            raster = ArrayRaster(row.image.transpose(2, 0, 1), row.name)
        tiling = choose_tiling(pipe, raster)
        if tiling is not None:
            chosen = InputChannels(windows=pipe.channels.windows)  # the dataset has chosen them already
            own = segment_tiled(pipe, raster, tiling, 0, chosen, batch_size)
            found[i] = own.labels, own.uncertainty
    rest = [i for i in range(len(rows)) if i not in found]
    if rest:
        output = pipe.segment([rows[i].image for i in rest], batch_size, output_type="np", return_images=False)
        found |= dict(zip(rest, zip(output.masks, output.uncertainty or [None] * len(rest))))
    return [found[i] for i in range(len(rows))]


def format_metrics(metrics: dict) -> str:
    """The table that `evaluate` prints."""
    width = max(len(name) for name in [*metrics["per_class_iou"], "pixel accuracy"])
    lines = [f"{'class':<{width}}     IoU"]
    for name, iou in metrics["per_class_iou"].items():
        lines.append(f"{name:<{width}}  {'absent' if iou is None else f'{iou:6.4f}'}")
    for name, value in (("mean IoU", metrics["mean_iou"]), ("pixel accuracy", metrics["pixel_accuracy"])):
        lines.append(f"{name:<{width}}  {'no label' if value is None else f'{value:6.4f}'}")
    lines.append(f"{metrics['num_images']} images, {metrics['seconds_per_image']:.3f} s an image")
    if (share := metrics.get("labelled_fraction", 1.0)) < STROKES:
        lines.append(
            f"Only {share:.1%} of the pixels have a label. Strokes are drawn where it is easy, and a model knows those "
            f"that it learned from: whole masks of other images say what it is worth."
        )
    return "\n".join(lines)
