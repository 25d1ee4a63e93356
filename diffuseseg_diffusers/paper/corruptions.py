# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU under common corruptions (Hendrycks and Dietterich, ICLR 2019) at five severities."""

from dataclasses import replace
from functools import partial

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..datasets.labeled import LabeledImage, LabeledImages
from ..images.image_processor import to_eight_bit
from ..jobs.errors import UserError
from ..jobs.install import missing_extra
from .study import Study, StudyReport, images_fingerprint


NAME = "corruptions"
SEVERITIES = range(1, 6)


class Corrupted(LabeledImages):
    """Labelled images under one of [`corruption_names`] at a severity of 1 to 5; masks stay as they are."""

    def __init__(self, dataset: LabeledImages, corruption: str, severity: int):
        self.__dict__.update(dataset.__dict__)
        self.corruption, self.severity = corruption, severity

    def __getitem__(self, index: int) -> LabeledImage:
        from imagecorruptions import corrupt

        row = super().__getitem__(index)
        image = to_eight_bit(row.picture)
        state = np.random.get_state()
        np.random.seed(index)  # the library draws from numpy's global generator
        try:
            rgb = np.asarray(image.convert("RGB"))
            pixels = corrupt(rgb, severity=self.severity, corruption_name=self.corruption)
        finally:
            np.random.set_state(state)
        return replace(row, image=PIL.Image.fromarray(pixels.astype(np.uint8)).convert(image.mode))


def corruption_names() -> list[str]:
    """The fifteen common corruptions.

    Raises:
        UserError: `imagecorruptions` is not installed, or cannot be used; says why.
    """
    try:
        from imagecorruptions import get_corruption_names
    except ModuleNotFoundError as error:
        raise missing_extra("analysis", error.name) from error
    except ImportError as error:  # where a library of the system is missing that OpenCV wants
        raise UserError(f"imagecorruptions cannot be used ({error}); install what it lacks.") from error
    return get_corruption_names("common")


def check_corruptions(study: Study) -> None:
    """Refuses to begin without `imagecorruptions` or without test images."""
    corruption_names()
    study.need_test()
    _ = study.extractor


def corruptions(study: Study) -> StudyReport:
    """Mean IoU on test images, clean and under every corruption at every severity, of one head."""
    test = study.need_test()
    settings = study.settings | study.read | {"test_images": images_fingerprint(test)}
    results = study.results(NAME, settings)
    pairs = [(name, severity) for name in corruption_names() for severity in SEVERITIES]
    if any(key not in results.by_key for key in ("clean", *(f"{name} {severity}" for name, severity in pairs))):
        study.fit(study.dataset, study.seed)

    def measured(images: LabeledImages) -> dict:
        return {"mean_iou": study.measure(images)}

    clean = results.get("clean", partial(measured, test))["mean_iou"]
    rows = []
    for name, severity in tqdm(pairs, "Corruptions", unit="cell"):
        corrupted = partial(measured, Corrupted(test, name, severity))
        mean_iou = results.get(f"{name} {severity}", corrupted)["mean_iou"]
        relative = mean_iou / clean if clean else None
        rows.append({"corruption": name, "severity": severity, "mean_iou": mean_iou, "relative": relative})
    summary = [f"{'mean IoU':<18} clean {clean:.4f}; severity" + "".join(f"{s:>8}" for s in SEVERITIES)]
    for name in corruption_names():
        summary.append(f"{name:<38}" + "".join(f"{r['mean_iou']:>8.4f}" for r in rows if r["corruption"] == name))
    return StudyReport(rows, settings, summary, {"clean": clean})
