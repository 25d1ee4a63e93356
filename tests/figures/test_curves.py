# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Curves and heat maps: each value where its axes say, with the texts that belong to it."""

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from diffuseseg_diffusers.figures.curves import (
    PALETTE,
    accuracy_over_speed,
    block_curves,
    block_heat_map,
    corruption_curves,
    label_curves,
    training_curves,
    uncertainty_histogram,
)

from .test_pages import rendered


def lines_of(axis) -> dict[str, tuple[list, list]]:
    """x and y of each line that has a label."""
    named = [line for line in axis.lines if not line.get_label().startswith("_")]
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def legend_texts(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def ticks(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


ROWS = [
    {"block": block, "timestep": step, "mean_iou": value, "small_mean_iou": value / 2, "large_mean_iou": value + 0.1}
    for (block, step), value in {(5, 150): 0.6, (5, 50): 0.5, (8, 50): 0.7, (8, 150): 0.8}.items()
]


def test_the_histogram_counts_every_image_once_as_kept_or_left_out():
    scores = np.array([0.1, 0.2, 0.2, 0.9, 0.95])
    figure = uncertainty_histogram(scores, np.array([0, 1, 2]))
    (axis,) = figure.axes
    kept, left_out = ([patch.get_height() for patch in bars] for bars in axis.containers)
    assert sum(kept) == 3 and sum(left_out) == 2
    assert axis.containers[0][0].get_facecolor() == to_rgba(PALETTE[0])
    assert legend_texts(axis.get_legend()) == ["kept (3)", "left out (2)"]
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("uncertainty of the image (nats)", "images")
    edges = [bar.get_x() + bar.get_width() for bar in axis.containers[0]]
    assert edges[-1] == pytest.approx(0.95)
    rendered(figure)
    rendered(uncertainty_histogram(np.zeros(3), np.array([0])))  # without any


def test_a_training_is_shown_over_steps_and_by_timestep_at_its_end():
    entries = [{"step": step, "loss": 1 / step} for step in range(1, 201)]
    for step in (100, 200):
        entries.append({"step": step, "validation": [0.1, 0.3, step / 1000], "train_sample": [0.1, 0.1, 0.1]})
    figure = training_curves(entries)
    over_steps, by_timestep = figure.axes
    lines = lines_of(over_steps)
    assert list(lines) == ["training batches", "held-out images", "training images"]
    assert lines["training batches"][0] == list(range(1, 201))
    assert lines["held-out images"][0] == [100, 200]
    assert lines["held-out images"][1] == pytest.approx([0.5 / 3, 0.6 / 3])
    assert over_steps.get_yscale() == by_timestep.get_yscale() == "log"
    assert (over_steps.get_xlabel(), over_steps.get_ylabel()) == ("step", "denoising loss")
    low, high = over_steps.get_ylim()
    assert low < min(lines["training batches"][1]) < high
    lines = lines_of(by_timestep)
    assert lines["held-out images"][1] == pytest.approx([0.1, 0.3, 0.2])  # those of the last step
    assert list(lines) == legend_texts(by_timestep.get_legend()) == ["held-out images", "training images"]
    assert by_timestep.get_title() == "denoising loss at the end"
    rendered(figure)


@pytest.mark.parametrize("entries", [[], [{"step": 1, "loss": 0.5}], [{"step": 5, "validation": [0.1, 0.2]}]])
def test_a_training_that_has_just_begun_can_be_shown(entries):
    figure = training_curves(entries)
    assert [axis.get_legend() is not None for axis in figure.axes] == [len(entries) > 0, "validation" in str(entries)]
    rendered(figure)


def test_a_curve_for_each_block_in_a_panel_for_each_kind_of_classes():
    named = {**ROWS[0], "block": "up_blocks.0"}  # numbers first
    assert legend_texts(block_curves([named, *ROWS]).legends[0])[-1] == "block up_blocks.0"
    figure = block_curves(ROWS)
    assert [axis.get_title() for axis in figure.axes] == ["all classes", "small classes", "large classes"]
    for axis, values in zip(figure.axes, ([0.5, 0.6, 0.7, 0.8], [0.25, 0.3, 0.35, 0.4], [0.6, 0.7, 0.8, 0.9])):
        lines = lines_of(axis)
        assert list(lines) == ["block 5", "block 8"] and axis.get_xlabel() == "diffusion timestep"
        assert lines["block 5"][0] == lines["block 8"][0] == [50, 150]
        assert lines["block 5"][1] + lines["block 8"][1] == pytest.approx(values)
    assert figure.axes[0].get_ylabel() == "mean IoU, cross-validated"
    assert legend_texts(figure.legends[0]) == ["block 5", "block 8"]
    rendered(figure)


def test_the_heat_map_holds_each_value_at_its_block_and_timestep_and_says_it_in_percent():
    figure = block_heat_map([*ROWS, {"block": "mid_block", "timestep": 150, "mean_iou": 0.25}])
    axis, bar = figure.axes
    values = np.ma.filled(axis.images[0].get_array(), np.nan)
    np.testing.assert_allclose(values, [[0.5, 0.6], [0.7, 0.8], [np.nan, 0.25]])
    assert ticks(axis.xaxis) == ["50", "150"] and ticks(axis.yaxis) == ["5", "8", "mid_block"]
    assert axis.get_xlabel() == "diffusion timestep" and axis.get_ylabel() == "block (of a decoder 0: the deepest)"
    assert {text.get_position(): text.get_text() for text in axis.texts} == {
        (0, 0): "50",
        (1, 0): "60",
        (0, 1): "70",
        (1, 1): "80",
        (1, 2): "25",
    }
    colors = {text.get_text(): text.get_color() for text in axis.texts}
    assert colors["25"] == "w" and colors["80"] == "k"  # legible on dark and on light
    assert bar.get_ylabel() == "mean IoU, cross-validated"
    rendered(figure)


def test_a_curve_for_each_method_over_the_number_of_labels_with_the_spread():
    counts = [5, 10, 20]
    methods = {
        name: [{"labelled_images": n, "mean": m, "least": m - 0.1, "most": m + 0.1} for n, m in zip(counts, means)]
        for name, means in {"ours": [0.5, 0.6, 0.7], "from pixels": [0.2, 0.3, 0.4]}.items()
    }
    figure = label_curves(methods)
    (axis,) = figure.axes
    lines = lines_of(axis)
    assert {name: y for name, (_, y) in lines.items()} == {"ours": [0.5, 0.6, 0.7], "from pixels": [0.2, 0.3, 0.4]}
    assert lines["ours"][0] == counts and legend_texts(axis.get_legend()) == ["ours", "from pixels"]
    assert ticks(axis.xaxis) == ["5", "10", "20"] and axis.get_xscale() == "log"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("labelled images", "mean IoU on test images")
    spread = axis.collections[0].get_paths()[0].vertices
    assert spread[:, 1].min() == pytest.approx(0.4) and spread[:, 1].max() == pytest.approx(0.8)
    rendered(figure)


def test_corruptions_are_grouped_and_start_from_the_clean_images():
    names = ["gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur"]
    rows = [{"corruption": n, "severity": s, "mean_iou": 0.8 - 0.1 * s} for n in names for s in (3, 1)]
    figure = corruption_curves(rows, clean=0.8)
    noise, blur = figure.axes
    assert list(lines_of(noise)) == ["gaussian noise", "shot noise", "impulse noise"]
    assert list(lines_of(blur)) == legend_texts(blur.get_legend()) == ["defocus blur"]
    x, y = lines_of(blur)["defocus blur"]
    assert x == [0, 1, 3] and y == pytest.approx([0.8, 0.7, 0.5])
    assert noise.get_ylabel() == "mean IoU" and noise.get_xlabel() == "severity (0: clean)"
    assert ticks(noise.xaxis) == [str(i) for i in range(6)]
    rendered(figure)


def test_accuracy_over_speed_has_a_point_with_an_interval_for_each_model():
    rows = [
        {"model": name, "mean_iou": iou, "interval": [iou - 0.1, iou + 0.05], "seconds_per_image": seconds}
        for name, iou, seconds in (("head", 0.8, 0.1), ("student", 0.7, 0.004))
    ]
    figure = accuracy_over_speed(rows)
    (axis,) = figure.axes
    assert legend_texts(axis.get_legend()) == ["head", "student"] and axis.get_xscale() == "log"
    for container, row in zip(axis.containers, rows):
        data, _, (bars,) = container
        assert (list(data.get_xdata()), list(data.get_ydata())) == (
            [1000 * row["seconds_per_image"]],
            [row["mean_iou"]],
        )
        ends = bars.get_segments()[0][:, 1]
        np.testing.assert_allclose(sorted(ends), row["interval"])
    assert rendered(figure)
