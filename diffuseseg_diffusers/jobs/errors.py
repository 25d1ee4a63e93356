# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Errors that users can mend. Everything else that is raised is a bug of ours, and commands show its traceback."""


class UserError(ValueError):
    """An input, option or file that a user can mend; its text says what was found, what was expected, what to do."""


class NotFiniteError(UserError, FloatingPointError):
    """Numbers that are not finite, in activations or in training."""


class IncompleteError(UserError):
    """All was done but for inputs that could not be read; says how many and where they are listed.

    Raised at the very end, after everything else was written.
    """


class StoppedError(RuntimeError):
    """A signal ended the work after a step; what was done is saved, and the same command line resumes.

    A command ends with status 128 and the number of the signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = int(signal)
