# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segment images from a handful of labels with the features of a diffusion model."""

import importlib

from .tasks import TASKS


__version__ = "0.2.0.dev0"

# Every public name and its module, imported when it is asked for: `diffuseseg --help` needs no torch, and segmenting
# needs none of what the extra `train` brings.
_PUBLIC = {
    "ActivationTable": "heads.table",
    "ArrayRaster": "images.formats.base",
    "AutoDiffuseSegPipeline": "pipelines.auto",
    "AveragedSegmenter": "pipelines.averaged",
    "BackbonePipeline": "pipelines.backbone",
    "Classes": "heads.classes",
    "ComposedDiffuseSegPipeline": "pipelines.composed",
    "Decisions": "heads.decisions",
    "DecoderFeatureExtractor": "features.pixel_unet",
    "DiffuseSegPipeline": "pipelines.pixel",
    "DiffuseSegPipelineOutput": "pipelines.outputs",
    "FeatureExtractor": "features.base",
    "FeatureInfo": "features.base",
    "Features": "features.base",
    "InputChannels": "images.channels",
    "LabelSession": "labeling.session",
    "LabeledImages": "datasets.labeled",
    "LabeledTiles": "datasets.crops",
    "PixelClassifierEnsemble": "heads.ensemble",
    "PixelClassifierOutput": "heads.ensemble",
    "Recipe": "heads.recipes",
    "SegmentationOutput": "pipelines.outputs",
    "StudentSegmenter": "students.student",
    "Tap": "features.base",
    "Tiling": "tiling.tiles",
    "UserError": "jobs.errors",
    "choose_tiling": "tiling.tiles",
    "evaluate_segmentation": "evaluation.evaluate",
    "extract_activations": "heads.extraction",
    "fit_best": "fitting.best",
    "fit_decisions": "evaluation.decision_fitting",
    "fit_head": "heads.fit",
    "fit_segmentation_head": "heads.fit",
    "image_uncertainty": "heads.decisions",
    "load_backbone": "pipelines.backbone",
    "load_labeled_images": "datasets.find_labeled",
    "load_pipeline": "pipelines.loading",
    "open_raster": "images.formats.opening",
    "push_folder": "hub.push",
    "push_pipeline": "hub.push",
    "recipe_extractor": "heads.fit",
    "segment_tiled": "tiling.tiles",
}
# The configuration and the function of each task, such as `FitConfig` and `fit`.
_PUBLIC |= {name: module for pair in TASKS.values() for module, name in (place.split(":") for place in pair)}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
