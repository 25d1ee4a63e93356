# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pages of images: a panel for each, in the colours of the classes, with the texts that belong to them."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from diffuseseg_diffusers.evaluation.evaluate import Example
from diffuseseg_diffusers.figures.curves import PALETTE
from diffuseseg_diffusers.figures.pages import ERROR_COLOR, cluster_page, contact_sheet, examples_page, samples_page
from diffuseseg_diffusers.images.image_processor import default_palette, overlay

from ..conftest import draw


NAMES = ["sky", "disc", "bar"]
COLORS = default_palette(3)


def drawn(count: int, size=(20, 24), channels: int = 1) -> list[tuple[Image.Image, np.ndarray]]:
    return [(Image.fromarray(image), mask) for image, mask in (draw(size, i, channels) for i in range(count))]


def rendered(figure: Figure) -> Image.Image:
    """The figure as the PNG file that a command writes."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as image:
        assert image.format == "PNG" and image.size == pytest.approx(figure.dpi * figure.get_size_inches(), abs=1)
        return image.convert("RGB")


def panels(figure) -> list[np.ndarray]:
    """What each panel that is seen shows, row by row."""
    return [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.axison]


def row_titles(figure) -> list[str]:
    return [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]


def legend_of(figure) -> dict[str, tuple[float, ...]]:
    legend = figure.legends[0]
    colors = [patch.get_facecolor()[:3] for patch in legend.get_patches()]
    return dict(zip([text.get_text() for text in legend.get_texts()], colors))


def assert_names_the_classes(figure) -> None:
    legend = legend_of(figure)
    assert list(legend) == NAMES
    for name, color in zip(NAMES, COLORS):
        assert legend[name] == pytest.approx([c / 255 for c in color])


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_shown_with_masks_in_the_colours_of_their_classes(channels):
    images, masks = zip(*drawn(3, channels=channels))
    figure = samples_page(images, masks, NAMES, COLORS)
    assert len(figure.axes) == 9 and row_titles(figure) == ["image", "mask", "overlay"]
    assert_names_the_classes(figure)
    shown = panels(figure)
    for i in range(3):
        assert np.array_equal(shown[i], np.asarray(images[i]))
        assert np.array_equal(shown[3 + i], np.array(COLORS, np.uint8)[masks[i]])
        assert np.array_equal(shown[6 + i], np.asarray(overlay(images[i], masks[i], COLORS)))
    page = np.asarray(rendered(figure)).reshape(-1, 3)
    for color in COLORS:
        assert (page == color).all(1).sum() > 100


def test_pipelines_masks_can_be_given_as_they_are():
    (image, mask), *_ = drawn(1)
    paletted = Image.fromarray(mask)
    paletted.putpalette(sum(COLORS, []))
    assert np.array_equal(panels(samples_page([image], [paletted], NAMES, COLORS))[1], np.array(COLORS, np.uint8)[mask])


def test_examples_show_errors_and_the_share_that_is_right():
    (image, mask), (other, reference) = drawn(2)
    prediction = reference.copy()
    prediction[:5] = (reference[:5] + 1) % 3  # a quarter of the rows is wrong
    reference[10:15] = 255  # and another not labelled
    uncertainty = np.linspace(0, 0.7, mask.size, dtype=np.float32).reshape(mask.shape)
    examples = [Example(image, mask, mask, uncertainty / 2), Example(other, reference, prediction, uncertainty)]
    figure = examples_page(examples, NAMES, COLORS)
    assert len(figure.axes) == 10
    assert row_titles(figure) == ["image", "reference", "prediction", "errors", "uncertainty"]
    assert [axis.get_title() for axis in figure.axes[4:6]] == ["100.0% right", "66.7% right"]
    shown = panels(figure)
    assert np.array_equal(shown[3], np.asarray(overlay(other, reference, COLORS, alpha=0.6)))
    errors = (shown[7] == ERROR_COLOR).all(-1)
    assert errors[:5].all() and not errors[5:].any() and not (shown[6] == ERROR_COLOR).all(-1).any()
    for axis, i in zip(figure.axes[8:], (0, 1)):
        assert np.array_equal(np.asarray(axis.images[0].get_array()), examples[i].uncertainty)
        assert axis.images[0].get_clim() == pytest.approx((0, 0.7))  # one scale for all
    rendered(figure)


def test_the_legend_says_that_a_black_first_class_is_left_unpainted():
    ((image, mask),) = drawn(1)
    assert COLORS[0] == [0, 0, 0]
    legend = legend_of(examples_page([Example(image, mask, mask, None)], NAMES, COLORS))
    assert list(legend) == [f"{NAMES[0]} (unpainted)", *NAMES[1:]] and legend[f"{NAMES[0]} (unpainted)"] == (1, 1, 1)


def test_examples_of_students_have_no_row_of_uncertainty():
    (image, mask), *_ = drawn(1)
    figure = examples_page([Example(image, mask, mask, None)], NAMES, COLORS)
    assert row_titles(figure) == ["image", "reference", "prediction", "errors"] and len(figure.axes) == 4
    rendered(figure)


def test_an_example_without_labels_has_no_share():
    (image, mask), *_ = drawn(1)
    nothing = np.full_like(mask, 255)
    figure = examples_page([Example(image, nothing, mask, np.zeros(mask.shape, np.float32))], NAMES, COLORS)
    assert not any(axis.get_title() for axis in figure.axes)
    rendered(figure)


def test_the_contact_sheet_has_a_block_for_each_part_with_as_many_columns_as_images():
    labeled, generated = drawn(2), [(image, Image.fromarray(mask)) for image, mask in drawn(3)]
    tested = [Example(image, mask, (mask + 1) % 3, np.zeros(mask.shape)) for image, mask in drawn(4)]
    figure = contact_sheet(labeled, tested, generated, NAMES, COLORS)
    *blocks, legend = figure.subfigs
    assert [b.texts[0].get_text() for b in blocks] == ["2 labelled images", "4 unseen images", "3 generated images"]
    assert [row_titles(b) for b in blocks] == [
        ["image", "mask"],
        ["image", "reference", "prediction"],
        ["image", "mask"],
    ]
    assert [len(panels(b)) for b in blocks] == [2 * 2, 3 * 4, 2 * 3]
    assert_names_the_classes(legend)
    colors = np.array(COLORS, np.uint8)
    assert np.array_equal(panels(blocks[0])[2], colors[labeled[0][1]])
    assert np.array_equal(panels(blocks[1])[8], colors[tested[0].prediction])
    assert np.array_equal(panels(blocks[2])[5], colors[np.asarray(generated[2][1])])
    rendered(figure)
    without = contact_sheet(labeled, tested, [], NAMES, COLORS)
    assert len(without.subfigs) == 3  # two blocks and the legend


@pytest.mark.parametrize("num_clusters", [3, 12])
def test_clusters_have_a_colour_each_in_a_panel_for_each_block_and_timestep(num_clusters):
    images = [image for image, _ in drawn(2)]
    keys = [(block, step) for block in (5, 8) for step in (50, 150, 250)]
    rng = np.random.default_rng(0)
    maps = {key: [rng.permutation(np.arange(30) % num_clusters).reshape(5, 6) for _ in images] for key in keys}
    figure = cluster_page(images, maps, num_clusters)
    assert len(figure.subfigs) == 2
    for number, part in enumerate(figure.subfigs):
        grid = np.array(part.axes).reshape(2, 4)
        assert np.array_equal(np.asarray(grid[0, 0].images[0].get_array()), np.asarray(images[number]))
        assert not grid[1, 0].axison  # the image is shown once
        assert [axis.get_title() for axis in grid[0]] == ["", "t = 50", "t = 150", "t = 250"]
        assert [axis.get_ylabel() for axis in grid[:, 1]] == (["block 5", "block 8"] if number == 0 else ["", ""])
        for i, block in enumerate((5, 8)):
            for j, step in enumerate((50, 150, 250)):
                shown = np.asarray(grid[i, j + 1].images[0].get_array())  # [h,w,3]
                ids = maps[block, step][number]
                colors = {tuple(color) for color in shown.reshape(-1, 3)}
                assert len(colors) == num_clusters
                for k in range(num_clusters):
                    assert len({tuple(color) for color in shown[ids == k]}) == 1
                if num_clusters <= len(PALETTE):
                    assert shown[ids == 1][0] / 255 == pytest.approx(to_rgb(PALETTE[1]))
    rendered(figure)


def test_the_legend_of_a_narrow_sheet_stays_within_it():
    image, names = Image.new("RGB", (16, 16)), [f"a long name of class {i}" for i in range(9)]
    mask = np.zeros((16, 16), np.uint8)
    figure = contact_sheet([(image, mask)], [], [], names, [[20 * i] * 3 for i in range(9)])
    figure.savefig(io.BytesIO())
    (legend,) = [found for part in figure.subfigs for found in part.legends]
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0
