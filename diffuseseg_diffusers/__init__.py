# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segment images from a handful of labels with the features of a diffusion model."""

import importlib


__version__ = "0.2.0.dev0"

# Every public name and its module, imported when it is asked for: `diffuseseg --help` needs no torch, and segmenting
# needs none of what the extra `train` brings.
_PUBLIC = {
    "ActivationTable": "heads.table",
    "ArrayRaster": "data.rasters.base",
    "AutoDiffuseSegPipeline": "pipeline_auto",
    "BackbonePipeline": "pipeline_backbone",
    "Classes": "heads.classes",
    "ComposedDiffuseSegPipeline": "pipeline_composed",
    "Decisions": "metrics.decisions",
    "DecoderFeatureExtractor": "features.pixel_unet",
    "DiffuseSegPipeline": "pipeline_diffuseseg",
    "DiffuseSegPipelineOutput": "segmenter",
    "FeatureExtractor": "features.base",
    "FeatureInfo": "features.base",
    "Features": "features.base",
    "InputChannels": "data.channels",
    "LabelSession": "labeling.session",
    "LabeledImages": "data.labeled",
    "LabeledTiles": "data.crops",
    "PixelClassifierEnsemble": "heads.ensemble",
    "PixelClassifierOutput": "heads.ensemble",
    "Recipe": "heads.recipes",
    "StudentSegmenter": "students.segmenter",
    "Tap": "features.base",
    "Tiling": "inference.tiles",
    "UserError": "runs.errors",
    "choose_tiling": "inference.tiles",
    "evaluate_segmentation": "inference.evaluation",
    "extract_activations": "heads.extraction",
    "fit_decisions": "inference.decisions",
    "fit_head": "heads.fit",
    "fit_segmentation_head": "heads.fit",
    "image_uncertainty": "heads.ensemble",
    "load_backbone": "pipeline_backbone",
    "load_labeled_images": "data.labeled",
    "load_pipeline": "hub.loading",
    "open_raster": "data.rasters.opening",
    "push_folder": "hub.push",
    "push_pipeline": "hub.push",
    "recipe_extractor": "heads.fit",
    "segment_tiled": "inference.tiles",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
