# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Compares fitted models, students and ONNX files on labelled images: `diffuseseg compare`."""

import os
from dataclasses import dataclass

from ..jobs.config import option
from ..jobs.errors import UserError
from ..jobs.files import check_output_folder, output_folder, shown_name, write_json
from .options import CachesDownloads, ReadsLabels, RunsModel, WritesFolder


@dataclass(frozen=True, kw_only=True)
class CompareConfig(RunsModel, ReadsLabels, CachesDownloads, WritesFolder):
    """Compare fitted models, students and ONNX files."""

    models: tuple[str, ...] = option(
        (),
        "Fitted models, students and ONNX files: local folders, files or names on the Hub; compared with the first.",
        positional=True,
        reads=True,
    )
    split: str = option("test", "Split of the dataset.", group="data")
    batch_size: int = option(8, "Images per forward pass.", minimum=1)

    def check(self) -> None:
        super().check()
        if not self.models:
            raise UserError("Give models to compare: local folders, files or names on the Hub.")
        real = [os.path.realpath(name) if os.path.exists(name) else name for name in self.models]
        if twice := next((name for name, path in zip(self.models, real) if real.count(path) > 1), None):
            raise UserError(f"{twice} is given twice; give every model once.")


def compare(config: CompareConfig) -> dict:
    """Measures models side by side on the same labelled images; writes `comparison.json` and `comparison.png`.

    Returns:
        `dict`: What `comparison.json` holds; `models` is the list of [`compare_models`], and `hardware` what ran it.

    Raises:
        UserError: Models, data or folder cannot be used, or the models have different classes or channels.

    Examples:
        >>> from diffuseseg_diffusers import CompareConfig, compare
        >>> found = compare(CompareConfig(models=["out/model", "out/student"], dataset_name="DATA", output_dir="out/c"))
        >>> [model["mean_iou"] for model in found["models"]]
    """
    from ..datasets.columns import describe_dataset
    from ..datasets.crops import by_planes
    from ..datasets.find_labeled import load_data
    from ..evaluation.comparison import compare_models, format_comparison
    from ..figures.curves import accuracy_over_speed
    from ..jobs.hardware import find_device, hardware
    from ..pipelines.loading import load_pipelines

    check_output_folder(config.output_dir, config.overwrite, config.inputs(), "compare")
    models = load_pipelines(config.models, **config.loading())
    for model in models.values():
        model.check_can_segment()
    first = models[config.models[0]]
    for name, model in models.items():
        if model.channels.config != first.channels.config:
            raise UserError(f"{name} reads other channels of an image than {config.models[0]}; compare those alike.")
    dataset = by_planes(
        load_data(config, ignore_index=first.ignore_index, classes=first.label_names, channels=first.channels)
    )
    results = compare_models(models, dataset, config.batch_size)
    report = {
        "dataset": describe_dataset(config.dataset_name, config.dataset_config_name, config.split),
        "num_images": len(dataset),
        "batch_size": config.batch_size,
        "hardware": hardware(find_device(config.device)),
        "models": results,
    }
    with output_folder(config.output_dir, config.overwrite, "compare", config.inputs()) as folder:
        write_json(folder / "comparison.json", report)
        accuracy_over_speed([r | {"model": shown_name(r["model"])} for r in results]).savefig(folder / "comparison.png")
    print(format_comparison(results))
    print(
        f"{len(dataset)} images in batches of {config.batch_size}, {report['hardware']}. Written to "
        f"{config.output_dir}."
    )
    return report
