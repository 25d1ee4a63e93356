# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures that are read and written by windows, whatever their size: slides, maps, scans, volumes."""
