# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Large images: tiles, blocks, objects, and the files that are written."""
