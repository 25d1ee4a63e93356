# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the Hub share: small pipelines, students and datasets in folders."""

import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.jobs.files import write_json

from ..conftest import dataset_of, draw, make_head, make_pipeline


NAMES = ["sky", "disc", "bar"]
PIPELINE_FILES = {
    ".gitattributes",
    "README.md",
    "model_index.json",
    "pipeline_diffuseseg.py",
    "scheduler/scheduler_config.json",
    "segmentation_head/config.json",
    "segmentation_head/diffusion_pytorch_model.safetensors",
    "segmentation_head/pixel_classifier_ensemble.py",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
}
ONLINE = {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}


def fitted(seed: int = 0) -> DiffuseSegPipeline:
    """A pipeline with a head."""
    pipe = make_pipeline(seed=seed)
    pipe.segmentation_head = make_head(pipe, seed=seed, label_names=NAMES)
    return pipe


def saved(folder, seed: int = 0):
    """The same in a folder."""
    fitted(seed).save_pretrained(folder)
    return folder


def saved_student(folder):
    """A small SegFormer as `train-student` leaves it."""
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16}
    torch.manual_seed(0)
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, **labels)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    record = {
        "train_dataset": {"name": "drawn", "on_hub": False, "config": None, "split": "train"},
        "num_images": 20,
        "parameters": 30000,
        "start": "random",
        "epochs": [{}],
        "seconds": 5.0,
        "validation_mean_iou": 0.5,
        "synthetic": False,
        "hardware": "A machine",
    }
    write_json(folder / "student_training.json", record)
    return folder


def write_images(folder, count: int = 6, split: str = "train"):
    """A dataset of drawn images with masks, as Parquet."""
    images, masks = zip(*[draw((16, 16), i) for i in range(count)])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset_of(images, masks).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    write_json(folder / "id2label.json", dict(enumerate(NAMES)))
    return folder
