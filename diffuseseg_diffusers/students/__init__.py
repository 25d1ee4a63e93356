# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students: small networks of `transformers` that learn from images with masks, and run in one fast pass."""
