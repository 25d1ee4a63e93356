# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a fit starts from, by its configuration: the frozen model, how it reads pictures, and what the record says."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..datasets.columns import describe_dataset
from ..datasets.crops import by_planes
from ..datasets.labeled import LabeledImages
from ..datasets.unlabeled import evenly_spread
from ..evaluation.agreement import IMAGES, record_agreement
from ..features.noise import sees_no_noise
from ..heads.classes import Classes
from ..heads.fit import recipe_extractor
from ..heads.recipes import Recipe
from ..heads.views import compare_views, shapes_of, tiling_of, training_of, whole_size
from ..jobs.errors import UserError
from ..jobs.files import read_object, shown_name
from ..jobs.hardware import hardware, short_name
from ..pipelines.averaged import least_agreement
from ..pipelines.backbone import load_backbone
from ..pipelines.general import comes_with_package, describe_model, hub_name, suited_recipe
from ..pipelines.loading import load_pipeline
from ..pipelines.pixel import DiffuseSegPipeline
from ..pipelines.segmenter import HeadSegmenter, Segmenter
from ..students.report import record_student_agreement
from ..students.student import Student
from .pieces import TILE, in_pieces


def load_frozen(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """The model that `--model` or `--backbone` names, without a head: one that is there already is replaced.

    Raises:
        UserError: It cannot be loaded, or has no activations to read.
    """
    if config.backbone:
        return load_backbone(config.backbone, device, dtype, config.revision, config.cache_dir)
    pipe: Any = load_pipeline(config.model, **config.loading(device=device, dtype=dtype))
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(f"{config.model} is a student or several models, with no head to fit; give a diffusion model.")
    pipe.segmentation_head = None
    return pipe


def usual_view(name: str, pipe: Any, tiles: bool | None) -> tuple[bool | None, tuple[int, int] | None, tuple[int, ...]]:
    """How `best` reads pictures first, by the training of the denoiser.

    Returns:
        Whether in tiles, `None` where it does not matter to the denoiser; the size at which it reads pieces, `None`
        for their own; and the timesteps.
    """
    asked, general = training_of(name), comes_with_package(name)
    scale, timesteps = asked.get("scale"), tuple(suited_recipe("default", name).timesteps)
    if sees_no_noise(pipe.scheduler):
        timesteps = (0,)
    if tiles is None and "crop" in asked:
        tiles = bool(asked["crop"])
    if tiles:
        return True, None if scale is None else (round(TILE * scale), round(TILE * scale)), timesteps
    return tiles, None if general else pipe.features().size, timesteps


def check_distilled(config: Any, pipe: Any) -> None:
    """Refuses blocks of a distilled denoiser that were not distilled, where its folder says which were.

    Raises:
        UserError: Some would be read, by the options or by the recipe.
    """
    state = Path(config.model or "", "training_state.json")
    known = (
        read_object(state).get("blocks")
        if sees_no_noise(getattr(pipe, "scheduler", None)) and state.is_file()
        else None
    )
    if not isinstance(known, list):
        return
    recipe = "default" if config.recipe == "best" else config.recipe
    blocks = None if "blocks" in config.auto else config.blocks
    extractor = recipe_extractor(pipe, recipe, blocks, up_blocks=config.up_blocks)
    read = extractor.numbers if "blocks" in config.auto else extractor.blocks
    if missing := [str(block) for block in read if block not in known]:
        own = " ".join(map(str, known))
        raise UserError(
            f"{config.model} was distilled at blocks {own}, and {' '.join(missing)} would be read too; give --blocks "
            f"{own}, or distil what is to be read."
        )


def usual_recipe(config: Any, pipe: Any, dataset: LabeledImages) -> tuple[Recipe, str]:
    """The recipe of one head, and a line on the noise that the default one reads with.

    Raises:
        UserError: The model sees no noise, and some is asked for; or classes tell left from right, and mirror images
            are.
    """
    if config.mirror and Classes.of(dataset).tell_sides:
        raise UserError("Names of classes tell left from right, so images are not mirrored; leave --mirror out.")
    name = config.model or config.backbone
    recipe, extractor = suited_recipe(config.recipe, name), pipe.features()
    recipe, noisy = replace(recipe, mirror=config.mirror), config.noise in ("shared", "fresh")
    if noisy and not extractor.sees_noise:
        raise UserError(f"{name} sees no noise; leave --noise {config.noise} out.")
    if config.recipe != "default" or not extractor.sees_noise:
        return recipe, "Read of the mirror image too.\n" if recipe.mirror else ""
    noisy = noisy or (config.noise is None and config.noise_levels is not None)
    how = f"with {config.noise or 'shared'} noise" if noisy else "without noise"
    if "timesteps" in config.auto:
        return recipe, f"Read {how}; --noise sets it.\n"
    usual = extractor.default_timesteps(recipe.noisy_timesteps if noisy else recipe.timesteps)
    what = "noise level" if config.noise_levels else "timestep"
    at = " ".join(map(str, config.noise_levels or config.timesteps or usual))
    at += ", of the mirror image too" if recipe.mirror else ""
    return recipe, f"Read {how} at {what} {at}; --noise and --timesteps set others.\n"


def usual_size(config: Any, pipe: Any, dataset: LabeledImages) -> tuple[tuple[int, int] | None, str]:
    """The size at which one head reads images, `None` for the model's own, and lines on it.

    The lines say a size that was not asked for, and in what it differs from the training of the denoiser.
    """
    size, name, said = config.size, config.model or config.backbone, ""
    if not (size or config.tile) and comes_with_package(name):
        size = whole_size(shapes_of(dataset), pipe.features())
    read, seen = size or pipe.features().size, np.median(np.array(shapes_of(dataset)), axis=0)
    if not (config.size or config.tile) and (comes_with_package(name) or tuple(seen) != read):
        said = f"Whole pictures are read at {read[0]} × {read[1]}; --resolution sets another size.\n"
    if differs := compare_views(name, tiling_of(dataset, size or pipe.features().size)):
        said += f"warning: {differs}\n"
    return size, said


def against_best(config: Any, pipe: Any, dataset: LabeledImages, num_processes: int) -> list[str]:
    """What speaks against the recipe `best` beside the options: a clause each."""
    name = config.model or config.backbone
    if not isinstance(pipe, DiffuseSegPipeline):
        return [f"{name} is no denoiser of pixels"]
    if num_processes > 1:
        return [f"{num_processes} processes run"]
    if training_of(name).get("pixel_size"):
        return ["the denoiser was trained at a --pixel_size"]
    tiles, *_ = usual_view(name, pipe, config.tile)
    if len(dataset) == 1 and len(in_pieces(by_planes(dataset), tiles)) == 1:
        return ["there is one labelled picture, and nothing to compare on"]
    return []


def record_agreements(config: Any, model: Segmenter, dataset: LabeledImages, device: torch.device) -> dict[str, float]:
    """Compares masks of each fitted model with those in float32, on labelled images; the least share by precision."""
    members, chosen = getattr(model, "models", [model]), evenly_spread(len(dataset), IMAGES)
    for one in members:
        images = (dataset[i].image for i in chosen)
        if isinstance(one, Student):
            record_student_agreement(one, images)
        else:
            record_agreement(one, partial(load_frozen, config, device), images, device)
    return least_agreement(members)


def describe_fit(config: Any, pipe: Any, num_images: int, num_processes: int, seconds: float) -> dict[str, Any]:
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
