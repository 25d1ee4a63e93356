# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What labels are worth: mean IoU on test images over the number of labelled ones."""

from functools import partial
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..jobs.errors import UserError
from .study import Study, StudyReport, images_fingerprint


NAME = "labels"


def label_draws(num_images: int, count: int, draws: int, seed: int = 0) -> list[list[int]]:
    """Which images several draws of `count` labelled ones hold."""
    rng = np.random.default_rng([seed, count])
    return [sorted(rng.permutation(num_images)[:count].tolist()) for _ in range(draws)]


def check_labels(study: Study) -> None:
    """Refuses counts of which there are not as many images, and missing test images, before the long work."""
    study.need_test()
    _ = study.extractor
    if not _counts(study):
        asked = f"--counts {' '.join(map(str, study.counts))} asks for more than the {len(study.dataset)} images"
        raise UserError(f"{asked} that there are; give a smaller number.")


def labels(study: Study) -> StudyReport:
    """Mean IoU on test images over the number of labelled images, each number drawn several times.

    A head is fitted for each draw, as `diffuseseg fit` would on these images, with seeds that differ.
    """
    test = study.need_test()
    settings = study.settings | study.read | {"test_images": images_fingerprint(test)}
    results = study.results(NAME, settings)

    def compute(images: list[int], seed: int) -> dict:
        study.fit(study.dataset.select(images), seed)
        return {"mean_iou": study.measure(test), "images": images}

    rows, summary = [], []
    with tqdm(total=len(_counts(study)) * study.draws, desc="Labelled images", unit="head") as bar:
        for count in _counts(study):
            own = []
            for draw, images in enumerate(label_draws(len(study.dataset), count, study.draws, study.seed)):
                key = f"{count} labelled, draw {draw}"
                own.append(results.get(key, partial(compute, images, study.seed + draw)))
                bar.update()
            rows.append({"labelled_images": count, **_spread([result["mean_iou"] for result in own])})
            rows[-1]["images"] = [result["images"] for result in own]
            summary.append(f"{count:>3} labelled: {rows[-1]['mean']:.4f} ± {rows[-1]['std']:.4f}")
    return StudyReport(rows, settings, summary)


def _counts(study: Study) -> list[int]:
    return [count for count in study.counts if count <= len(study.dataset)]


def _spread(scores: list[float]) -> dict:
    summary: dict[str, Any] = {"mean": np.mean, "std": np.std, "least": np.min, "most": np.max}
    return {**{name: float(of(scores)) for name, of in summary.items()}, "mean_iou": scores}
