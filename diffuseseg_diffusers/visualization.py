# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pages of pictures to look at."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .evaluation import Example
from .image_processor import overlay, to_eight_bit


def examples_page(
    examples: Sequence[Example],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    ignore_index: int = 255,
) -> Figure:
    """Evaluated images, a column each: picture, reference, prediction, errors, uncertainty; and a legend.

    Args:
        examples (sequence of [`Example`]): What to show.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.
        ignore_index (`int`, defaults to 255): Reference pixels that count as no error.

    Returns:
        `matplotlib.figure.Figure`, to save with `savefig`.
    """
    rows = []
    top = max(e.uncertainty.max() for e in examples)
    for e in examples:
        shown = to_eight_bit(e.image)
        wrong = (e.prediction != e.reference) & (e.reference != ignore_index)
        error = np.asarray(shown.convert("L").convert("RGB")).copy()
        error[wrong] = (213, 94, 0)
        counted = (e.reference != ignore_index).sum()
        caption = f"{1 - wrong.sum() / counted:.1%} right" if counted else ""
        rows.append(
            [
                (shown, ""),
                (overlay(shown, e.reference, palette, alpha=0.6), ""),
                (overlay(shown, e.prediction, palette, alpha=0.6), caption),
                (error, ""),
                (e.uncertainty, ""),
            ]
        )
    titles = ["picture", "reference", "prediction", "errors", "uncertainty"]
    return _page(rows, titles, label_names, palette, top)


def samples_page(
    images: Sequence[PIL.Image.Image],
    masks: Sequence[PIL.Image.Image | np.ndarray],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Figure:
    """Images, a column each, above their masks and overlays; and a legend.

    Args:
        images (sequence of `PIL.Image.Image`): Generated or real pictures.
        masks (sequence of `PIL.Image.Image` or `np.ndarray`): Class ids, as the pipeline returns them.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.

    Returns:
        `matplotlib.figure.Figure`, to save with `savefig`.
    """
    rows = []
    for image, mask in zip(images, masks):
        shown, ids = to_eight_bit(image), np.asarray(mask)
        colors = np.asarray(palette, dtype=np.uint8)[ids]
        rows.append([(shown, ""), (colors, ""), (overlay(shown, ids, palette), "")])
    return _page(rows, ["image", "mask", "overlay"], label_names, palette)


def _page(columns, titles, label_names, palette, top=None) -> Figure:
    """A grid of `(picture, caption)`; two-dimensional arrays of floats are drawn as heat maps up to `top`."""
    first = np.asarray(columns[0][0][0])
    aspect = first.shape[0] / first.shape[1]
    cell = 1.4
    figure = Figure(figsize=(cell * len(columns) + 0.9, cell * aspect * len(titles) + 0.9), dpi=150)
    legend_height = 0.6 / figure.get_figheight()
    axes = figure.subplots(len(titles), len(columns), squeeze=False)
    for j, column in enumerate(columns):
        for i, (picture, caption) in enumerate(column):
            axis = axes[i, j]
            array = np.asarray(picture)
            heat = array.ndim == 2 and array.dtype.kind == "f"
            axis.imshow(
                array,
                cmap="magma" if heat else "gray",
                vmin=0,
                vmax=(top or 1) if heat else 255,
                interpolation="nearest" if max(array.shape) < 512 else "antialiased",
            )
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(caption, fontsize=6, pad=2)
            if j == 0:
                axis.set_ylabel(titles[i], fontsize=8)
    patches = [Patch(facecolor=np.asarray(c) / 255, edgecolor="0.5", label=n) for n, c in zip(label_names, palette)]
    figure.legend(
        handles=patches, loc="lower center", ncols=min(len(patches), max(2, len(columns))), fontsize=7, frameon=False
    )
    figure.subplots_adjust(
        left=0.5 / figure.get_figwidth(), right=0.995, top=0.97, bottom=legend_height, wspace=0.04, hspace=0.14
    )
    return figure
