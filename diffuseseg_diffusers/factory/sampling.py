# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images with masks from a pipeline, in batches that are functions of the run's seed and their number alone.

DatasetGAN (Zhang et al., CVPR 2021), and DatasetDDPM of Baranchuk et al. (ICLR 2022), section 4.2.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from ..features.noise import BetaSchedule, noise_schedule, sees_no_noise
from ..heads.decisions import image_uncertainty
from ..images.image_files import encode_image
from ..images.image_processor import mask_to_pil
from ..jobs.errors import UserError
from ..jobs.files import read_json
from ..jobs.seeds import mixed_seed
from ..pipelines.composed import ComposedDiffuseSegPipeline
from ..pipelines.pixel import DiffuseSegPipeline
from .shards import PART_SCHEMA, PROMPT


Generator: TypeAlias = DiffuseSegPipeline | ComposedDiffuseSegPipeline  # of images with masks
SCHEDULERS = {"ddpm": None, "ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
IMAGE_FORMATS = ("png", "jpeg")
# Images, counted as often as they are seen, between a U-Net of 64 × 64 pixels whose samples served (171,000) and one
# whose samples did not (12,000).
ENOUGH_IMAGES = 50_000
MAX_CLASSES = 255  # a mask holds ids 0 to 255, and 255 means that there is no label


def scheduler_for(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """The sampler of that name, a key of `SCHEDULERS`, with the noise schedule of the given one.

    Raises:
        UserError: The given one has no schedule of betas, which DDIM and DPM-Solver++ need here.
    """
    if SCHEDULERS[name] is None:
        return scheduler
    if not isinstance(noise_schedule(scheduler), BetaSchedule):
        raise UserError(f"{name} does not sample with the noise of {type(scheduler).__name__}; leave --scheduler out.")
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2} if name == "dpmsolver++" else {}
    return SCHEDULERS[name].from_config(scheduler.config, **options)


def sampler_for(pipe: Generator, name: str | None, num_inference_steps: int) -> SchedulerMixin:
    """The sampler of that name for a pipeline's images; DDIM for U-Nets on pixels, else the pipeline's own, if `None`.

    Raises:
        UserError: It does not fit the pipeline's noise, or has fewer steps.
    """
    scheduler = scheduler_for(name or ("ddim" if isinstance(pipe, DiffuseSegPipeline) else "ddpm"), pipe.scheduler)
    limit = scheduler.config.num_train_timesteps
    if num_inference_steps > limit:
        raise UserError(f"--num_inference_steps must be at most the model's {limit}, got {num_inference_steps}.")
    return scheduler


def doubt_samples(name: str) -> str:
    """Says that the denoiser of a folder has seen too few images to sample from, by its `training_state.json`.

    Empty if it saw enough, or if the folder does not say. Features serve long before samples do.
    """
    state = Path(name, "training_state.json")
    training = read_json(state) if state.is_file() else {}
    seen = training.get("images_seen")
    if seen is None or seen >= ENOUGH_IMAGES:
        return ""
    minutes = f" in {training['seconds'] / 60:.1f} minutes" if "seconds" in training else ""
    return (
        f"The denoiser of {name} was trained on {seen:,} images{minutes}; below {ENOUGH_IMAGES:,}, samples are mostly "
        f"worse than useful: look at samples.png before you learn from them, or train for longer."
    )


def check_generates_masks(pipe: object, name: str, masks_while_sampling: bool = False) -> None:
    """Refuses a model, by its name in messages, that generates no images, or no masks that fit into eight bits.

    Raises:
        UserError: It generates no images or images of many channels, has no segmentation head, or too many classes; or
            masks are to come from sampling, and the head reads clean images.
    """
    if not isinstance(pipe, Generator):
        raise UserError(f"{name} segments images, but generates none; give a diffusion model with a segmentation head.")
    if sees_no_noise(pipe.scheduler):
        raise UserError(f"{name} was distilled to see clean images: it segments, and cannot generate.")
    if pipe.segmentation_head is None:
        raise UserError(f"{name} has no segmentation head, and would give no masks; fit one: `diffuseseg fit`.")
    if masks_while_sampling:
        pipe.head_extractor().check_noised()
    head = pipe.segmentation_head.config
    if head.in_channels not in (1, 3):
        raise UserError(
            f"{name} generates images of {head.in_channels} channels, which image files of a dataset do not hold; in "
            f'Python, pipe(…, output_type="np") gives them as arrays.'
        )
    if head.num_classes > MAX_CLASSES:
        raise UserError(
            f"The head of {name} has {head.num_classes} classes, but masks hold at most {MAX_CLASSES}; fit one with "
            f"fewer."
        )


def call_arguments(
    pipe: Generator,
    prompts: Sequence[str] = (),
    guidance_scale: float | None = None,
    resolution: tuple[int, int] | None = None,
    negative_prompt: str | None = None,
) -> Callable[[Sequence[int]], dict[str, Any]]:
    """What a pipeline's call takes for the images of given indices, beside generators and steps.

    Args:
        pipe ([`DiffuseSegPipeline`] or [`ComposedDiffuseSegPipeline`]): With a head.
        prompts (sequence of `str`): Image `i` gets prompt `i` modulo their number.
        guidance_scale (`float`, *optional*), resolution (two `int`, *optional*), negative_prompt (`str`, *optional*):
            As the call takes them; its defaults if not given.

    Raises:
        UserError: The pipeline needs prompts and there are none, or it does not take what was given.
    """
    takes = inspect.signature((pipe.base if isinstance(pipe, ComposedDiffuseSegPipeline) else pipe).__call__).parameters
    height, width = resolution or (None, None)
    fixed: dict[str, Any] = {"guidance_scale": guidance_scale, "height": height, "width": width}
    fixed = {name: value for name, value in fixed.items() if value is not None}
    given = {*fixed, *(["prompt"] if prompts else []), *(["negative_prompt"] if negative_prompt else [])}
    if unknown := sorted(given - takes.keys()):
        raise UserError(f"{type(pipe.denoiser).__name__} takes no {' and no '.join(unknown)}; leave that out.")
    if "prompt" in takes and not prompts:
        raise UserError("This model generates from prompts; give --prompt or --prompts_file.")

    def for_images(indices: Sequence[int]) -> dict[str, Any]:
        if prompts:
            texts = {"prompt": [prompts[i % len(prompts)] for i in indices]}
            if negative_prompt:
                texts["negative_prompt"] = [negative_prompt] * len(indices)
            return {**fixed, **texts}
        if "class_labels" in takes and "batch_size" not in takes:  # DiT: the null class, which knows no guidance
            null = pipe.denoiser.config.num_embeds_ada_norm
            return {"guidance_scale": 1.0, **fixed, "class_labels": [null] * len(indices)}
        return {**fixed, "batch_size": len(indices)}

    return for_images


def generate_batch(
    pipe: Generator,
    batch: int,
    batch_size: int,
    seed: int,
    num_inference_steps: int,
    masks_while_sampling: bool = False,
    image_format: str = "png",
    arguments: Callable[[Sequence[int]], dict[str, Any]] | None = None,
) -> pa.Table:
    """One batch of the dataset, a function of its number, the seed and the settings alone.

    Every image has a generator of its own, for the noise that it starts from, that of the sampler, and that of the
    features if the head was fitted with fresh noise.

    Args:
        pipe, num_inference_steps, masks_while_sampling: As in [`call_arguments`] and [`DiffuseSegPipeline.__call__`].
        batch (`int`): Number of the batch; it holds the images `batch * batch_size` and following.
        batch_size (`int`): Images in a batch.
        seed (`int`): Of the run.
        image_format (`str`, defaults to `"png"`): One of `IMAGE_FORMATS`.
        arguments (`Callable`, *optional*): Of [`call_arguments`]; only the number of images if not given.

    Returns:
        `pyarrow.Table`: The columns of `PART_SCHEMA`, and `prompt` if there is one.
    """
    indices = range(batch * batch_size, (batch + 1) * batch_size)
    seeds = [mixed_seed(seed, i) for i in indices]
    given = arguments(indices) if arguments else {"batch_size": batch_size}
    output = pipe(
        **given,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        num_inference_steps=num_inference_steps,
        masks_while_sampling=masks_while_sampling,
        output_type="np",
    )
    images = pipe.numpy_to_pil(output.images)
    num_classes = pipe.segmentation_head.config.num_classes
    scores = image_uncertainty(torch.from_numpy(output.uncertainty)).tolist()
    masks = [mask_to_pil(mask, pipe.palette) for mask in output.masks]
    options = {"quality": 95} if image_format == "jpeg" else {}
    columns = {
        "image": [{"bytes": encode_image(image, image_format, **options), "path": None} for image in images],
        "mask": [{"bytes": encode_image(mask), "path": None} for mask in masks],
        "uncertainty": scores,
        "seed": seeds,
        "index": list(indices),
        "pixels": [np.bincount(mask.ravel(), minlength=num_classes).tolist() for mask in output.masks],
    }
    schema = PART_SCHEMA
    if "prompt" in given:
        columns["prompt"], schema = given["prompt"], schema.append(PROMPT)
    return pa.table(columns, schema=schema)
