# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a segmentation head for a diffusion model on a few labelled images: `diffuseseg fit`.

accelerate launch training/train_segmentation_head.py --model MODEL --dataset_name DATA --output_dir OUT
"""

import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator

from diffuseseg_diffusers.datasets.columns import describe_dataset
from diffuseseg_diffusers.datasets.crops import read_labels
from diffuseseg_diffusers.datasets.find_labeled import load_labels
from diffuseseg_diffusers.datasets.labeled import LabeledImages
from diffuseseg_diffusers.datasets.overview import overview
from diffuseseg_diffusers.datasets.unlabeled import evenly_spread, spread_images
from diffuseseg_diffusers.evaluation.agreement import IMAGES, record_agreement
from diffuseseg_diffusers.evaluation.decision_fitting import fit_decisions
from diffuseseg_diffusers.evaluation.evaluate import evaluate_segmentation, format_metrics
from diffuseseg_diffusers.fitting.best import MAX_MINUTES, describe, fit_best
from diffuseseg_diffusers.fitting.views import TILE, in_pieces
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.heads.fit import fit_segmentation_head
from diffuseseg_diffusers.heads.operating import Target, fit_operating_point
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.heads.selection import configured_features
from diffuseseg_diffusers.heads.views import compare_views, shapes_of, tiling_of, trained_on_crops, whole_size
from diffuseseg_diffusers.hub.push import finish_push, prepare_push
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import check_output_folder, output_folder, shown_name, write_json
from diffuseseg_diffusers.jobs.hardware import find_device, find_dtype, hardware, report_processes, short_name
from diffuseseg_diffusers.pipelines.backbone import load_backbone
from diffuseseg_diffusers.pipelines.composed import ComposedDiffuseSegPipeline
from diffuseseg_diffusers.pipelines.general import GENERAL, USED, comes_with_package, describe_model, hub_name
from diffuseseg_diffusers.pipelines.loading import load_pipeline, save_fitted
from diffuseseg_diffusers.pipelines.pixel import DiffuseSegPipeline
from diffuseseg_diffusers.pipelines.segmenter import HeadSegmenter
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
        config = replace(config, model=GENERAL)
        accelerator.print(USED)
    if accelerator.is_main_process:
        prepare_push(config)
    dataset, validation = load_labels(config)
    accelerator.print(overview(config.dataset_name, config.split, dataset))
    device, name = find_device(config.device or accelerator.device), config.model or config.backbone
    pipe = load_frozen(config, device, find_dtype(config.dtype, device, name))
    config = with_recipe(config, pipe, dataset, accelerator)
    whole = config.size or pipe.features().size
    tile = whole if config.tile and config.recipe != BEST else None
    dataset, validation = read_labels(config, dataset, validation, pipe.channels, tile)

    # 2. The head, or several models that vote.
    began = time.perf_counter()
    if config.recipe == BEST:
        tiles, size = usual_view(name, pipe, config.tile)
        dataset = in_pieces(dataset, tiles, config.max_tiles, config.seed)
        model, found = fit_best_model(config, pipe, dataset, size)
    else:
        model, found = fit_one_head(config, pipe, dataset, accelerator)
    if not accelerator.is_main_process:
        return None
    report = describe_fit(config, pipe, len(dataset), accelerator.num_processes, time.perf_counter() - began) | found

    # 3. What it is worth.
    if not isinstance(pipe, ComposedDiffuseSegPipeline):  # of which a second copy in float32 may not fit
        compared = dataset if validation is None or config.recipe == BEST else validation
        chosen = evenly_spread(len(compared), IMAGES)
        for one in getattr(model, "models", [model]):
            if isinstance(one, HeadSegmenter):
                images = (compared[i].image for i in chosen)
                report["agreement"] = record_agreement(one, partial(load_frozen, config, device), images, device)
    if validation is not None:
        report["validation"], _ = evaluate_segmentation(model, validation)
        report["validation"]["dataset"] = {**report["dataset"], "split": config.validation_split or config.split}
        print(format_metrics(report["validation"]))

    # 4. Where it goes.
    with output_folder(config.output_dir, config.overwrite, "fit", config.inputs()) as folder:
        save_fitted(model, folder, name, config.revision, config.cache_dir)
        write_json(folder / "head_training.json", report)
    print(f"Fitted on {len(dataset)} images in {report['seconds']} s; the pipeline is in {config.output_dir}.")
    finish_push(config)
    return model


def with_recipe(config: FitConfig, pipe: Any, dataset: LabeledImages, accelerator: Accelerator) -> FitConfig:
    """The configuration with a recipe: `best` if none is named, unless something speaks against it, which is said."""
    if config.recipe not in (None, BEST):
        return config
    against = [f"--{name} is given" for name in config.against_best()]
    if not isinstance(pipe, DiffuseSegPipeline):
        against.append(f"{config.model or config.backbone} is no denoiser of pixels")
    if accelerator.num_processes > 1:
        against.append(f"{accelerator.num_processes} processes run")
    if len(dataset) == 1 and config.tile is False:
        against.append("there is one whole picture, and nothing to compare on")
    if config.recipe == BEST and against:
        raise UserError(f"--recipe best is not possible: {against[0]}; use --recipe default.")
    if config.recipe is None:
        accelerator.print(f"Recipe: {f'default, as {against[0]}' if against else BEST}.")
    return replace(config, recipe="default" if against else BEST)


def usual_view(name: str, pipe: Any, tiles: bool | None) -> tuple[bool | None, tuple[int, int] | None]:
    """Whether a denoiser wants tiles, if that was not said, and the size at which it reads pieces, if not their own."""
    crops, scale = trained_on_crops(name)
    tiles = crops if tiles is None else tiles
    if tiles:
        return True, None if scale is None else (round(TILE * scale), round(TILE * scale))
    return tiles, None if comes_with_package(name) else pipe.features().size


def fit_best_model(
    config: FitConfig, pipe: Any, dataset: LabeledImages, size: tuple[int, int] | None
) -> tuple[Any, dict[str, Any]]:
    """The models that vote, chosen by cross-validation, and what `head_training.json` holds of the choice."""
    flip = False if config.no_flip else None
    how = (config.max_minutes or MAX_MINUTES, flip, config.seed, config.batch_size, config.min_label_fraction)
    model, choice = fit_best(pipe, dataset, *how, size=size)
    print(describe(choice, model.label_names))
    return model, {"choice": asdict(choice)}


def fit_one_head(
    config: FitConfig, pipe: Any, dataset: LabeledImages, accelerator: Accelerator
) -> tuple[Any, dict[str, Any]]:
    """The pipeline with a head on its activations, and what `head_training.json` holds of it."""
    size, name = config.size, config.model or config.backbone
    if not (size or config.tile) and comes_with_package(name):
        size = whole_size(shapes_of(dataset), pipe.features())
        accelerator.print(f"Whole pictures are read at {size[0]} × {size[1]}; --resolution sets another size.")
    if differs := compare_views(name, tiling_of(dataset, size or pipe.features().size)):
        accelerator.print(f"warning: {differs}")
    targets = [Target.parse(text, Classes.of(dataset)) for text in config.target]
    unlabeled = spread_images(config) if config.unlabeled_dataset_name else None
    features, tried = configured_features(config, pipe, dataset, size, accelerator)
    pipe.segmentation_head = fit_segmentation_head(
        pipe,
        dataset,
        **features,
        num_members=config.num_members,
        recipe=config.recipe or "default",
        min_label_fraction=config.min_label_fraction,
        share_noise=not config.fresh_noise,
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
        pipe.decisions, reached = fit_operating_point(
            pipe, dataset, targets, find_recipe(config.recipe or "default"), *reading
        )
        print("\n".join(reached))
    head = pipe.segmentation_head.config
    found = {"decisions": head.decisions, "num_members": head.num_members}
    return pipe, found | ({"selection": tried[:10]} if tried else {})


def load_frozen(config: FitConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that `--model` or `--backbone` names, without a head: one that is there already is replaced."""
    if config.backbone:
        return load_backbone(config.backbone, device, dtype, config.revision, config.cache_dir)
    pipe: Any = load_pipeline(config.model, **config.loading(device=device, dtype=dtype))
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(f"{config.model} is a student or several models, with no head to fit; give a diffusion model.")
    pipe.segmentation_head = None
    return pipe


def describe_fit(config: FitConfig, pipe: Any, num_images: int, num_processes: int, seconds: float) -> dict[str, Any]:
    """What `head_training.json` holds of the fit itself."""
    name, extractor = config.model or config.backbone, pipe.features()
    return {
        "model": describe_model(name, pipe.unet) if comes_with_package(name) else shown_name(name),
        "model_on_hub": hub_name(name),
        "dataset": describe_dataset(config.dataset_name, config.dataset_config_name, config.split),
        "num_images": num_images,
        **{option: getattr(config, option) for option in ("mask_format", "recipe", "sparse_labels", "seed")},
        "dtype": short_name(extractor.dtype),
        "device": str(extractor.device),
        "hardware": hardware(extractor.device),
        "num_processes": num_processes,
        "seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    run_script(FitConfig, fit)
