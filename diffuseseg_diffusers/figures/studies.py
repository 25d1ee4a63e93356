# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The figures of each study."""

from matplotlib.figure import Figure

from ..paper.study import StudyReport
from .curves import block_curves, block_heat_map, corruption_curves, label_curves
from .pages import cluster_page


# What is drawn of a study, by its name: figures by theirs.
FIGURES = {
    "blocks-timesteps": {
        "blocks-timesteps": lambda report: block_curves(report.rows),
        "blocks-timesteps-map": lambda report: block_heat_map(report.rows),
    },
    "clusters": {"clusters": lambda report: cluster_page(**report.shown, num_clusters=report.rows[0]["num_clusters"])},
    "labels": {"labels": lambda report: label_curves({"diffusion features": report.rows})},
    "corruptions": {"corruptions": lambda report: corruption_curves(report.rows, report.shown["clean"])},
}


def study_figures(name: str, report: StudyReport) -> dict[str, Figure]:
    """Figures of the study of that name, a key of `STUDIES`, by name; none for those that are a table alone."""
    return {title: draw(report) for title, draw in FIGURES.get(name, {}).items()}
