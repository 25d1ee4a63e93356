# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Curves, histograms and heat maps of trainings, studies and generated datasets."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..features.base import ordered


# Okabe and Ito's colours, which people with colour blindness tell apart.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]


def uncertainty_histogram(scores: np.ndarray, kept: np.ndarray) -> Figure:
    """Histogram of the uncertainty `[N]` of generated images in nats; those at the indices `kept` were not dropped."""
    figure = Figure(figsize=(6, 3), dpi=150, layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, max(scores.max(), 1e-6), 41)
    chosen = np.zeros(len(scores), bool)
    chosen[kept] = True
    axis.hist([scores[chosen], scores[~chosen]], bins, stacked=True, color=PALETTE[:2])
    axis.legend([f"kept ({chosen.sum():,})", f"left out ({(~chosen).sum():,})"], frameon=False, fontsize=8)
    axis.set(xlabel="uncertainty of the image (nats)", ylabel="images")
    return figure


def training_curves(entries: Sequence[dict]) -> Figure:
    """Training curves of a diffusion model: losses over steps, and by timestep at the end.

    Args:
        entries (sequence of `dict`):
            Lines of `train_log.jsonl`: `step` with `loss`, or with the held-out losses `validation` and
            `train_sample`, one for each range of timesteps.
    """
    figure = Figure(figsize=(10, 3.6), dpi=150, layout="constrained")
    over_steps, by_timestep = figure.subplots(1, 2)
    trained = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    if trained:
        steps, losses = map(np.array, zip(*trained))
        width = max(1, len(losses) // 50)
        padded = np.pad(losses, (width // 2, width - 1 - width // 2), "edge")
        smooth = np.convolve(padded, np.ones(width) / width, "valid")
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


def block_curves(rows: Sequence[dict]) -> Figure:
    """Mean IoU over timesteps, a curve for each decoder block: of all classes, of small and of large ones.

    Args:
        rows (sequence of `dict`): `block`, `timestep`, `mean_iou`, `small_mean_iou` and `large_mean_iou` (0 to 1).
    """
    figure = Figure(figsize=(11, 3.6), dpi=150, layout="constrained")
    blocks = ordered({r["block"] for r in rows})
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
    blocks, steps = ordered({r["block"] for r in rows}), sorted({r["timestep"] for r in rows})
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
    axis.set(xlabel="diffusion timestep", ylabel="block (of a decoder 0: the deepest)")
    figure.colorbar(shown, label="mean IoU, cross-validated")
    return figure


def label_curves(methods: Mapping[str, Sequence[dict]]) -> Figure:
    """Mean IoU over the number of labelled images, with the spread over draws; a curve for each method.

    Args:
        methods (mapping): Name to rows of `labelled_images`, `mean`, `least` and `most` (0 to 1).
    """
    figure = Figure(figsize=(5, 3.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    for (name, rows), color, marker in zip(methods.items(), PALETTE, "osD^v"):
        counts, mean, least, most = ([r[k] for r in rows] for k in ("labelled_images", "mean", "least", "most"))
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


def accuracy_over_speed(results: Sequence[dict]) -> Figure:
    """Mean IoU of models over the time that they take for an image, with intervals; `results` of [`compare_models`]."""
    figure = Figure(figsize=(5.4, 3.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    for i, r in enumerate(results):
        low, high = r["interval"]
        error = [[r["mean_iou"] - low], [high - r["mean_iou"]]]
        style = dict(fmt="osD^v"[i % 5], color=PALETTE[i % len(PALETTE)], markersize=5, capsize=3, linewidth=1)
        axis.errorbar([1000 * r["seconds_per_image"]], [r["mean_iou"]], yerr=error, label=r["model"], **style)
    axis.set(xlabel="milliseconds an image", ylabel="mean IoU (95 % over images)", xscale="log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # 10, 20, 50, 100 and so on
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3, linewidth=0.4)
    axis.legend(frameon=False, fontsize=8)
    return figure
