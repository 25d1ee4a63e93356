# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a student."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..jobs.files import read_json
from ..students.unets import RECORD as UNET_RECORD
from .cards import datasets_on_hub, describe_duration, describe_images, describe_machine, eval_results, render, with_own


STUDENT_RECORD = "student_training.json"  # the mark of a folder that `train-student` left
OF_TRANSFORMERS = ("config.json", "model.safetensors", "preprocessor_config.json")
OF_DIFFUSERS = ("config.json", "diffusion_pytorch_model.safetensors", UNET_RECORD)
STUDENT_FILES = tuple(dict.fromkeys((*OF_TRANSFORMERS, *OF_DIFFUSERS)))  # of all kinds


def student_files(folder: Path) -> tuple[str, ...]:
    """The files that a student of the kind in a folder consists of."""
    return OF_DIFFUSERS if (folder / UNET_RECORD).is_file() else OF_TRANSFORMERS


def student_card(folder: Path, repo_id: str, license: str | None = None, own: ModelCard | None = None) -> ModelCard:
    """The card of a student that `train-student` left in a folder; the other arguments as in [`model_card`]."""
    record, config = read_json(folder / STUDENT_RECORD), read_json(folder / "config.json")
    evaluation, dataset, real = record.get("evaluation"), record["train_dataset"], record.get("real_dataset")
    unlabeled, is_unet = record.get("unlabeled_dataset"), (folder / UNET_RECORD).is_file()
    if is_unet:
        classes, network = read_json(folder / UNET_RECORD)["label_names"], config["_class_name"]
    else:
        classes = [config["id2label"][str(i)] for i in range(len(config["id2label"]))]
        network = config["architectures"][0]
    validation = record["validation_mean_iou"]
    data = {
        "license": "unknown",
        "library_name": "diffusers" if is_unet else "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["diffuseseg", "semantic-segmentation"],
        "datasets": datasets_on_hub(dataset, real, unlabeled, (evaluation or {}).get("dataset")),
        "base_model": record.get("model_on_hub"),
        "metrics": ["mean_iou", "accuracy"] if evaluation else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": eval_results([evaluation] if evaluation else []),
    }
    facts = {
        "network": f"{network}, {record['parameters'] / 1e6:.1f} million parameters",
        "weights at the start": record["start"],
        "images with masks": describe_images(dataset, record["num_images"]) if dataset else None,
        "and real ones": describe_images(real, record.get("num_real_images")),
        "images without labels": describe_images(unlabeled, record.get("num_unlabeled_images")),
        "their soft targets": f"by {record['teacher']}" if record.get("teacher") else None,
        "class of a pixel": "the one that raises mean IoU most, with DiffuseSeg; the likeliest, with other libraries"
        if record.get("decisions")
        else None,
        "training": f"{len(record['epochs'])} epochs in {describe_duration(record['seconds'])}",
        "mean IoU on held-out training data": None if validation is None else f"{validation:.4f}",
        "hardware": describe_machine(record),
    }
    return render(
        ModelCard,
        "student_card.md",
        ModelCardData(**with_own(data, own, license)),
        repo_id,
        own,
        model_type="U-Net" if is_unet else config["model_type"],
        is_unet=is_unet,
        decisions=record.get("decisions"),
        labelled=dataset is not None or real is not None,
        distilled=unlabeled is not None,
        classes=[(name, None) for name in classes],
        synthetic=record["synthetic"],
        evaluations=[evaluation] if evaluation else [],
        facts=[(name, value) for name, value in facts.items() if value],
    )
