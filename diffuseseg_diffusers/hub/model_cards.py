# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The cards of pipelines, heads, students and several models: what is known about them, and nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from diffusers import DDIMScheduler
from diffusers.utils import make_image_grid
from huggingface_hub import EvalResult, ModelCard
from torch import nn

from ..features.noise import sees_no_noise
from ..features.pixel_unet import image_size
from ..figures.pages import samples_page
from ..fitting.choice import FEW
from ..heads.ensemble import PixelClassifierEnsemble
from ..images.image_processor import default_palette, unnamed_classes
from ..jobs.files import read_object
from ..pipelines.averaged import AveragedSegmenter
from ..pipelines.pixel import DiffuseSegPipeline
from ..pipelines.segmenter import HeadSegmenter, Segmenter
from ..students.unets import RECORD as UNET_RECORD
from .cards import SAMPLES, describe_duration, describe_images, describe_machine, figure_image, hex_color, render
from .files import CURVES, STUDENT_RECORD


TAGS = ["diffuseseg", "ddpm", "label-efficient-segmentation"]
SEGMENTS = "semantic-segmentation"
GENERATES = "unconditional-image-generation"
SAMPLE_STEPS = 50
WITHOUT_PROMPT = ("DiTPipeline", "LDMPipeline", "ConsistencyModelPipeline")


def pipeline_card(
    pipe: DiffuseSegPipeline,
    files: Mapping[str, Path | bytes],
    training: Mapping,
    fitting: Mapping,
    evaluations: Sequence[Mapping],
    **given: Any,
) -> ModelCard:
    """The card of a pipeline.

    Args:
        pipe ([`DiffuseSegPipeline`]): What is described.
        files (mapping): What goes with it.
        training, fitting (mapping): Content of `training_state.json` and `head_training.json`, empty if not there.
        evaluations (sequence of `dict`): See [`push_folder`].
        **given: `repo_id`, `license` and `own` of [`render`].
    """
    unet, head = pipe.unet, None if pipe.segmentation_head is None else pipe.segmentation_head.config
    height, width = image_size(unet)
    kind = "grey-scale images" if unet.config.in_channels == 1 else "colour images"
    facts = {
        "U-Net": f"{_millions(unet)}, {len(unet.config.block_out_channels)} levels",
        "noise schedule": "none: distilled to see clean images"
        if sees_no_noise(pipe.scheduler)
        else f"{pipe.scheduler.config.num_train_timesteps} timesteps, "
        f"{pipe.scheduler.config.beta_schedule}, predicts {pipe.scheduler.config.prediction_type}",
        "unlabelled images": describe_images(training.get("dataset"), None),
    }
    if training:
        precision = training["mixed_precision"]
        facts["training of the U-Net"] = (
            f"{training['step']:,} steps, {training['images_seen']:,} images in "
            f"{describe_duration(training['seconds'])}"
            + (f", mixed precision {precision}" if precision != "no" else "")
        )
        facts["hardware for that"] = describe_machine(training)
    if base := fitting.get("model_on_hub"):
        facts["U-Net from"] = f"[{base}](https://huggingface.co/{base})"
    return _render(
        "model_card.md",
        {
            "pipeline_tag": "image-segmentation" if head else GENERATES,
            "tags": [*TAGS, SEGMENTS if head else GENERATES],
            "base_model": base,
        },
        facts | _head_facts(head) | _fitting_facts(fitting) if head else facts,
        [training.get("dataset"), fitting.get("dataset")],
        [*evaluations, *_validation(fitting)],
        **given,
        head=head,
        image_kind=f"{kind} of {width} × {height} pixels" + (" and any other size" if head else ""),
        carries_code="pipeline_diffuseseg.py" in files,
        classes=list(zip(pipe.label_names, map(hex_color, pipe.palette))) if head else [],
        samples=SAMPLES if SAMPLES in files else None,
        samples_made=f"{SAMPLE_STEPS} steps of DDIM, seed 0",
        curves=CURVES if CURVES in files else None,
        figures=[(Path(name).stem.replace("-", " "), name) for name in files if name.startswith("analysis/")],
    )


def head_card(
    head: PixelClassifierEnsemble, fitting: Mapping, evaluations: Sequence[Mapping], **given: Any
) -> ModelCard:
    """The card of a head alone, which names the `base` of its config; other arguments as in [`pipeline_card`]."""
    config, base = head.config, head.config.base
    facts = {
        "base": f"[{base['model']}](https://huggingface.co/{base['model']})"
        + (f", commit {base['revision']}" if base["revision"] else ""),
        "images are read at": f"{' × '.join(map(str, reversed(config.image_size)))} pixels",
        "prompt": "the null prompt" if config.prompt is None else config.prompt,
    }
    names = config.label_names or unnamed_classes(config.num_classes)
    palette = config.palette or default_palette(config.num_classes)
    return _render(
        "head_card.md",
        {"tags": [*TAGS, SEGMENTS], "base_model": base["model"], "base_model_relation": "adapter"},
        facts | _head_facts(config) | _fitting_facts(fitting),
        [fitting.get("dataset")],
        [*evaluations, *_validation(fitting)],
        **given,
        head=config,
        base=base,
        takes_prompt=base["pipeline"] not in WITHOUT_PROMPT,
        classes=list(zip(names, map(hex_color, palette))),
    )


def segmenter_card(model: Segmenter, fitting: Mapping, evaluations: Sequence[Mapping], **given: Any) -> ModelCard:
    """The card of an [`AveragedSegmenter`], or of the U-Net that `fit` chose alone; other arguments as in
    [`pipeline_card`]."""
    members: Any = [(model, None)]
    if isinstance(model, AveragedSegmenter):
        members = list(zip(model.models, model.weights, strict=True))
    facts: dict[str, str | None] = {f"model {i}": _describe_member(*own) for i, own in enumerate(members, 1)}
    on_base = any(isinstance(one, HeadSegmenter) for one, _ in members)
    return _render(
        "segmenter_card.md",
        {
            "library_name": None,  # no other loads it
            "tags": ["diffuseseg", SEGMENTS],
            "base_model": fitting.get("model_on_hub") if on_base else None,
        },
        facts | _class_of_a_pixel(model.decisions, model.guided) | _fitting_facts(fitting),
        [fitting.get("dataset")],
        [*evaluations, *_validation(fitting)],
        **given,
        number=len(members),
        chosen=bool(fitting.get("choice")),
        classes=list(zip(model.label_names, map(hex_color, model.palette))),
    )


def _describe_member(model: Any, share: float | None) -> str:
    """One of several models in words."""
    height, width = model.image_size
    if isinstance(model, AveragedSegmenter):
        what = f"{len(model.models)} models"
    elif isinstance(model, HeadSegmenter):
        what = _describe_head(model.segmentation_head.config)
    else:
        what = f"{type(model.model).__name__}, {_millions(model.model)}"
    return f"{what}, reads {width} × {height} pixels" + (f", {share:.0%} of the mean" if share is not None else "")


def _millions(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} million parameters"


def student_card(folder: Path, **given: Any) -> ModelCard:
    """The card of a student that `train-student` left in a folder; other arguments as in [`pipeline_card`]."""
    record, config = read_object(folder / STUDENT_RECORD), read_object(folder / "config.json")
    dataset, real, unlabeled = (record.get(f"{kind}_dataset") for kind in ("train", "real", "unlabeled"))
    is_unet = (folder / UNET_RECORD).is_file()
    if is_unet:
        classes, network = read_object(folder / UNET_RECORD)["label_names"], config["_class_name"]
    else:
        classes = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
        network = config["architectures"][0]
    validation = record["validation_mean_iou"]
    facts = {
        "network": f"{network}, {record['parameters'] / 1e6:.1f} million parameters",
        "weights at the start": record["start"],
        "images with masks": describe_images(dataset, record["num_images"]) if dataset else None,
        "and real ones": describe_images(real, record.get("num_real_images")),
        "images without labels": describe_images(unlabeled, record.get("num_unlabeled_images")),
        "their soft targets": f"by {record['teacher']}" if record.get("teacher") else None,
        "class of a pixel": record.get("decisions")
        and "the one that raises mean IoU most, with DiffuseSeg; the likeliest, with other libraries",
        "training": f"{len(record['epochs'])} epochs in {describe_duration(record['seconds'])}",
        "mean IoU on held-out training data": None if validation is None else f"{validation:.4f}",
        "hardware": describe_machine(record),
    }
    return _render(
        "student_card.md",
        {
            "library_name": "diffusers" if is_unet else "transformers",
            "tags": ["diffuseseg", SEGMENTS],
            "base_model": record.get("model_on_hub"),
        },
        facts,
        [dataset, real, unlabeled],
        [record["evaluation"]] if record.get("evaluation") else [],
        **given,
        model_type="U-Net" if is_unet else config["model_type"],
        is_unet=is_unet,
        decisions=record.get("decisions"),
        labelled=dataset is not None or real is not None,
        distilled=unlabeled is not None,
        classes=[(name, None) for name in classes],
        synthetic=record["synthetic"],
    )


def sample_sheet(pipe: DiffuseSegPipeline, count: int) -> PIL.Image.Image:
    """Images that the pipeline generates with DDIM from seed 0, with their masks and overlays if it has a head."""
    pipe = DiffuseSegPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config), pipe.segmentation_head)
    pipe.set_progress_bar_config(desc="Samples for the card", leave=False)
    output = pipe(count, num_inference_steps=SAMPLE_STEPS, generator=torch.Generator().manual_seed(0))
    if output.masks is None:
        columns = max(c for c in range(1, int(count**0.5) + 1) if count % c == 0)
        return make_image_grid(output.images, rows=columns, cols=count // columns)
    return figure_image(samples_page(output.images, output.masks, pipe.label_names, pipe.palette))


def _render(
    template: str,
    data: Mapping[str, Any],
    facts: Mapping[str, str | None],
    datasets: Iterable[Mapping | None],
    evaluations: Sequence[Mapping],
    repo_id: str,
    **values: Any,
) -> ModelCard:
    """A card with what all cards of models state: datasets that are on the Hub, results, and a table of facts."""
    used = [*datasets, *(e.get("dataset") for e in evaluations)]
    data = {
        "library_name": "diffusers",
        "pipeline_tag": "image-segmentation",
        "datasets": list(dict.fromkeys(d["name"] for d in used if d and d.get("on_hub"))) or None,
        "metrics": ["mean_iou", "accuracy"] if evaluations else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": [result for e in evaluations for result in _eval_results(e)] or None,
        **data,
    }
    return render(ModelCard, template, data, repo_id, evaluations=evaluations, facts=facts, **values)


def _validation(fitting: Mapping) -> list[dict]:
    """What `fit` measured on images that it held out, if anything."""
    return [{**fitting["validation"], "is_validation": True}] if fitting.get("validation") else []


def _head_facts(config: Mapping) -> dict[str, str | None]:
    """Rows about a segmentation head."""
    rule = _class_of_a_pixel(config.get("decisions"), config.get("guided"))
    return {"segmentation head": _describe_head(config)} | rule


def _class_of_a_pixel(decisions: Any, guided: Any) -> dict[str, str | None]:
    chosen = "the one that raises mean IoU most" if decisions else None
    follows = "probabilities are filtered to follow the picture" if guided else None
    return {"class of a pixel": "; ".join(part for part in (chosen, follows) if part) or None}


def _fitting_facts(fitting: Mapping) -> dict[str, str | None]:
    """Rows from the record of a fit, which may be empty."""
    how = pieces = None
    if "seconds" in fitting:
        how = f"recipe `{fitting['recipe']}`, {fitting['dtype']}, seed {fitting['seed']}"
        how = f"{describe_duration(fitting['seconds'])}, {how}"
    if choice := fitting.get("choice"):
        pieces = f"{choice['num_pieces']} of {choice['piece'][1]} × {choice['piece'][0]} pixels"
    return {
        "labelled images": describe_images(fitting.get("dataset"), None if choice else fitting.get("num_images")),
        "pieces of them": pieces,
        "expected mean IoU": _describe_estimate(choice) if choice and choice["estimate"]["mean_iou"] else None,
        "fitting": how,
        "hardware for fitting": describe_machine(fitting),
    }


def _describe_estimate(choice: Mapping) -> str:
    """What `fit --recipe best` expects of other images, with what speaks against it."""
    expected = choice["estimate"]
    on = "pieces of the same images, which flatters" if choice["within"] else "images"
    classes = expected["per_class_iou"]
    known = sum(iou is not None for iou in classes)
    over = f" over {known} of {len(classes)} classes" if known < len(classes) else ""
    few = ", too few for the interval" if expected["units"] < FEW and not choice["within"] else ""
    interval = f"95 % interval {expected['low']:.4f} to {expected['high']:.4f}"
    by = f"by nested cross-validation on {expected['units']} {on}{few}"
    return f"{expected['mean_iou']:.4f}{over} ({interval}), {by}"


def _describe_head(config: Mapping) -> str:
    """A segmentation head in words, by its config."""
    read = []
    if config["blocks"]:
        blocks, timesteps = (", ".join(map(str, config[name])) for name in ("blocks", "timesteps"))
        noise = " without noise" if config.get("clean") else ""
        read.append(f"blocks {blocks} at timesteps {timesteps}{noise}")
    if config.get("filters"):
        read.append(f"filters of {', '.join(f'{sigma:g}' for sigma in config['filters'])} pixels")
    return f"{config['num_members']} members on {' and '.join(read)}"


def _eval_results(metrics: Mapping) -> list[EvalResult]:
    """Metrics that `diffuseseg evaluate` wrote, in the Hub's form."""
    data = metrics.get("dataset") or {"name": "labelled images"}
    values = [("mean_iou", "Mean IoU", metrics["mean_iou"]), ("accuracy", "Pixel accuracy", metrics["pixel_accuracy"])]
    values += [("iou", f"IoU of {name}", iou) for name, iou in metrics["per_class_iou"].items()]
    return [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=data["name"],
            dataset_name=data["name"],
            dataset_config=data.get("config"),
            dataset_split=data.get("split"),
            metric_type=kind,
            metric_name=name,
            metric_value=round(float(value), 4),
        )
        for kind, name, value in values
        if value is not None
    ]
