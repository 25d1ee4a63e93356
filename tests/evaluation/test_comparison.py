# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers import evaluate_segmentation
from diffuseseg_diffusers.evaluation.comparison import class_iou, compare_models, format_comparison, overlaps
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import drawn_dataset, make_pipeline


NAMES = ["sky", "disc", "bar"]


@given(st.integers(2, 6), st.integers(0, 500))
@settings(max_examples=40, deadline=None)
def test_iou_is_intersection_over_union_of_pixels_with_a_label(num_classes, seed):
    rng = np.random.default_rng(seed)
    reference, prediction = rng.integers(0, num_classes, (2, 7, 9)).astype(np.uint8)
    reference[0] = 255
    found = class_iou(overlaps(reference, prediction, num_classes, 255))
    for label in range(num_classes):
        own, other = (reference == label)[1:], (prediction == label)[1:]
        union = (own | other).sum()
        assert (np.isnan(found[label]) and union == 0) or found[label] == (own & other).sum() / union


def test_models_are_compared_as_evaluate_measures_them_with_intervals():
    head, other = make_pipeline(head=True), new_unet(NAMES, (16, 16), 1)
    dataset = drawn_dataset(6)
    results = compare_models({"head": head, "unet": other, "again": head}, dataset, 4, show_progress=False)
    for result, model in zip(results, (head, other, head)):
        metrics, _ = evaluate_segmentation(model, dataset, show_progress=False)
        assert result["mean_iou"] == pytest.approx(metrics["mean_iou"])
        assert result["per_class_iou"] == pytest.approx(metrics["per_class_iou"])
        low, high = result["interval"]
        assert low <= result["mean_iou"] <= high and high - low > 0
        assert result["worst_iou"] == min(x for x in result["per_class_iou"].values() if x is not None)
        assert result["seconds_per_image"] > 0
    assert results[2]["difference"] == 0 and results[2]["difference_interval"] == [0, 0]
    assert results[1]["difference"] == pytest.approx(results[1]["mean_iou"] - results[0]["mean_iou"])
    weights = sum(p.numel() for p in other.model.parameters())
    assert results[1]["megabytes"] == pytest.approx(4e-6 * weights)
    assert results == [
        r | {"seconds_per_image": s["seconds_per_image"]}
        for r, s in zip(compare_models({"head": head, "unet": other, "again": head}, dataset, 4), results)
    ]
    table = format_comparison(results).splitlines()
    assert len(table) == 4 and table[1].startswith("head ") and f"{results[0]['mean_iou']:.4f}" in table[1]


def test_models_of_other_classes_are_refused():
    with pytest.raises(UserError, match="unet has the classes a, b, but head has sky, disc, bar"):
        compare_models({"head": make_pipeline(head=True), "unet": new_unet(["a", "b"], (16, 16), 1)}, drawn_dataset(2))
