# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segmentation heads: the ensemble, the table of activations, recipes, fitting, and the choice of features."""
