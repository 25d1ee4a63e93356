# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg`. Only the command at hand imports what it needs."""

import argparse
import importlib
import os
import sys
from types import ModuleType
from typing import Any

from . import __doc__ as DESCRIPTION
from . import __version__
from .jobs.command import run_command, show_log
from .jobs.command_line import command_line, parse
from .jobs.install import missing_extra
from .tasks import TASKS, named, run_task


# Commands that have no configuration yet: what each does, and the module with its `add_arguments` and `main`.
COMMANDS = {
}
_OF_TRAIN = ("datasets", "evaluate", "matplotlib", "pyarrow", "transformers")  # what the extra `train` brings


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command `diffuseseg`; ends the process with the status of the command.

    Args:
        argv (`list[str]`, *optional*): The words after `diffuseseg`; those of the command line if not given.
    """
    run_command(lambda: _run(sys.argv[1:] if argv is None else [os.fspath(word) for word in argv]))


def _run(argv: list[str]) -> Any:
    name = next((word for word in argv if not word.startswith("-")), None)
    if name in COMMANDS:
        return _run_old(argv, name)
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


def _run_old(argv: list[str], name: str | None) -> int | None:
    parser = argparse.ArgumentParser(prog="diffuseseg", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module = None
    for command, (summary, where) in COMMANDS.items():
        own = commands.add_parser(command, help=summary, description=summary)
        if command == name:
            module = _imported(where)
            module.add_arguments(own)
    args = parser.parse_args(argv)

    from diffusers.utils import logging

    from .arguments import check_numbers

    logging.disable_progress_bar()
    check_numbers(args)
    return module.main(args)


def _imported(where: str) -> ModuleType:
    try:
        return importlib.import_module(where, __package__)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _OF_TRAIN:
            raise
        raise missing_extra("train", error.name) from error


if __name__ == "__main__":
    main()
