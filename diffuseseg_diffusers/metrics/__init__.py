# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Metrics as `evaluate` modules; load one with `evaluate.load(MEAN_IOU)`."""

from pathlib import Path


MEAN_IOU = str(Path(__file__).parent / "mean_iou")
