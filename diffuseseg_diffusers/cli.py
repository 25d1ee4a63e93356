# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg`. Only the command at hand imports what it needs."""

import os
import sys
from typing import Any

from . import __doc__ as DESCRIPTION
from . import __version__
from .jobs.command import run_command, show_log
from .jobs.command_line import command_line, parse
from .jobs.install import missing_extra
from .tasks import TASKS, named, run_task


_OF_TRAIN = ("datasets", "evaluate", "matplotlib", "pyarrow", "transformers")  # what the extra `train` brings


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `diffuseseg`; ends the process with the status of the command.

    Args:
        argv (`list[str]`, *optional*): The words after `diffuseseg`; those of the command line if not given.
    """
    run_command(lambda: _run(sys.argv[1:] if argv is None else [os.fspath(word) for word in argv]))


def _run(argv: list[str]) -> Any:
    configs = {command: named(config) for command, (config, _) in TASKS.items()}
    config = parse(command_line("diffuseseg", DESCRIPTION, f"diffuseseg {__version__}", configs), argv)
    if config is None:
        return None
    from diffusers.utils import logging  # takes seconds, and help does without

    logging.disable_progress_bar()
    if getattr(config, "verbose", False):
        show_log()
    try:
        run_task(config)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _OF_TRAIN:
            raise
        raise missing_extra("train", error.name) from error
    return 0


if __name__ == "__main__":
    main()
