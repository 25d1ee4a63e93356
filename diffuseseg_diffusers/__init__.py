# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segment images from a handful of labels with the features of a diffusion model."""

import importlib

from .features import DecoderFeatureExtractor, DecoderFeatures, FeatureInfo
from .pipeline_diffuseseg import DiffuseSegPipeline, DiffuseSegPipelineOutput
from .segmentation_head import PixelClassifierEnsemble, PixelClassifierOutput, image_uncertainty


__version__ = "0.1.0"

# What needs the extra `train` (datasets, evaluate, matplotlib) is imported when it is asked for.
_LAZY = {
    "LabeledImages": "data",
    "load_labeled_images": "data",
    "evaluate_segmentation": "evaluation",
    "fit_segmentation_head": "head_training",
}

__all__ = [
    "DecoderFeatureExtractor",
    "DecoderFeatures",
    "DiffuseSegPipeline",
    "DiffuseSegPipelineOutput",
    "FeatureInfo",
    "PixelClassifierEnsemble",
    "PixelClassifierOutput",
    "image_uncertainty",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
