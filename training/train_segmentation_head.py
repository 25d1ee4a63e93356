# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a segmentation head for a diffusion model on a few labelled images: `diffuseseg fit`.

accelerate launch training/train_segmentation_head.py --model MODEL --dataset_name DATA --output_dir OUT
"""

import time
from dataclasses import asdict, replace
from typing import Any

from accelerate import Accelerator

from diffuseseg_diffusers.datasets.crops import read_labels
from diffuseseg_diffusers.datasets.find_labeled import load_labels
from diffuseseg_diffusers.datasets.labeled import LabeledImages
from diffuseseg_diffusers.datasets.overview import overview
from diffuseseg_diffusers.datasets.unlabeled import spread_images
from diffuseseg_diffusers.evaluation.decision_fitting import fit_decisions
from diffuseseg_diffusers.evaluation.evaluate import evaluate_segmentation, format_metrics
from diffuseseg_diffusers.fitting.best import MAX_MINUTES, describe, fit_best
from diffuseseg_diffusers.fitting.pieces import in_pieces
from diffuseseg_diffusers.fitting.setup import (
    against_best,
    check_distilled,
    describe_fit,
    load_frozen,
    record_agreements,
    usual_recipe,
    usual_size,
    usual_view,
)
from diffuseseg_diffusers.heads.fit import fit_segmentation_head
from diffuseseg_diffusers.heads.operating import fit_operating_point, parse_targets
from diffuseseg_diffusers.heads.selection import configured_features
from diffuseseg_diffusers.hub.push import finish_push, prepare_push
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.files import check_output_folder, output_folder, write_json
from diffuseseg_diffusers.jobs.hardware import find_device, find_dtype, report_processes
from diffuseseg_diffusers.pipelines.composed import ComposedDiffuseSegPipeline
from diffuseseg_diffusers.pipelines.general import default_model
from diffuseseg_diffusers.pipelines.loading import save_fitted
from diffuseseg_diffusers.tasks.fit import BEST, FitConfig


def fit(config: FitConfig) -> Any:
    """Fits a segmentation head on a few labelled images, measures it, and saves the model with it.

    On several processes, each fits a share of the ensemble's members.

    Returns:
        The pipeline with its head; `None` on further processes of a launcher.

    Raises:
        UserError: Model, data or folder cannot be used.

    Examples:
        >>> from diffuseseg_diffusers import FitConfig, fit
        >>> pipe = fit(FitConfig(model="MODEL", dataset_name="DATA", output_dir="out/fitted"))
        >>> pipe.segment("photo.jpg").masks[0].save("mask.png")
    """
    # 1. Labelled images and the frozen model; all inputs are checked before the long work.
    check_output_folder(config.output_dir, config.overwrite, config.inputs())
    device = find_device(config.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    report_processes(accelerator)
    if not (config.model or config.backbone):
        usual, line = default_model()
        config = replace(config, model=usual)
        accelerator.print(line)
    if accelerator.is_main_process:
        prepare_push(config)
    dataset, validation = load_labels(config)
    accelerator.print(overview(config.dataset_name, config.split, dataset))
    device, name = find_device(config.device or accelerator.device), config.model or config.backbone
    pipe = load_frozen(config, device, find_dtype(config.dtype, device, name))
    config, why = config.with_recipe(against_best(config, pipe, dataset, accelerator.num_processes))
    accelerator.print(f"Recipe: {config.recipe}{why}.")
    check_distilled(config, pipe)
    whole = config.size or pipe.features().size
    tile = whole if config.tile and config.recipe != BEST else None
    dataset, validation = read_labels(config, dataset, validation, pipe.channels, tile)

    # 2. The head, or several models that vote.
    began = time.perf_counter()
    if config.recipe == BEST:
        tiles, size, timesteps = usual_view(name, pipe, config.tile)
        dataset = in_pieces(dataset, tiles, config.max_tiles, config.seed)
        how = (False if config.no_flip else None, config.seed, config.batch_size, config.min_label_fraction)
        given = (pipe, dataset, config.max_minutes or MAX_MINUTES, *how)
        model, choice = fit_best(*given, size=size, timesteps=timesteps)
        print(describe(choice, model.label_names))
        found: dict[str, Any] = {"choice": asdict(choice), "num_images": choice.num_pieces}
    else:
        model, found = fit_one_head(config, pipe, dataset, accelerator)
    if not accelerator.is_main_process:
        return None
    report = describe_fit(config, pipe, len(dataset), accelerator.num_processes, time.perf_counter() - began) | found

    # 3. What it is worth.
    if not isinstance(pipe, ComposedDiffuseSegPipeline):  # of which a second copy in float32 may not fit
        compared = dataset if validation is None or config.recipe == BEST else validation
        report["agreement"] = record_agreements(config, model, compared, device)
    if validation is not None:
        report["validation"], _ = evaluate_segmentation(model, validation)
        report["validation"]["dataset"] = {**report["dataset"], "split": config.validation_split or config.split}
        print(format_metrics(report["validation"]))

    # 4. Where it goes.
    with output_folder(config.output_dir, config.overwrite, "fit", config.inputs()) as folder:
        save_fitted(model, folder, name, config.revision, config.cache_dir)
        write_json(folder / "head_training.json", report)
    what = f"{report['num_images']} {'images' if dataset.tiling is None else 'tiles'}"
    print(f"Fitted on {what} in {report['seconds']} s; the pipeline is in {config.output_dir}.")
    finish_push(config)
    return model


def fit_one_head(
    config: FitConfig, pipe: Any, dataset: LabeledImages, accelerator: Accelerator
) -> tuple[Any, dict[str, Any]]:
    """The pipeline with a head on its activations, and what `head_training.json` holds of it."""
    size, said = usual_size(config, pipe, dataset)
    recipe, line = usual_recipe(config, pipe, dataset)
    accelerator.print(said + line, end="")
    targets = parse_targets(config.target, dataset)
    unlabeled = spread_images(config) if config.unlabeled_dataset_name else None
    features, tried = configured_features(config, recipe, pipe, dataset, size, accelerator)
    pipe.segmentation_head = fit_segmentation_head(
        pipe,
        dataset,
        **features,
        num_members=config.num_members,
        recipe=recipe,
        min_label_fraction=config.min_label_fraction,
        **config.noising,
        flip=False if config.no_flip else None,
        seed=config.seed,
        batch_size=config.batch_size,
        cache_dir=config.activation_dir,
        accelerator=accelerator,
        size=size,
        prompt=config.prompt,
        sparse_labels=config.sparse_labels,
    )
    if accelerator.is_main_process and unlabeled is not None:
        pipe.decisions = fit_decisions(pipe, *unlabeled, config.batch_size)
    if accelerator.is_main_process and targets:
        reading = (config.seed, config.batch_size, False if config.no_flip else None)
        pipe.decisions, reached = fit_operating_point(pipe, dataset, targets, recipe, *reading)
        print("\n".join(reached))
    head = pipe.segmentation_head.config
    found = {"decisions": head.decisions, "num_members": head.num_members}
    return pipe, found | ({"selection": tried[:10]} if tried else {})


if __name__ == "__main__":
    run_script(FitConfig, fit)
