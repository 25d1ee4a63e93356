# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shows which features of a frozen model tell classes apart: `diffuseseg analyze`."""

import csv
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..jobs.config import option
from ..jobs.errors import UserError
from ..jobs.files import atomic_file, write_json, write_text
from ..jobs.run import check_run, open_run
from .options import (
    RECIPES,
    CachesDownloads,
    CutsTiles,
    FitsHeads,
    NamesModel,
    ReadsChannels,
    ReadsLabels,
    WritesFolder,
)


if TYPE_CHECKING:
    from ..paper.study import Study, StudyReport

COMMAND = "analyze"
STUDIES = ("blocks-timesteps", "clusters", "noise", "labels", "corruptions")
_study = partial(option, group="study")
_recorded = partial(_study, influence=False, why="the results of each study record it, so that studies share a folder")


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig(NamesModel, ReadsLabels, ReadsChannels, CutsTiles, FitsHeads, CachesDownloads, WritesFolder):
    """Show which features tell the classes apart."""

    test_split: str = _recorded("test", "Part of the dataset that labels and corruptions measure on.", group="data")
    study: tuple[str, ...] = _recorded(("blocks-timesteps",), "Studies to make.", choices=STUDIES)
    recipe: str = _study(
        "default",
        "Training procedure that everything is measured with, shortened for cross-validation; its blocks and timesteps "
        "are read where none are given.",
        choices=RECIPES,
    )
    folds: int = _recorded(5, "Folds of cross-validation.")
    blocks: tuple[int | str, ...] | None = _recorded(
        None,
        "Blocks by number, or by the name of a module (default: all for blocks-timesteps, else the recipe's).",
        minimum=float("-inf"),
    )
    timesteps: tuple[int, ...] | None = _recorded(
        None,
        "Diffusion timesteps (default: ten for blocks-timesteps, five for clusters, else the recipe's).",
        minimum=float("-inf"),
    )
    num_clusters: int = _recorded(5, "Number of clusters.", minimum=1)
    num_images: int = _recorded(3, "Number of images to cluster.", minimum=1)
    counts: tuple[int, ...] = _recorded((1, 2, 5, 10, 20), "Numbers of labelled images for labels.")
    draws: int = _recorded(5, "Number of draws of labelled images, and of noises that are averaged.", minimum=1)
    seed: int = _study(0, "Seed of noise, folds, draws, augmented views and classifiers.")


def analyze(config: AnalyzeConfig) -> "dict[str, StudyReport]":
    """Makes studies; each leaves its results as JSON and CSV, and its figures as PNG and SVG.

    The same configuration resumes where a study was cut off, and other studies of the same model and images may share
    the folder.

    Returns:
        `dict`: By study, its [`StudyReport`].

    Raises:
        UserError: Model, data or folder cannot be used, or a study cannot be made of them.

    Examples:
        >>> from diffuseseg_diffusers import AnalyzeConfig, analyze
        >>> where = dict(dataset_name="DATA", output_dir="out/analysis")
        >>> found = analyze(AnalyzeConfig(model="out/model", folds=3, **where))
        >>> found["blocks-timesteps"].rows[0]
    """
    from ..datasets.columns import dataset_contents
    from ..figures.studies import FIGURES
    from ..paper.catalogue import STUDIES
    from ..pipelines.identity import describe_pipeline

    # 1. The inputs, and only then the folder.
    check_run(config, COMMAND)
    study = load_study(config)
    for name in config.study:
        STUDIES[name].check(study)
    columns = (study.dataset.image_column, study.dataset.mask_column)
    reads = {"model": describe_pipeline(study.pipe), "dataset_name": dataset_contents(study.dataset.dataset, *columns)}
    owned = [f"{name}.{suffix}" for name in STUDIES for suffix in ("json", "jsonl", "csv")]
    owned += [f"{title}.{suffix}" for figures in FIGURES.values() for title in figures for suffix in ("png", "svg")]
    open_run(config, COMMAND, reads, owned)

    # 2. One study after another.
    reports = {}
    for name in config.study:
        reports[name] = STUDIES[name].run(study)
        print("\n".join(reports[name].summary))
        write_report(config.output_dir, name, reports[name])
    return reports


def load_study(config: AnalyzeConfig) -> "Study":
    """The model and the images that all studies share."""
    from ..datasets.columns import describe_dataset
    from ..datasets.crops import read_labels
    from ..datasets.find_labeled import load_data
    from ..paper.catalogue import STUDIES
    from ..paper.study import Study
    from ..pipelines.general import comes_with_package, suited_recipe
    from ..pipelines.loading import load_pipeline
    from ..pipelines.segmenter import HeadSegmenter

    pipe: Any = load_pipeline(config.model, **config.loading())
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(f"{config.model} is a student or several models, with no features; give the diffusion model.")
    pipe.segmentation_head = None  # studies fit heads themselves
    dataset, test = load_data(config), None
    if any(STUDIES[name].needs_test for name in config.study):
        named: dict[str, Any] = {"label_names": dataset.label_names, "num_classes": dataset.num_classes}
        test = load_data(config, config.test_split, **named)
    dataset, test = read_labels(config, dataset, test, pipe.channels, pipe.features().size if config.tile else None)
    about = {"dataset": describe_dataset(config.dataset_name, config.dataset_config_name, config.split)}
    names = ("recipe", "blocks", "timesteps", "folds", "draws", "counts", "num_clusters", "num_images", "seed")
    options = {name: getattr(config, name) for name in (*names, "batch_size")}
    if comes_with_package(config.model):
        options["recipe"] = suited_recipe(config.recipe, config.model)
    return Study(pipe, dataset, config.output_dir, test=test, cache_dir=config.activation_dir, about=about, **options)


def write_report(folder: Path, name: str, report: "StudyReport") -> None:
    """The results of a study: `NAME.json`, `NAME.csv`, and each figure as PNG and SVG."""
    from ..figures.studies import study_figures

    write_json(folder / f"{name}.json", {"settings": report.settings, "rows": report.rows})
    flat = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in report.rows]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    write_text(folder / f"{name}.csv", table.getvalue())
    figures = study_figures(name, report)
    for title, figure in figures.items():
        for suffix in ("png", "svg"):
            with atomic_file(folder / f"{title}.{suffix}") as partial:
                figure.savefig(partial, format=suffix)
    files = [f"{name}.json", f"{name}.csv", *(f"{title}.png" for title in figures)]
    print(f"{name}: {len(report.rows)} rows; {', '.join(files)} are in {folder}.")
