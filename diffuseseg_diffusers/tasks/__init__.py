# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The commands: a typed configuration and a function each.

A module here imports nothing heavy at its top, so that help and mistyped options are answered at once; its function
imports what it needs.
"""

import importlib
from typing import Any


# By command: the module below the package with its configuration, and the one with its function; `module:name`.
TASKS = {
    "analyze": ("tasks.analyze:AnalyzeConfig", "tasks.analyze:analyze"),
    "convert": ("tasks.convert:ConvertConfig", "tasks.convert:convert"),
    "export-onnx": ("tasks.export_onnx:ExportOnnxConfig", "tasks.export_onnx:export_onnx"),
    "push": ("tasks.push:PushConfig", "tasks.push:push"),
    "benchmark": ("tasks.benchmark:BenchmarkConfig", "tasks.benchmark:benchmark"),
    "generate": ("tasks.generate:GenerateConfig", "training.generate_dataset:generate"),
    "inspect": ("tasks.inspect:InspectConfig", "tasks.inspect:inspect"),
    "fit": ("tasks.fit:FitConfig", "training.train_segmentation_head:fit"),
    "train-ddpm": ("tasks.train_ddpm:TrainDDPMConfig", "training.train_ddpm:train_ddpm"),
    "train-autoencoder": (
        "tasks.train_autoencoder:TrainAutoencoderConfig",
        "training.train_autoencoder:train_autoencoder",
    ),
    "distil-features": ("tasks.distil_features:DistilFeaturesConfig", "training.distil_features:distil_features"),
    "train-student": ("tasks.train_student:TrainStudentConfig", "training.train_student:train_student"),
    "evaluate": ("tasks.evaluate:EvaluateConfig", "tasks.evaluate:evaluate"),
    "demo": ("tasks.demo:DemoConfig", "tasks.demo:demo"),
    "taps": ("tasks.taps:TapsConfig", "tasks.taps:taps"),
    "app": ("tasks.app:AppConfig", "tasks.app:app"),
    "compare": ("tasks.compare:CompareConfig", "tasks.compare:compare"),
    "segment": ("tasks.segment:SegmentConfig", "tasks.segment:segment"),
}


def named(where: str) -> Any:
    """The object at a place such as `tasks.fit:FitConfig`, below the package."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f"diffuseseg_diffusers.{module}"), name)


def run_task(config: Any) -> Any:
    """Runs the task of a configuration, wherever its function is, and returns what it returns.

    Tasks call each other by it: some functions are those of scripts, which the library does not import.
    """
    place = next(function for made, function in TASKS.values() if made.endswith(f":{type(config).__name__}"))
    return named(place)(config)
