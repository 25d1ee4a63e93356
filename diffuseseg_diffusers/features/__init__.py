# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of frozen models as features of pixels: one protocol, and a file for each family of models."""
