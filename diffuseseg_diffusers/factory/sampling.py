# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images with masks from a pipeline, in batches that are functions of the run's seed and their number alone.

DatasetGAN (Zhang et al., CVPR 2021), and DatasetDDPM of Baranchuk et al. (ICLR 2022), section 4.2.
"""

import io

import numpy as np
import PIL.Image
import pyarrow as pa
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin

from ..data.image_processor import mask_to_pil
from ..heads.ensemble import image_uncertainty
from ..pipeline_diffuseseg import DiffuseSegPipeline
from ..runs.errors import UserError
from ..runs.seeds import mixed_seed
from .shards import PART_SCHEMA


SCHEDULERS = {"ddpm": None, "ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
IMAGE_FORMATS = ("png", "jpeg")
MAX_CLASSES = 255  # a mask holds ids 0 to 255, and 255 means that there is no label


def scheduler_for(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """The sampler of that name, a key of `SCHEDULERS`, with the noise schedule of the given one."""
    if SCHEDULERS[name] is None:
        return scheduler
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2} if name == "dpmsolver++" else {}
    return SCHEDULERS[name].from_config(scheduler.config, **options)


def check_generates_masks(pipe: object, name: str) -> None:
    """Refuses a model that generates no images, or no masks that fit into eight bits.

    Args:
        pipe: As loaded.
        name (`str`): For messages.

    Raises:
        UserError: It is no [`DiffuseSegPipeline`], has no segmentation head, or too many classes.
    """
    if not isinstance(pipe, DiffuseSegPipeline):
        raise UserError(f"{name} segments images, but generates none; give a diffusion model with a segmentation head.")
    if pipe.segmentation_head is None:
        raise UserError(f"{name} has no segmentation head, and would give no masks; fit one: `diffuseseg fit`.")
    if pipe.segmentation_head.config.num_classes > MAX_CLASSES:
        raise UserError(
            f"The head of {name} has {pipe.segmentation_head.config.num_classes} classes, but masks hold at most "
            f"{MAX_CLASSES}; fit one with fewer."
        )


def generate_batch(
    pipe: DiffuseSegPipeline,
    batch: int,
    batch_size: int,
    seed: int,
    num_inference_steps: int,
    masks_while_sampling: bool = False,
    image_format: str = "png",
) -> pa.Table:
    """One batch of the dataset, a function of its number, the seed and the settings alone.

    Every image has a generator of its own, for the noise that it starts from, that of the sampler, and that of the
    features if the head was fitted with fresh noise.

    Args:
        pipe ([`DiffuseSegPipeline`]): With a head.
        batch (`int`): Number of the batch; it holds the images `batch * batch_size` and following.
        batch_size (`int`): Images in a batch.
        seed (`int`): Of the run.
        num_inference_steps (`int`), masks_while_sampling (`bool`): As in [`DiffuseSegPipeline.__call__`].
        image_format (`str`, defaults to `"png"`): One of `IMAGE_FORMATS`.

    Returns:
        `pyarrow.Table`: The columns of `PART_SCHEMA`.
    """
    indices = range(batch * batch_size, (batch + 1) * batch_size)
    seeds = [mixed_seed(seed, i) for i in indices]
    output = pipe(
        batch_size=batch_size,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        num_inference_steps=num_inference_steps,
        masks_while_sampling=masks_while_sampling,
        output_type="np",
    )
    images = pipe.numpy_to_pil(output.images)
    num_classes = pipe.segmentation_head.config.num_classes
    scores = image_uncertainty(torch.from_numpy(output.uncertainty)).tolist()
    masks = [mask_to_pil(mask, pipe.palette) for mask in output.masks]
    columns = {
        "image": [{"bytes": _encode(image, image_format), "path": None} for image in images],
        "mask": [{"bytes": _encode(mask, "png"), "path": None} for mask in masks],
        "uncertainty": scores,
        "seed": seeds,
        "index": list(indices),
        "pixels": [np.bincount(mask.ravel(), minlength=num_classes).tolist() for mask in output.masks],
    }
    return pa.table(columns, schema=PART_SCHEMA)


def _encode(image: PIL.Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"quality": 95} if image_format == "jpeg" else {}))
    return buffer.getvalue()
