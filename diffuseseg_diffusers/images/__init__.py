# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images, masks and volumes in and out: processing, channels, palettes."""
