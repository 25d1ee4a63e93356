# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The best of several ways to segment, chosen by cross-validation on the labelled pictures."""
