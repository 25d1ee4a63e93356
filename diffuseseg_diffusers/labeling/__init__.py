# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labelling pictures by strokes: the session, the live head, suggestions, and the page that shows them."""
