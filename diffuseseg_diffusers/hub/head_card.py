# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a head on a pipeline of somebody else's."""

from collections.abc import Mapping, Sequence

from huggingface_hub import ModelCard, ModelCardData

from ..heads.ensemble import PixelClassifierEnsemble
from ..images.image_processor import default_palette, unnamed_classes
from .cards import (
    TAGS,
    datasets_on_hub,
    eval_results,
    fitting_facts,
    hex_color,
    render,
    with_own,
    with_validation,
)


def head_card(
    head: PixelClassifierEnsemble,
    repo_id: str,
    license: str | None = None,
    evaluations: Sequence[Mapping] = (),
    fitting: Mapping | None = None,
    own: ModelCard | None = None,
) -> ModelCard:
    """The card of a head alone, which names its base; the other arguments as in [`model_card`].

    Args:
        head ([`PixelClassifierEnsemble`]): With a `base` in its config.
        fitting (mapping, *optional*): Content of `head_training.json`.
    """
    config, fitting = head.config, dict(fitting or {})
    evaluations = with_validation(evaluations, fitting)
    data = {
        "license": "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "image-segmentation",
        "tags": [*TAGS, "semantic-segmentation"],
        "datasets": datasets_on_hub(fitting.get("dataset"), *(e.get("dataset") for e in evaluations)),
        "base_model": config.base["model"],
        "base_model_relation": "adapter",
        "metrics": ["mean_iou", "accuracy"] if evaluations else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": eval_results(evaluations),
    }
    size = " × ".join(map(str, reversed(config.image_size)))
    facts = {
        "base": f"[{config.base['model']}](https://huggingface.co/{config.base['model']})"
        + (f", commit {config.base['revision']}" if config.base["revision"] else ""),
        "images are read at": f"{size} pixels",
        "prompt": "the null prompt" if config.prompt is None else config.prompt,
        **fitting_facts(config, fitting),
    }
    names = config.label_names or unnamed_classes(config.num_classes)
    palette = config.palette or default_palette(config.num_classes)
    return render(
        ModelCard,
        "head_card.md",
        ModelCardData(**with_own(data, own, license)),
        repo_id,
        own,
        head=config,
        base=config.base,
        takes_prompt=config.base["pipeline"] not in ("DiTPipeline", "LDMPipeline", "ConsistencyModelPipeline"),
        classes=list(zip(names, map(hex_color, palette))),
        evaluations=evaluations,
        facts=[(name, value) for name, value in facts.items() if value],
    )
