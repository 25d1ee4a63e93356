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
    "clusters": {
        "clusters": lambda report: cluster_page(
            report.shown["images"], report.shown["maps"], report.rows[0]["num_clusters"]
        ),
    },
    "labels": {"labels": lambda report: label_curves({"diffusion features": report.rows})},
    "corruptions": {"corruptions": lambda report: corruption_curves(report.rows, report.shown["clean"])},
}


def study_figures(name: str, report: StudyReport) -> dict[str, Figure]:
    """Figures of a study, by name; none for those that are a table alone.

    Args:
        name (`str`): Of the study, a key of `STUDIES`.
        report ([`StudyReport`]): What it found.
    """
    return {title: draw(report) for title, draw in FIGURES.get(name, {}).items()}
