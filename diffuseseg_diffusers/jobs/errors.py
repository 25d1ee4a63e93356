# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Errors that users can mend. Everything else that is raised is a bug of ours, and commands show its traceback."""


class UserError(ValueError):
    """An input, option or file that a user can mend; its text says what was found, what was expected, what to do."""


class NotFiniteError(UserError, FloatingPointError):
    """Numbers that are not finite, in activations or in training."""
