# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One classifier on one block at one timestep (paper, section 3, figure 3): where the classes can be told apart."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from ..heads.classes import Classes
from ..heads.cross_validation import cross_validated
from .study import Study, StudyReport


NAME = "blocks-timesteps"


def check_blocks_timesteps(study: Study) -> None:
    """Refuses blocks or timesteps that do not exist, and more folds than images, before the long work."""
    study.held_out()
    _ = study.all_features


def blocks_timesteps(study: Study) -> StudyReport:
    """Cross-validated mean IoU of every block at every timestep: of all classes, of small and of large ones.

    Activations are extracted for one timestep after another, so that no more than those are kept.
    """
    settings = study.settings | {"folds": study.folds}
    results = study.results(NAME, settings)
    features, classes, recipe = study.all_features, study.classes, study.short_recipe
    labels, held_out = study.labels(), study.held_out()
    study.say_missing_classes(labels)
    shares, small = class_sizes(labels, classes)

    rows = []
    with tqdm(total=len(features.blocks) * len(features.timesteps), desc="Blocks × timesteps", unit="cell") as bar:
        for t in features.timesteps:
            missing = [block for block in features.blocks if f"{block}@{t}" not in results.by_key]
            activations = study.activations(features.choose(missing, [t])) if missing else None
            for block in features.blocks:
                found = results.get(
                    f"{block}@{t}",
                    partial(cross_validated, activations, [block], [t], classes, held_out, recipe, study.seed),
                )
                rows.append({"block": block, "timestep": t, **found, **means_by_size(found["per_class_iou"], small)})
                bar.update()

    best = max(rows, key=lambda r: r["mean_iou"])
    named = [f"{n} ({s:.1%})" for n, s, is_small in zip(classes.names, shares, small) if is_small]
    noise = " without noise" if features.clean else ""
    summary = [
        f"Best: block {best['block']} at timestep {best['timestep']}{noise}, mean IoU {best['mean_iou']:.4f}.",
        f"Small classes, below the median share of the area: {', '.join(named)}.",
    ]
    rows.sort(key=lambda r: (features.blocks.index(r["block"]), r["timestep"]))
    return StudyReport(rows, settings, summary)


def class_sizes(labels: torch.Tensor, classes: Classes) -> tuple[list[float], list[bool]]:
    """Share of the labelled area `[N, H, W]` uint8 of each class, and whether it is below the median (section 3)."""
    counts = torch.bincount(labels.flatten().long(), minlength=256)[: classes.number].double()
    shares = counts / counts.sum()
    return shares.tolist(), (shares < shares.quantile(0.5)).tolist()


def means_by_size(per_class_iou: Sequence[float | None], small: Sequence[bool]) -> dict[str, float | None]:
    """Mean IoU of the small and of the large classes; `None` for absent classes, and where there are none of a kind."""
    means = {}
    for kind in ("small", "large"):
        own = [iou for iou, is_small in zip(per_class_iou, small) if is_small == (kind == "small") and iou is not None]
        means[f"{kind}_mean_iou"] = float(np.mean(own)) if own else None
    return means
