# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images and masks in and out: image processing, labelled and unlabelled datasets, augmentation, drawn faces."""
