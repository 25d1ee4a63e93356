# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a pipeline."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import PIL.Image
import torch
from diffusers import DDIMScheduler
from diffusers.utils import make_image_grid
from huggingface_hub import ModelCard, ModelCardData

from ..features.pixel_unet import image_size
from ..figures.pages import samples_page
from ..pipelines.pixel import DiffuseSegPipeline
from .cards import (
    CURVES,
    RECORDS,
    SAMPLES,
    TAGS,
    datasets_on_hub,
    describe_duration,
    describe_images,
    describe_machine,
    eval_results,
    figure_image,
    fitting_facts,
    hex_color,
    render,
    with_own,
    with_validation,
)


SAMPLE_STEPS = 50


def model_card(
    pipe: DiffuseSegPipeline,
    repo_id: str,
    files: Mapping[str, Path | bytes],
    license: str | None = None,
    evaluations: Sequence[Mapping] = (),
    records: Mapping[str, Mapping] | None = None,
    own: ModelCard | None = None,
) -> ModelCard:
    """The card of a pipeline, of what is known about it and nothing else.

    Args:
        pipe ([`DiffuseSegPipeline`]), repo_id (`str`): What is described, and where it will be.
        files (mapping): What goes with it, see [`pipeline_files`].
        license (`str`, *optional*), evaluations (sequence of `dict`): See [`push_folder`].
        records (mapping, *optional*): Content of `training_state.json` and `head_training.json`, by name.
        own (`ModelCard`, *optional*): What the user wrote; its metadata wins, and its text stands at the top.
    """
    training, fitting = (dict((records or {}).get(name, {})) for name in RECORDS)
    head = None if pipe.segmentation_head is None else pipe.segmentation_head.config
    evaluations = with_validation(evaluations, fitting)
    height, width = image_size(pipe.unet)
    kind = "grey-scale images" if pipe.unet.config.in_channels == 1 else "colour images"
    used = [training.get("dataset"), fitting.get("dataset"), *(e.get("dataset") for e in evaluations)]
    data = {
        "license": "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "image-segmentation" if head else "unconditional-image-generation",
        "tags": [*TAGS, "semantic-segmentation" if head else "unconditional-image-generation"],
        "datasets": datasets_on_hub(*used),
        "base_model": fitting.get("model_on_hub"),
        "metrics": ["mean_iou", "accuracy"] if evaluations else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": eval_results(evaluations),
    }
    return render(
        ModelCard,
        "model_card.md",
        ModelCardData(**with_own(data, own, license)),
        repo_id,
        own,
        head=head,
        image_kind=f"{kind} of {width} × {height} pixels" + (" and any other size" if head else ""),
        carries_code="pipeline_diffuseseg.py" in files,
        classes=list(zip(pipe.label_names, map(hex_color, pipe.palette))) if head else [],
        samples=SAMPLES if SAMPLES in files else None,
        samples_made=f"{SAMPLE_STEPS} steps of DDIM, seed 0",
        curves=CURVES if CURVES in files else None,
        figures=[(Path(name).stem.replace("-", " "), name) for name in files if name.startswith("analysis/")],
        evaluations=evaluations,
        facts=list(_facts(pipe, training, fitting)),
    )


def sample_sheet(pipe: DiffuseSegPipeline, count: int, num_inference_steps: int = SAMPLE_STEPS) -> PIL.Image.Image:
    """Images that the pipeline generates with DDIM from seed 0, with their masks and overlays if it has a head."""
    pipe = DiffuseSegPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config), pipe.segmentation_head)
    pipe.set_progress_bar_config(desc="Samples for the card", leave=False)
    generator = torch.Generator().manual_seed(0)
    output = pipe(count, num_inference_steps=num_inference_steps, generator=generator)
    if output.masks is None:
        columns = max(c for c in range(1, int(count**0.5) + 1) if count % c == 0)
        return make_image_grid(output.images, rows=columns, cols=count // columns)
    return figure_image(samples_page(output.images, output.masks, pipe.label_names, pipe.palette))


def _facts(pipe: DiffuseSegPipeline, training: Mapping, fitting: Mapping) -> Iterator[tuple[str, str]]:
    """Rows of the table of data and training: what is known, in words."""
    unet, head = pipe.unet, pipe.segmentation_head
    rows = {
        "U-Net": f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} million parameters, "
        f"{len(unet.config.block_out_channels)} levels",
        "noise schedule": f"{pipe.scheduler.config.num_train_timesteps} timesteps, "
        f"{pipe.scheduler.config.beta_schedule}, predicts {pipe.scheduler.config.prediction_type}",
        "unlabelled images": describe_images(training.get("dataset"), None),
    }
    if training:
        rows["training of the U-Net"] = (
            f"{training['step']:,} steps, {training['images_seen']:,} images in "
            f"{describe_duration(training['seconds'])}"
            + (f", mixed precision {training['mixed_precision']}" if training["mixed_precision"] != "no" else "")
        )
        rows["hardware for that"] = describe_machine(training)
    if fitting.get("model_on_hub"):
        rows["U-Net from"] = f"[{fitting['model_on_hub']}](https://huggingface.co/{fitting['model_on_hub']})"
    if head is not None:
        rows |= fitting_facts(head.config, fitting)
    yield from ((name, value) for name, value in rows.items() if value)
