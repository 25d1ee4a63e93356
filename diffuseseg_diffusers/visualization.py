# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pages of pictures to look at."""

from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from matplotlib import colormaps
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


def training_curves(entries: Sequence[dict]) -> Figure:
    """How the training of a diffusion model went: losses over steps, and by timestep at the end.

    Args:
        entries (sequence of `dict`):
            Lines of `train_log.jsonl`: `step` with `loss`, or with the held-out losses `validation` and
            `train_sample`, one for each range of timesteps.

    Returns:
        `matplotlib.figure.Figure`, to save with `savefig`.
    """
    figure = Figure(figsize=(10, 3.6), dpi=150, layout="constrained")
    over_steps, by_timestep = figure.subplots(1, 2)
    trained = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    if trained:
        steps, losses = map(np.array, zip(*trained))
        width = max(1, len(losses) // 50)
        smooth = np.convolve(
            np.pad(losses, (width // 2, width - 1 - width // 2), "edge"), np.ones(width) / width, "valid"
        )
        over_steps.plot(steps, losses, color="0.8", linewidth=0.6)
        over_steps.plot(steps, smooth, color="#0072B2", label="training batches")
        over_steps.set_ylim(0.9 * smooth.min(), max(2 * smooth[len(smooth) // 3 :].max(), 1.1 * smooth.min()))
    names = {"validation": ("held-out images", "#D55E00", "o-"), "train_sample": ("training images", "#009E73", "s--")}
    for key, (label, color, style) in names.items():
        measured = [(e["step"], np.mean(e[key]), e[key]) for e in entries if key in e]
        if measured:
            over_steps.plot(*list(zip(*measured))[:2], style, color=color, markersize=3, label=label)
            by_timestep.plot(measured[-1][2], style, color=color, markersize=3, label=label)
    over_steps.set(xlabel="step", ylabel="denoising loss", yscale="log")
    by_timestep.set(xlabel="range of timesteps (0: almost clean, 9: almost noise)", yscale="log")
    by_timestep.set_title("denoising loss at the end", fontsize=9)
    for axis in (over_steps, by_timestep):
        if axis.lines:
            axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
    return figure


def contact_sheet(
    labeled: Sequence[tuple[PIL.Image.Image, np.ndarray]],
    tested: Sequence[Example],
    generated: Sequence[tuple[PIL.Image.Image, PIL.Image.Image]],
    label_names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Figure:
    """One page of a whole experiment: what was labelled, what the model makes of unseen images, what it generates.

    Args:
        labeled (sequence of `(picture, mask)`): What the head was fitted on.
        tested (sequence of [`Example`]): Unseen images.
        generated (sequence of `(picture, mask)`): From the pipeline.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`): The classes.

    Returns:
        `matplotlib.figure.Figure`, to save with `savefig`.
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette

    def column(picture: PIL.Image.Image, *masks: np.ndarray | PIL.Image.Image) -> list:
        return [(np.asarray(to_eight_bit(picture)), ""), *[(colors[np.asarray(mask)], "") for mask in masks]]

    blocks = [
        (
            f"{len(labeled)} labelled images",
            ["picture", "mask"],
            [column(picture, mask) for picture, mask in labeled],
        ),
        (
            f"{len(tested)} unseen images",
            ["picture", "truth", "prediction"],
            [column(e.image, e.reference, e.prediction) for e in tested],
        ),
        (
            f"{len(generated)} generated images",
            ["image", "its mask"],
            [column(picture, mask) for picture, mask in generated],
        ),
    ]
    blocks = [b for b in blocks if b[2]]
    width = max(len(columns) for _, _, columns in blocks)
    rows = [len(titles) for _, titles, _ in blocks]
    figure = Figure(figsize=(0.9 * width + 0.9, 0.9 * sum(rows) + 0.35 * len(rows) + 0.5), dpi=150)
    *parts, legend = figure.subfigures(len(blocks) + 1, 1, height_ratios=[*[0.9 * r + 0.35 for r in rows], 0.5])
    for part, (title, titles, columns) in zip(parts, blocks):
        blank = [(np.full_like(columns[0][0][0], 255), "")] * len(titles)
        _grid(part, columns + [blank] * (width - len(columns)), titles, shown=len(columns))
        part.text(0.9 / figure.get_figwidth(), 0.96, title, fontsize=9, va="top", weight="bold")
        top = 1 - 0.28 / (0.9 * len(titles) + 0.35)
        part.subplots_adjust(
            left=0.9 / figure.get_figwidth(), right=0.995, top=top, bottom=0.01, wspace=0.04, hspace=0.04
        )
    _legend(legend, label_names, palette, columns=len(label_names))
    return figure


def _page(columns, titles, label_names, palette, top=None) -> Figure:
    """A grid of `(picture, caption)` with a legend."""
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


def _grid(figure, columns, titles, top=None, shown=None) -> None:
    """`(picture, caption)` in columns; arrays of floats are heat maps up to `top`; no frames after `shown` columns."""
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
            if shown is not None and j >= shown:
                axis.axis("off")
            if j == 0:
                axis.set_ylabel(titles[i], fontsize=8)


def _legend(figure, label_names, palette, columns) -> None:
    patches = [Patch(facecolor=np.asarray(c) / 255, edgecolor="0.5", label=n) for n, c in zip(label_names, palette)]
    figure.legend(handles=patches, loc="lower center", ncols=min(len(patches), columns), fontsize=7, frameon=False)


# Figures of studies, in colours that colour-blind readers tell apart (Okabe and Ito; viridis).

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]


def block_curves(rows: Sequence[dict]) -> Figure:
    """Mean IoU over timesteps, a curve for each decoder block: of all classes, of small and of large ones.

    Args:
        rows (sequence of `dict`): `block`, `timestep`, `mean_iou`, `small_mean_iou` and `large_mean_iou` (0 to 1).
    """
    figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
    blocks = sorted({r["block"] for r in rows})
    kinds = {"mean_iou": "all classes", "small_mean_iou": "small classes", "large_mean_iou": "large classes"}
    axes = figure.subplots(1, len(kinds))
    colors = colormaps["viridis"](np.linspace(0, 0.95, len(blocks)))
    for axis, (key, title) in zip(axes, kinds.items()):
        for block, color in zip(blocks, colors):
            own = sorted((r["timestep"], r[key]) for r in rows if r["block"] == block)
            axis.plot(*zip(*own), "o-", color=color, markersize=3, linewidth=1, label=f"block {block}")
        axis.set(xlabel="diffusion timestep", title=title)
        axis.grid(alpha=0.3, linewidth=0.4)
    axes[0].set_ylabel("mean IoU, cross-validated")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    return figure


def block_heat_map(rows: Sequence[dict]) -> Figure:
    """Mean IoU of every decoder block at every timestep, with its value in percent; `rows` as in [`block_curves`]."""
    blocks, steps = (sorted({r[key] for r in rows}) for key in ("block", "timestep"))
    values = np.full((len(blocks), len(steps)), np.nan)
    for r in rows:
        values[blocks.index(r["block"]), steps.index(r["timestep"])] = r["mean_iou"]
    figure = Figure(figsize=(0.55 * len(steps) + 2, 0.36 * len(blocks) + 1.2), dpi=150, layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(values, cmap="viridis", aspect="auto")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color="wk"[int(value > middle)])
    axis.set_xticks(range(len(steps)), steps, fontsize=8)
    axis.set_yticks(range(len(blocks)), blocks, fontsize=8)
    axis.set(xlabel="diffusion timestep", ylabel="decoder block (0: the deepest)")
    figure.colorbar(shown, label="mean IoU, cross-validated")
    return figure


def cluster_page(
    images: Sequence[PIL.Image.Image], maps: Mapping[tuple[int, int], Sequence[np.ndarray]], num_clusters: int
) -> Figure:
    """k-means clusters of images: for each image, a row for every block and a column for every timestep.

    Args:
        images (sequence of `PIL.Image.Image`): The pictures.
        maps (mapping): Cluster ids `[h, w]` of each image, by (block, timestep).
        num_clusters (`int`): k.
    """
    blocks, steps = (sorted({key[i] for key in maps}) for i in (0, 1))
    aspect = (images[0].width / images[0].height) ** 0.5  # panels of pictures of any shape have the same area
    width, height = 0.9 * aspect * (len(steps) + 1) * len(images) + 0.6, 0.9 / aspect * len(blocks) + 0.6
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    colors = (255 * colormaps["viridis"](np.linspace(0, 1, num_clusters))[:, :3]).astype(np.uint8)
    if num_clusters <= len(PALETTE):
        colors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE[:num_clusters]], np.uint8)
    for number, (part, picture) in enumerate(zip(figure.subfigures(1, len(images), squeeze=False)[0], images)):
        axes = part.subplots(len(blocks), len(steps) + 1, squeeze=False)
        for i, block in enumerate(blocks):
            if i == 0:
                axes[i, 0].imshow(np.asarray(to_eight_bit(picture)), cmap="gray")
            else:
                axes[i, 0].axis("off")
            if number == 0:
                axes[i, 1].set_ylabel(f"block {block}", fontsize=7)
            for j, t in enumerate(steps):
                axes[i, j + 1].imshow(colors[maps[block, t][number]], interpolation="nearest")
                if i == 0:
                    axes[i, j + 1].set_title(f"t = {t}", fontsize=7, pad=2)
        for axis in axes.flat:
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def label_curves(methods: Mapping[str, Sequence[dict]]) -> Figure:
    """Mean IoU over the number of labelled images, with the spread over draws; a curve for each method.

    Args:
        methods (mapping): Name to rows of `labelled_images`, `mean`, `least` and `most` (0 to 1).
    """
    figure = Figure(figsize=(5, 3.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    for (name, rows), color, marker in zip(methods.items(), PALETTE, "osD^v"):
        counts, mean, least, most = (
            np.array([r[k] for r in rows]) for k in ("labelled_images", "mean", "least", "most")
        )
        axis.fill_between(counts, least, most, color=color, alpha=0.15, linewidth=0)
        axis.plot(counts, mean, f"{marker}-", color=color, markersize=4, label=name)
    axis.set(xlabel="labelled images", ylabel="mean IoU on test images", xscale="log")
    axis.set_xticks(counts, counts)
    axis.minorticks_off()
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.legend(frameon=False, fontsize=8)
    return figure


def corruption_curves(rows: Sequence[dict], clean: float) -> Figure:
    """Mean IoU over the severity of each corruption, a panel for each group of them.

    Args:
        rows (sequence of `dict`): `corruption`, `severity` (1 to 5) and `mean_iou` (0 to 1).
        clean (`float`): Mean IoU of the images as they are.
    """
    names = list(dict.fromkeys(r["corruption"] for r in rows))
    ends = (0, 3, 7, 11, len(names))  # noise, blur, weather, digital, in the order of the authors
    groups = [names[a:b] for a, b in zip(ends, ends[1:]) if names[a:b]]
    figure = Figure(figsize=(2.9 * len(groups), 3.2), dpi=150, layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups):
        for name, color, marker in zip(group, PALETTE, "osD^"):
            own = [(0, clean), *sorted((r["severity"], r["mean_iou"]) for r in rows if r["corruption"] == name)]
            axis.plot(*zip(*own), f"{marker}-", color=color, markersize=3, linewidth=1, label=name.replace("_", " "))
        axis.set(xlabel="severity (0: clean)", xticks=range(6))
        axis.grid(alpha=0.3, linewidth=0.4)
        axis.legend(frameon=False, fontsize=7)
    figure.axes[0].set_ylabel("mean IoU")
    return figure
