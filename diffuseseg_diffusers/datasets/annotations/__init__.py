# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shapes that people draw in annotation programs, read as masks and written from masks."""
