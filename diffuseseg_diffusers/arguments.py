# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments that commands share, so that the same name means the same everywhere."""

import argparse
import logging
import math
from pathlib import Path

from .jobs.errors import UserError
from .jobs.hardware import DTYPES


def add_model_arguments(parser: argparse.ArgumentParser, backbone: bool = False) -> None:
    """`--model`, where it comes from, and how it runs.

    Args:
        parser (`argparse.ArgumentParser`): Gets them.
        backbone (`bool`, defaults to `False`): Whether `--backbone` may take the place of `--model`.
    """
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument(
        *("--model", "--pretrained_model_name_or_path"), help="Pipeline: a local folder or a name on the Hub."
    )
    if backbone:
        which.add_argument(
            "--backbone", help="Vision model of transformers in its place: a local folder or a name on the Hub."
        )
    add_model_options(group)


def add_model_options(group: argparse._ArgumentGroup) -> None:
    """Where a model comes from, and how it runs."""
    group.add_argument("--revision", help="Branch, tag or commit of a model on the Hub.")
    group.add_argument(
        "--base_model",
        help="Base of a head that was saved alone: a local folder or a name on the Hub (default: as the head says).",
    )
    group.add_argument("--device", help="Device to run on, such as cuda:1 (default: a GPU if there is one).")
    group.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="Precision of the model; auto: bfloat16 where it was timed to be faster on this machine, unless the masks "
        "were found to differ from those in float32; else float32 (default: auto).",
    )
    group.add_argument("--verbose", action=_Verbose, nargs=0, help="Say in which precision models compute, and why.")


class _Verbose(argparse.Action):
    """Shows what the package logs, from here on, on standard error."""

    def __call__(self, *args: object) -> None:
        logging.basicConfig(format="%(message)s")  # of other libraries, warnings only
        logging.getLogger(__package__).setLevel(logging.INFO)


def add_cache_argument(parser: argparse.ArgumentParser) -> None:
    """`--cache_dir`."""
    parser.add_argument(
        "--cache_dir", help="Folder for downloads from the Hub, of models and datasets (default: the libraries' own)."
    )


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> argparse._ArgumentGroup:
    """`--output_dir` and `--overwrite`; returns the group, for more of the kind.

    Args:
        parser (`argparse.ArgumentParser`): Gets them.
        what (`str`): What is written, a noun phrase.
    """
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=folder_path, required=True, help=f"Folder for {what}.")
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="Replacement of an earlier run in that folder: its own files are removed, and no others.",
    )
    return group


def height_and_width(given: list[int] | None) -> tuple[int, int] | None:
    """What `--resolution` means: one side of squares, or height and width.

    Raises:
        UserError: There are more numbers, or one is below 1.
    """
    if given is None:
        return None
    if len(given) > 2 or min(given) < 1:
        raise UserError(f"--resolution is one side, or height and width, in pixels; got {' '.join(map(str, given))}.")
    return given[0], given[-1]


def folder_path(text: str) -> Path:
    """A path as typed; of `--output_dir=~/out` most shells leave the `~` to us."""
    return Path(text).expanduser()


def check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers that no option has a meaning for: below 0, infinite, or none at all (`nan`).

    Args:
        args (`argparse.Namespace`): All arguments of a command.

    Raises:
        UserError: One is such a number; names the option.
    """
    for name, value in vars(args).items():
        if name == "timesteps":  # of some models they are negative; the model says which it has
            continue
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, (int, float)) and not (math.isfinite(number) and number >= 0):
                raise UserError(f"--{name} must be a number of at least 0, got {number}.")


def inputs_of(args: argparse.Namespace) -> list[object]:
    """What a command reads, names of files and folders among it: all its arguments but for where it writes."""
    written = ("output_dir", "cache_dir", "activation_dir", "hub_id", "resume_from_checkpoint", "argv")
    found: list[object] = []
    for name, value in vars(args).items():
        if name not in written:
            found += value if isinstance(value, (list, tuple)) else [value]
    return found


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Refuses numbers below 1.

    Args:
        args (`argparse.Namespace`): The parsed arguments.
        names (`str`): Which of them; those that are `None` are left alone.

    Raises:
        UserError: One is below 1.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
