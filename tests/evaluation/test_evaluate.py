# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import io

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers import ArrayRaster, LabeledImages, Tiling, evaluate_segmentation, segment_tiled
from diffuseseg_diffusers.evaluation.evaluate import format_metrics
from diffuseseg_diffusers.figures.pages import examples_page, samples_page

from ..conftest import dataset_of, draw, drawn_dataset, make_pipeline
from ..test_metrics import plain_iou


def test_metrics_are_those_of_the_masks_that_segment_gives_at_the_size_of_each_picture():
    pipe = make_pipeline(head=True)
    pairs = [draw((16 + i, 20), 50 + i) for i in range(5)]
    dataset = LabeledImages(dataset_of(*zip(*pairs)), num_classes=3)
    metrics, examples = evaluate_segmentation(pipe, dataset, batch_size=2, num_examples=3, show_progress=False)
    masks = pipe.segment([i for i, _ in pairs], batch_size=2, output_type="np").masks
    expected = plain_iou(masks, [m for _, m in pairs], 3)
    assert metrics["mean_iou"] == pytest.approx(expected.mean()) and metrics["mean_iou"] > 0.6
    assert list(metrics["per_class_iou"]) == ["sky", "disc", "bar"]
    assert list(metrics["per_class_iou"].values()) == pytest.approx(list(expected))
    assert metrics["num_images"] == 5 and metrics["seconds_per_image"] > 0
    assert len(examples) == 3 and np.array_equal(examples[1].prediction, masks[1])


def test_absent_classes_are_none_and_left_out_of_the_mean_unless_they_count_as_zero():
    pipe = make_pipeline(head=True)
    image, mask = draw((16, 16), 60)
    mask[mask == 1] = 255
    dataset = LabeledImages(dataset_of([image], [mask]), num_classes=3)
    metrics, _ = evaluate_segmentation(pipe, dataset, show_progress=False)
    prediction = pipe.segment(image, output_type="np").masks[0]
    assert (metrics["per_class_iou"]["disc"] is None) == (not (prediction[mask != 255] == 1).any())
    zero, _ = evaluate_segmentation(pipe, dataset, absent_as_zero=True, show_progress=False)
    assert zero["per_class_iou"]["disc"] == 0.0 and zero["mean_iou"] <= metrics["mean_iou"]


def test_where_no_pixel_has_a_label_there_is_no_number():
    pipe = make_pipeline(head=True)
    image, mask = draw((16, 16), 60)
    dataset = LabeledImages(dataset_of([image], [np.full_like(mask, 255)]), num_classes=3)
    metrics, _ = evaluate_segmentation(pipe, dataset, show_progress=False)
    assert metrics["mean_iou"] is None and metrics["pixel_accuracy"] is None
    assert "no label" in format_metrics(metrics) and "Only 0.0% of the pixels have a label." in format_metrics(metrics)


def test_strokes_are_told_from_masks():
    image, mask = draw((20, 20), 60)
    strokes = np.full_like(mask, 255)
    strokes[10, 2:10] = mask[10, 2:10]  # 8 of 400
    said = []
    for labels in (mask, strokes):
        dataset = LabeledImages(dataset_of([image], [labels]), num_classes=3)
        metrics, _ = evaluate_segmentation(make_pipeline(head=True), dataset, show_progress=False)
        assert metrics["labelled_fraction"] == (labels != 255).mean()
        said.append(format_metrics(metrics))
    assert "have a label" not in said[0] and "Only 2.0% of the pixels have a label." in said[1]


def test_examples_show_every_class_wherever_its_images_are():
    pipe = make_pipeline(head=True)
    pairs = [draw((16, 16), seed) for seed in range(9)]
    for i, (_, mask) in enumerate(pairs):
        if i != 5:
            mask[mask == 1] = 0  # the disc is on one image alone
    dataset = LabeledImages(dataset_of(*zip(*pairs)), num_classes=3)
    _, examples = evaluate_segmentation(pipe, dataset, batch_size=2, num_examples=3, show_progress=False)
    shown = [next(i for i, (x, _) in enumerate(pairs) if np.array_equal(x, np.asarray(e.image))) for e in examples]
    assert shown == [0, 3, 5]  # else evenly spread


def picture(figure):
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)


def test_pages_show_the_classes_in_their_colours():
    pipe = make_pipeline(head=True)
    dataset = drawn_dataset(3, seed=70)
    _, examples = evaluate_segmentation(pipe, dataset, num_examples=3, show_progress=False)
    page = picture(examples_page(examples, pipe.label_names, pipe.palette))
    output = pipe.segment([dataset[i].image for i in range(3)])
    samples = picture(samples_page(output.images, output.masks, pipe.label_names, pipe.palette))
    for pixels in (page, samples):
        for color in pipe.palette:  # in the legend and, in full, along the borders of classes
            assert (pixels == color).all(1).sum() > 50


def test_large_images_are_measured_by_tiles_as_they_are_segmented():
    pipe = make_pipeline(head=True)
    images = [draw((16, 16), seed) for seed in range(25)]
    image, mask = (
        np.concatenate([np.concatenate([images[5 * i + j][k] for j in range(5)], 1) for i in range(5)]) for k in (0, 1)
    )
    large = LabeledImages(dataset_of([image], [mask]), label_names=["sky", "disc", "bar"])
    metrics, (example,) = evaluate_segmentation(pipe, large, num_examples=1, show_progress=False)
    expected = segment_tiled(pipe, ArrayRaster(image), Tiling((16, 16)))
    assert np.array_equal(example.prediction, expected.labels)
    assert np.array_equal(example.uncertainty, expected.uncertainty)
    assert metrics["pixel_accuracy"] == pytest.approx((expected.labels == mask).mean())
