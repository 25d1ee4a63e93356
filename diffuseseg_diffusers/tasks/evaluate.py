# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Measures a fitted model on labelled images: `diffuseseg evaluate`."""

from dataclasses import dataclass

from ..jobs.config import option
from ..jobs.files import check_output_folder, output_folder, write_json
from .options import CachesDownloads, NamesModel, ReadsLabels, WritesFolder


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(NamesModel, ReadsLabels, CachesDownloads, WritesFolder):
    """Measure a fitted model on labelled images."""

    split: str = option("test", "Split of the dataset.", group="data")
    batch_size: int = option(8, "Images per forward pass.", minimum=1)
    absent_as_zero: bool = option(False, "Count an IoU of 0 for absent classes, as in the paper.")
    count_ignored: bool = option(False, "Count predictions on ignored pixels as errors, as in the paper.")
    num_examples: int = option(12, "Images on the page of examples; 0: no page.")


def evaluate(config: EvaluateConfig) -> dict:
    """Measures a fitted model on labelled images; writes `metrics.json` and a page of examples.

    Returns:
        `dict`: What `metrics.json` holds: `mean_iou` and `per_class_iou` in 0 to 1, and more.

    Raises:
        UserError: Model, data or folder cannot be used.

    Examples:
        >>> from diffuseseg_diffusers import EvaluateConfig, evaluate
        >>> metrics = evaluate(EvaluateConfig(model="out/model", dataset_name="DATA", output_dir="out/metrics"))
        >>> metrics["mean_iou"]
    """
    from ..datasets.columns import describe_dataset
    from ..datasets.crops import by_planes
    from ..datasets.find_labeled import load_data
    from ..datasets.overview import overview
    from ..evaluation.evaluate import evaluate_segmentation, format_metrics
    from ..figures.pages import examples_page
    from ..pipelines.loading import load_pipeline

    check_output_folder(config.output_dir, config.overwrite, config.inputs(), "evaluate")
    pipe = load_pipeline(config.model, **config.loading())
    pipe.check_can_segment()
    names = pipe.label_names
    dataset = by_planes(load_data(config, ignore_index=pipe.ignore_index, classes=names, channels=pipe.channels))
    print(overview(config.dataset_name, config.split, dataset))
    metrics, examples = evaluate_segmentation(
        pipe, dataset, config.batch_size, config.absent_as_zero, config.count_ignored, num_examples=config.num_examples
    )
    metrics["dataset"] = describe_dataset(config.dataset_name, config.dataset_config_name, config.split)
    with output_folder(config.output_dir, config.overwrite, "evaluate", config.inputs()) as folder:
        write_json(folder / "metrics.json", metrics)
        if examples:
            examples_page(examples, names, pipe.palette, dataset.ignore_index).savefig(folder / "examples.png")
    print(format_metrics(metrics))
    print(f"Written to {config.output_dir}.")
    return metrics
