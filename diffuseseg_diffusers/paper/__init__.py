# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What reproduces the paper and its published code (Baranchuk et al., ICLR 2022)."""
