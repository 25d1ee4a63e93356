# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Accuracy on drawn faces, which everybody has; and on real ones where the shared material is at hand."""

import pytest

from diffuseseg_diffusers import (
    DiffuseSegPipeline,
    LabeledImages,
    evaluate_segmentation,
    fit_segmentation_head,
    load_labeled_images,
)
from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL, drawn_faces

from .conftest import shared


def test_eight_labelled_drawings_teach_a_head_what_unseen_drawings_show():
    pipe = DiffuseSegPipeline.from_pretrained(SHIPPED_MODEL)
    labeled, unseen = (
        LabeledImages(drawn_faces(s, n), label_names=LABEL_NAMES) for s, n in (("train", 8), ("test", 12))
    )
    pipe.segmentation_head = fit_segmentation_head(pipe, labeled, recipe="fast", num_members=2)
    metrics, _ = evaluate_segmentation(pipe, unseen, show_progress=False)
    assert metrics["mean_iou"] > 0.5
    assert metrics["per_class_iou"]["background"] > 0.85 and metrics["per_class_iou"]["skin"] > 0.6


@pytest.mark.slow
def test_twenty_labelled_photographs_teach_a_head_what_fifty_others_show():
    pipe = DiffuseSegPipeline.from_pretrained(shared("checkpoints/faces64-ddpm"))
    train, test = (load_labeled_images(shared("data/faces64"), "labeled", s) for s in ("train", "test"))
    pipe.segmentation_head = fit_segmentation_head(pipe, train, recipe="fast", num_members=2)
    metrics, _ = evaluate_segmentation(pipe, test.select(range(12)), show_progress=False)
    assert metrics["mean_iou"] > 0.8
