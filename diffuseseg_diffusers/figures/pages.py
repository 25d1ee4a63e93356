# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pages of images: evaluated, generated, clustered, and whole experiments."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Patch

from ..evaluation.evaluate import Example
from ..images.image_processor import overlay, paints_first_class, to_eight_bit
from .curves import PALETTE


# What a panel shows, `[H, W]`, `[H, W, 3]` or a PIL image, and its caption.
Panel = tuple[PIL.Image.Image | np.ndarray, str]
ERROR_COLOR = (213, 94, 0)


def examples_page(
    examples: Sequence[Example],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    ignore_index: int = 255,
) -> Figure:
    """Evaluated images, a column each: image, reference, prediction, errors, uncertainty if all have it; and a legend.

    Args:
        examples (sequence of [`Example`]): What to show.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.
        ignore_index (`int`, defaults to 255): Reference pixels that count as no error.
    """
    titles = ["image", "reference", "prediction", "errors", "uncertainty"]
    maps = [e.uncertainty for e in examples if e.uncertainty is not None]
    columns: list[list] = []
    for e in examples:
        shown = to_eight_bit(e.image)
        wrong = (e.prediction != e.reference) & (e.reference != ignore_index)
        error = np.asarray(shown.convert("L").convert("RGB")).copy()
        error[wrong] = ERROR_COLOR
        counted = (e.reference != ignore_index).sum()
        caption = f"{1 - wrong.sum() / counted:.1%} right" if counted else ""
        columns.append(
            [
                (shown, ""),
                (overlay(shown, e.reference, palette, alpha=0.6), ""),
                (overlay(shown, e.prediction, palette, alpha=0.6), caption),
                (error, ""),
                *([(e.uncertainty, "")] if len(maps) == len(examples) else []),
            ]
        )
    top = max((m.max() for m in maps), default=None)
    if not paints_first_class(palette):
        label_names, palette = [f"{label_names[0]} (unpainted)", *label_names[1:]], [(255, 255, 255), *palette[1:]]
    return _page(columns, titles[: len(columns[0])], label_names, palette, top)


def samples_page(
    images: Sequence[PIL.Image.Image],
    masks: Sequence[PIL.Image.Image | np.ndarray],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Figure:
    """Images, a column each, above their masks and overlays; and a legend.

    Args:
        images (sequence of `PIL.Image.Image`): Generated or real ones.
        masks (sequence of `PIL.Image.Image` or `np.ndarray`): Class ids, as the pipeline returns them.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.
    """
    rows = []
    for image, mask in zip(images, masks):
        shown, ids = to_eight_bit(image), np.asarray(mask)
        colors = np.asarray(palette, dtype=np.uint8)[ids]
        rows.append([(shown, ""), (colors, ""), (overlay(shown, ids, palette), "")])
    return _page(rows, ["image", "mask", "overlay"], label_names, palette)


def contact_sheet(
    labeled: Sequence[tuple[PIL.Image.Image, np.ndarray]],
    tested: Sequence[Example],
    generated: Sequence[tuple[PIL.Image.Image, PIL.Image.Image]],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Figure:
    """One page of an experiment: labelled images, predictions on unseen ones, generated samples.

    Args:
        labeled (sequence of `(image, mask)`): What the head was fitted on.
        tested (sequence of [`Example`]): Unseen images.
        generated (sequence of `(image, mask)`): From the pipeline.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette

    def column(image: PIL.Image.Image, *masks: np.ndarray | PIL.Image.Image) -> list[Panel]:
        return [(np.asarray(to_eight_bit(image)), ""), *[(colors[np.asarray(mask)], "") for mask in masks]]

    tests = [column(e.image, e.reference, e.prediction) for e in tested]
    blocks = [
        (f"{len(labeled)} labelled images", ["image", "mask"], [column(*pair) for pair in labeled]),
        (f"{len(tested)} unseen images", ["image", "reference", "prediction"], tests),
        (f"{len(generated)} generated images", ["image", "mask"], [column(*pair) for pair in generated]),
    ]
    blocks = [b for b in blocks if b[2]]
    width = max(len(columns) for _, _, columns in blocks)
    rows = [len(titles) for _, titles, _ in blocks]
    wide = 0.9 * width + 0.9  # inches; as many classes go into a line of the legend as have room
    in_line = max(1, min(len(label_names), int(wide / (0.55 + 0.085 * max(map(len, label_names))))))
    below = 0.25 + 0.25 * math.ceil(len(label_names) / in_line)
    figure = Figure(figsize=(wide, 0.9 * sum(rows) + 0.35 * len(rows) + below), dpi=150)
    *parts, legend = figure.subfigures(len(blocks) + 1, 1, height_ratios=[*[0.9 * r + 0.35 for r in rows], below])
    for part, (title, titles, columns) in zip(parts, blocks):
        blank = [(np.full_like(columns[0][0][0], 255), "")] * len(titles)
        _grid(part, columns + [blank] * (width - len(columns)), titles, shown=len(columns))
        part.text(0.9 / figure.get_figwidth(), 0.96, title, fontsize=9, va="top", weight="bold")
        top = 1 - 0.28 / (0.9 * len(titles) + 0.35)
        part.subplots_adjust(
            left=0.9 / figure.get_figwidth(), right=0.995, top=top, bottom=0.01, wspace=0.04, hspace=0.04
        )
    _legend(legend, label_names, palette, columns=in_line)
    return figure


def cluster_page(
    images: Sequence[PIL.Image.Image], maps: Mapping[tuple[int, int], Sequence[np.ndarray]], num_clusters: int
) -> Figure:
    """k-means clusters of images: for each image, a row for every block and a column for every timestep.

    Args:
        images (sequence of `PIL.Image.Image`): All of one size.
        maps (mapping): Cluster ids `[h, w]` of each image, by (block, timestep).
        num_clusters (`int`): k.
    """
    blocks, steps = (sorted({key[i] for key in maps}) for i in (0, 1))
    aspect = (images[0].width / images[0].height) ** 0.5  # panels of any shape have the same area
    width, height = 0.9 * aspect * (len(steps) + 1) * len(images) + 0.6, 0.9 / aspect * len(blocks) + 0.6
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    colors = (255 * colormaps["viridis"](np.linspace(0, 1, num_clusters))[:, :3]).astype(np.uint8)
    if num_clusters <= len(PALETTE):
        colors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE[:num_clusters]], np.uint8)
    for number, (part, image) in enumerate(zip(figure.subfigures(1, len(images), squeeze=False)[0], images)):
        axes = part.subplots(len(blocks), len(steps) + 1, squeeze=False)
        for i, block in enumerate(blocks):
            if number == 0:
                axes[i, 1].set_ylabel(f"block {block}", fontsize=7)
            for j, t in enumerate(steps):
                axes[i, j + 1].imshow(colors[maps[block, t][number]], interpolation="nearest")
        axes[0, 0].imshow(np.asarray(to_eight_bit(image)), cmap="gray")
        for axis in axes[1:, 0]:
            axis.axis("off")
        for axis, t in zip(axes[0, 1:], steps):
            axis.set_title(f"t = {t}", fontsize=7, pad=2)
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
    return figure


def _page(
    columns: Sequence[Sequence[Panel]],
    titles: Sequence[str],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    top: float | None = None,
) -> Figure:
    """A grid of panels above a legend; `titles` of its rows, `top` of the heat maps."""
    first = np.asarray(columns[0][0][0])
    cell = 1.4
    height = cell * first.shape[0] / first.shape[1] * len(titles) + 0.9
    figure = Figure(figsize=(cell * len(columns) + 0.9, height), dpi=150)
    _grid(figure, columns, titles, top)
    _legend(figure, label_names, palette, columns=max(2, len(columns)))
    figure.subplots_adjust(
        left=0.5 / figure.get_figwidth(), right=0.995, top=0.97, bottom=0.6 / height, wspace=0.04, hspace=0.14
    )
    return figure


def _grid(
    figure: FigureBase,
    columns: Sequence[Sequence[Panel]],
    titles: Sequence[str],
    top: float | None = None,
    shown: int | None = None,
) -> None:
    """Draws panels in columns; arrays of floats are heat maps up to `top`; no frames after `shown` columns."""
    axes = figure.subplots(len(titles), len(columns), squeeze=False)
    for j, column in enumerate(columns):
        for i, (image, caption) in enumerate(column):
            axis = axes[i, j]
            array = np.asarray(image)
            heat = array.ndim == 2 and array.dtype.kind == "f"
            axis.imshow(
                array,
                cmap="magma" if heat else "gray",
                vmin=0,
                vmax=(top or 1) if heat else 255,
                interpolation="nearest" if max(array.shape) < 512 else "antialiased",
            )
            axis.set(xticks=[], yticks=[])
            axis.set_title(caption, fontsize=6, pad=2)
            if shown is not None and j >= shown:
                axis.axis("off")
            if j == 0:
                axis.set_ylabel(titles[i], fontsize=8)


def _legend(figure: FigureBase, label_names: Sequence[str], palette: Sequence[Sequence[int]], columns: int) -> None:
    """Draws name and colour of each class at the bottom, in so many columns at most."""
    patches = [Patch(facecolor=np.asarray(c) / 255, edgecolor="0.5", label=n) for n, c in zip(label_names, palette)]
    figure.legend(handles=patches, loc="lower center", ncols=min(len(patches), columns), fontsize=7, frameon=False)
