# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images read and written by windows, whatever their size: slides, maps, scans, volumes."""
