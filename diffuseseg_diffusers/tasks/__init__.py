# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The commands: a typed configuration and a function each.

A module here imports nothing heavy at its top, so that help and mistyped options are answered at once; its function
imports what it needs.
"""

# By command: the module below the package with its configuration, and the one with its function; `module:name`.
TASKS = {
    "evaluate": ("tasks.evaluate:EvaluateConfig", "tasks.evaluate:evaluate"),
}
