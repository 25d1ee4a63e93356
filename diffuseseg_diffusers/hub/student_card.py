# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a student."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..runs.files import read_json
from .cards import (
    datasets_on_hub,
    describe_duration,
    describe_images,
    describe_machine,
    eval_results,
    render,
    with_own,
)


STUDENT_RECORD = "student_training.json"  # the mark of a folder that `train-student` left
STUDENT_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def student_card(folder: Path, repo_id: str, license: str | None = None, own: ModelCard | None = None) -> ModelCard:
    """The card of a student that `train-student` left in a folder; the other arguments as in [`model_card`]."""
    record, config = read_json(folder / STUDENT_RECORD), read_json(folder / "config.json")
    evaluation, dataset, real = record.get("evaluation"), record["train_dataset"], record.get("real_dataset")
    data = {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["diffuseseg", "semantic-segmentation"],
        "datasets": datasets_on_hub(dataset, real, (evaluation or {}).get("dataset")),
        "base_model": record.get("model_on_hub"),
        "metrics": ["mean_iou", "accuracy"] if evaluation else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": eval_results([evaluation] if evaluation else []),
    }
    facts = {
        "network": f"{config['architectures'][0]}, {record['parameters'] / 1e6:.1f} million parameters",
        "weights at the start": record["start"],
        "images with masks": describe_images(dataset, record["num_images"]),
        "and real ones": describe_images(real, record.get("num_real_images")),
        "training": f"{len(record['epochs'])} epochs in {describe_duration(record['seconds'])}",
        "mean IoU on held-out training data": f"{record['validation_mean_iou']:.4f}",
        "hardware": describe_machine(record),
    }
    return render(
        ModelCard,
        "student_card.md",
        ModelCardData(**with_own(data, own, license)),
        repo_id,
        own,
        model_type=config["model_type"],
        classes=[config["id2label"][str(i)] for i in range(len(config["id2label"]))],
        synthetic=record["synthetic"],
        evaluation=evaluation,
        facts=[(name, value) for name, value in facts.items() if value],
    )
