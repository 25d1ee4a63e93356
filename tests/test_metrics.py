# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import tracemalloc

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from diffuseseg_diffusers.metrics import MEAN_IOU

from .conftest import shared


@pytest.fixture(scope="module")
def metric():
    return evaluate.load(MEAN_IOU)


def plain_iou(predictions, references, num_labels, ignore_index=255):
    """The formula, class by class over the whole set."""
    predictions = np.concatenate([p.ravel() for p in predictions])
    references = np.concatenate([r.ravel() for r in references])
    kept = references != ignore_index
    result = []
    for c in range(num_labels):
        a, b = (predictions == c) & kept, (references == c) & kept
        result.append((a & b).sum() / (a | b).sum() if (a | b).any() else np.nan)
    return np.array(result)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), labels=st.integers(2, 6))
def test_it_is_the_plain_formula_over_the_whole_set(metric, seed, count, labels):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, (count, 2))
    predictions = [rng.integers(0, labels, s).astype(np.uint8) for s in sizes]
    references = [rng.choice([*range(labels), 255], s).astype(np.uint8) for s in sizes]
    result = metric.compute(predictions=predictions, references=references, num_labels=labels)
    expected = plain_iou(predictions, references, labels)
    np.testing.assert_allclose(result["per_category_iou"], expected)
    if not np.isnan(expected).all():
        assert result["mean_iou"] == pytest.approx(np.nanmean(expected))


def test_the_published_figure_is_reproduced(metric):
    reference = load_file(shared("reference/mean_iou.safetensors"))
    for p, r in zip(reference["predictions"], reference["references"]):
        metric.add(prediction=p, reference=r)
    result = metric.compute(num_labels=7, absent_as_zero=True)
    assert result["mean_iou"] == pytest.approx(reference["mean_iou"].item(), abs=1e-6)


def test_absent_classes_are_nan_or_zero_and_an_ignored_class_is_none(metric):
    mask = np.array([[0, 0, 1, 255]])
    result = metric.compute(predictions=[mask.clip(0, 1)], references=[mask], num_labels=4)
    assert result["mean_iou"] == 1 and np.isnan(result["per_category_iou"][2:]).all()
    result = metric.compute(predictions=[mask.clip(0, 1)], references=[mask], num_labels=4, absent_as_zero=True)
    assert result["mean_iou"] == 0.5 and result["per_category_iou"].tolist() == [1, 1, 0, 0]
    for absent_as_zero in (False, True):
        result = metric.compute(
            predictions=[np.array([[1, 1, 0]])],
            references=[np.array([[0, 1, 1]])],
            num_labels=2,
            ignore_index=0,
            absent_as_zero=absent_as_zero,
        )
        assert np.isnan(result["per_category_iou"][0]) and result["mean_iou"] == 0.5


def test_computing_starts_anew(metric):
    ones = np.ones((2, 2), np.uint8)
    assert metric.compute(predictions=[ones * 0], references=[ones], num_labels=2)["mean_iou"] == 0
    assert metric.compute(predictions=[ones], references=[ones], num_labels=2)["mean_iou"] == 1


def test_memory_does_not_grow_with_the_number_of_images(metric):
    image = np.random.default_rng(0).integers(0, 5, (128, 128)).astype(np.uint8)

    def peak(count):
        tracemalloc.start()
        for _ in range(count):
            metric.add(prediction=image, reference=image)
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        metric.compute(num_labels=5)
        return result

    assert peak(200) < 1.1 * peak(5)


@pytest.mark.parametrize(
    "prediction, reference, message",
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "differ in size"),
        (np.full((2, 2), 300), np.zeros((2, 2), int), "integers 0 to 255"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "integers 0 to 255"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "A prediction holds the class 3, but there are 3"),
        (np.zeros((2, 2), int), np.full((2, 2), 4), "A reference holds the class 4, but there are 3"),
    ],
)
def test_what_cannot_be_counted_is_refused(metric, prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        metric.compute(predictions=[prediction], references=[reference], num_labels=3)
    with pytest.raises(ValueError, match="`num_labels`"):
        metric.compute(predictions=[reference * 0], references=[reference * 0])


def test_predictions_on_ignored_pixels_count_if_asked_as_in_the_published_code():
    rng, metric = np.random.default_rng(0), evaluate.load(MEAN_IOU)
    for ignore_index in (255, 0):
        references = [rng.choice([*range(4), ignore_index], (9, 7)).astype(np.uint8) for _ in range(3)]
        predictions = [rng.integers(0, 4, (9, 7)).astype(np.uint8) for _ in range(3)]
        got = metric.compute(
            predictions=predictions,
            references=references,
            num_labels=4,
            ignore_index=ignore_index,
            absent_as_zero=True,
            count_ignored=True,
        )
        wanted = []
        for c in set(range(4)) - {ignore_index}:  # over all pixels, whatever their label
            both = sum(((p == c) & (r == c)).sum() for p, r in zip(predictions, references))
            either = sum(((p == c) | (r == c)).sum() for p, r in zip(predictions, references))
            wanted.append(both / either)
        assert got["mean_iou"] == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("label_map", [None, {3: 1, 4: 255}])
@pytest.mark.parametrize("reduce_labels", [False, True])
def test_it_takes_what_the_hubs_metric_takes(metric, label_map, reduce_labels):
    rng = np.random.default_rng(1)
    references = [rng.choice([0, 1, 2, 3, 4, 255], (9, 7)).astype(np.uint8) for _ in range(3)]
    predictions = [rng.integers(0, 4, (9, 7)).astype(np.uint8) for _ in range(3)]
    theirs = []
    for reference in references:  # as `evaluate-metric/mean_iou` changes them
        changed = reference.copy()
        for old, new in (label_map or {}).items():
            changed[changed == old] = new
        if reduce_labels:
            changed[changed == 0] = 255
            changed = changed - 1
            changed[changed == 254] = 255
        theirs.append(changed)
    how = dict(predictions=predictions, references=references, num_labels=6, ignore_index=255)
    found = metric.compute(**how, label_map=label_map, reduce_labels=reduce_labels, nan_to_num=-1)
    expected = np.nan_to_num(plain_iou(predictions, theirs, 6), nan=-1)
    np.testing.assert_allclose(found["per_category_iou"], expected)
    assert (found["per_category_iou"] == -1).any() and not np.isnan(found["mean_iou"])


def test_where_nothing_is_labelled_nan_is_replaced_on_request(metric):
    ignored = dict(predictions=[np.zeros((2, 2), int)], references=[np.full((2, 2), 255)], num_labels=2)
    assert np.isnan(metric.compute(**ignored)["mean_iou"])
    assert metric.compute(**ignored, nan_to_num=0)["mean_iou"] == 0
