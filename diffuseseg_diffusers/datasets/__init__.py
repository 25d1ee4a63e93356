# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labelled and unlabelled datasets: layouts, columns, crops, augmentation, drawn data."""
