# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Compares models on the same labelled images: accuracy with confidence intervals, speed and size."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm.auto import tqdm

from ..datasets.labeled import LabeledImages
from ..jobs.errors import UserError
from ..pipelines.segmenter import Segmenter
from .evaluate import segment_rows


RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percentiles
SEED = 0


def compare_models(
    models: Mapping[str, Segmenter], dataset: LabeledImages, batch_size: int = 8, show_progress: bool = True
) -> list[dict]:
    """Segments labelled images with several models, in turn on every batch, and compares.

    Args:
        models (mapping): Name to [`Segmenter`]; all of the same classes.
        dataset, batch_size, show_progress: As in [`evaluate_segmentation`].

    Returns:
        A `dict` for each model: `model`; `mean_iou`, `worst_class` and `worst_iou`, `per_class_iou` (class name to 0 to
        1, or `None` for an absent class); `interval`, 95 % of the mean IoU over images drawn with replacement
        (percentile bootstrap); `difference` to the first model and its `difference_interval`, of the same draws;
        `seconds_per_image`, the median over batches without the first, which warms up, where there are several; and
        `megabytes` of weights.

    Raises:
        UserError: The models have different classes.
    """
    reference, classes = next((name, model.label_names) for name, model in models.items())
    for name, model in models.items():
        if model.label_names != classes:
            raise UserError(
                f"{name} has the classes {', '.join(model.label_names)}, but {reference} has {', '.join(classes)}; "
                f"compare models of the same classes."
            )
    counts: dict[str, list] = {name: [] for name in models}
    seconds: dict[str, list] = {name: [] for name in models}
    with tqdm(total=len(dataset), desc="Comparing", unit="image", disable=not show_progress) as bar:
        for start in range(0, len(dataset), batch_size):
            rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
            for name, model in models.items():
                began = time.perf_counter()
                found = segment_rows(model, rows, batch_size, tiled=dataset.tiling is None)
                seconds[name].append((time.perf_counter() - began) / len(rows))
                for row, (mask, _) in zip(rows, found):
                    counts[name].append(overlaps(row.mask, mask, len(classes), dataset.ignore_index))
            bar.update(len(rows))

    drawn = np.random.default_rng(SEED).integers(len(dataset), size=(RESAMPLES, len(dataset)))
    times = np.stack([np.bincount(row, minlength=len(dataset)) for row in drawn]).astype(float)  # [R,N]
    results, first = [], None
    for name, model in models.items():
        whole = np.stack(counts[name])  # [N,3,C]
        iou = class_iou(whole.sum(0))  # [C]
        if np.isnan(iou).all():
            raise UserError("No pixel of the images has a label, so there is nothing to compare.")
        drawn_again = (times @ whole.reshape(len(whole), -1)).reshape(-1, *whole.shape[1:])  # [R,3,C]
        resampled = np.nanmean(class_iou(drawn_again), axis=1)  # [R]
        mean = float(np.nanmean(iou))
        first = first or (mean, resampled)
        worst = int(np.nanargmin(iou))
        results.append(
            {
                "model": name,
                "mean_iou": mean,
                "interval": np.percentile(resampled, INTERVAL).tolist(),
                "difference": mean - first[0],
                "difference_interval": np.percentile(resampled - first[1], INTERVAL).tolist(),
                "worst_class": classes[worst],
                "worst_iou": float(iou[worst]),
                "per_class_iou": {n: None if np.isnan(x) else float(x) for n, x in zip(classes, iou)},
                "seconds_per_image": float(np.median(seconds[name][1:] or seconds[name])),
                "megabytes": model.nbytes / 1e6,
            }
        )
    return results


def overlaps(reference: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    """Pixels of each class in both masks, in the reference and in the prediction: `[3, num_classes]` float64."""
    known = reference != ignore_index
    own, found = reference[known], prediction[known]
    parts = (own[own == found], own, found)
    return np.stack([np.bincount(part, minlength=num_classes)[:num_classes] for part in parts]).astype(float)


def class_iou(counts: np.ndarray) -> np.ndarray:
    """`[..., 3, C]` counts of [`overlaps`] to the IoU of each class, `[..., C]`; NaN where it is absent from both."""
    both, own, found = np.moveaxis(counts, -2, 0)
    with np.errstate(invalid="ignore"):
        return both / (own + found - both)


def format_comparison(results: Sequence[dict]) -> str:
    """The table that `compare` prints."""
    rows = [["model", "mean IoU", "95 %", "difference, 95 %", "worst class", "s an image", "MB"]]
    for r in results:
        low, high = r["interval"]
        less, more = r["difference_interval"]
        rows.append(
            [
                r["model"],
                f"{r['mean_iou']:.4f}",
                f"{low:.4f} to {high:.4f}",
                f"{r['difference']:+.4f}, {less:+.4f} to {more:+.4f}" if rows[1:] else "",
                f"{r['worst_class']} {r['worst_iou']:.4f}",
                f"{r['seconds_per_image']:.4f}",
                f"{r['megabytes']:.1f}",
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)
