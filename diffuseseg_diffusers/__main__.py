# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""`python -m diffuseseg_diffusers`."""

from .cli import main


main()
