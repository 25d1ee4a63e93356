# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Starts the processes that share the parts of a run: on this machine, or on others by datatrove's executors.

Every process runs the command line that the user typed, and takes parts of its run (see `jobs/parts.py`). So nothing
is lost with a process, and there is no schedule to keep. On this machine they are plain processes: datatrove's pool
waits for ever for one that was killed.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .install import missing_extra
from .parts import PARTS


EXECUTORS = ("local", "slurm", "ray")
WORKER = "DIFFUSESEG_WORKER"  # set in processes that were started here, to their number
LOGS = f"{PARTS}/logs"


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """`--executor`, `--tasks` and `--executor_options`."""
    group = parser.add_argument_group("processes")
    group.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="Where processes run that share the work: on this machine, or by datatrove on a Slurm or Ray cluster with "
        "a common folder (default: local).",
    )
    group.add_argument("--tasks", type=int, default=1, help="Number of processes (default: 1).")
    group.add_argument(
        "--executor_options",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="Arguments of datatrove's executor, such as partition=gpu time=08:00:00 gpus_per_task=1.",
    )


def is_worker() -> bool:
    """Whether this process was started by another one, to share its run."""
    return WORKER in os.environ


def check_executor(args: argparse.Namespace) -> None:
    """Refuses what does not go together, and an executor that is not installed.

    Raises:
        UserError: Says what is wrong.
    """
    if args.tasks < 1:
        raise UserError(f"--tasks must be at least 1, got {args.tasks}.")
    if args.executor == "local" and args.executor_options:
        raise UserError("--executor_options are for --executor slurm or ray.")
    if args.executor != "local":
        _executor(args.executor)
        options = parse_options(args.executor_options)
        missing = [name for name in ("partition", "time") if name not in options]
        if args.executor == "slurm" and missing:
            raise UserError(f"Slurm needs a {' and a '.join(missing)}: --executor_options partition=… time=08:00:00.")


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """`name=value` words; values are read as YAML has them, but for times, which stay text.

    Raises:
        UserError: A word has no `=`.
    """
    options = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"--executor_options are of the form name=value, got {word!r}.")
        options[name] = value if ":" in value else yaml.safe_load(value)
    return options


def share_work(args: argparse.Namespace, folder: Path, work: Callable[[], None]) -> bool:
    """Has a run's parts made by as many processes as were asked for.

    Args:
        args (`argparse.Namespace`): Of a command with [`add_executor_arguments`]; `argv` is what was typed.
        folder (`Path`): Of the run; its settings are recorded, so that processes can join it.
        work (`Callable`): Makes parts until all are there.

    Returns:
        `bool`: Whether the run is complete; with Slurm it is only submitted.
    """
    if is_worker() or (args.executor == "local" and args.tasks == 1):
        work()
        return True
    if not hasattr(args, "argv"):
        raise UserError("--tasks and --executor are for the command `diffuseseg`; processes of a launcher share as is.")
    logs = folder / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    if args.executor == "local":
        started = [_start(args, rank, logs) for rank in range(1, args.tasks)]
        try:
            work()
        finally:
            for process in started:
                process.wait()
        return True
    options = parse_options(args.executor_options)
    executor, worker = _executor(args.executor), Worker(args.argv, os.getcwd())
    common: dict[str, Any] = dict(tasks=args.tasks, logging_dir=str(logs.absolute()), skip_completed=False)
    if args.executor == "slurm":
        common |= dict(job_name="diffuseseg", venv_path=os.path.join(sys.prefix, "bin", "activate"), qos=None)
        common["slurm_logs_folder"] = str((logs / "slurm").absolute())
    try:
        made = executor(pipeline=[worker], **{**common, **options})
    except TypeError as error:
        raise UserError(f"--executor_options: {error}.") from error
    try:
        made.run()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"The job could not be submitted ({error}); is this a machine that Slurm takes jobs from?"
        ) from error
    return args.executor != "slurm"


class Worker:
    """What a task of datatrove does: it runs the command line, as one of the processes that share the run.

    Args:
        argv (sequence of `str`): The words after `diffuseseg`.
        folder (`str`): Where it was typed.
    """

    def __init__(self, argv: Sequence[str], folder: str):
        self.argv, self.folder = list(argv), folder

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Raises [`subprocess.CalledProcessError`] if it fails, so that the executor tries again."""
        command = [sys.executable, "-m", "diffuseseg_diffusers", *self.argv]
        subprocess.run(command, check=True, cwd=self.folder, env={**os.environ, WORKER: str(rank)})


def _start(args: argparse.Namespace, rank: int, logs: Path) -> subprocess.Popen:
    """A further process on this machine, on a GPU of its own if there are several."""
    import torch

    command = [sys.executable, "-m", "diffuseseg_diffusers", *args.argv]
    if torch.cuda.device_count() > 1 and not getattr(args, "device", None):
        command += ["--device", f"cuda:{rank % torch.cuda.device_count()}"]
    with open(logs / f"worker-{rank}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, WORKER: str(rank)})


def _executor(name: str) -> Any:
    try:
        import datatrove.executor as executors

        if name == "ray":
            import ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("ray" if name == "ray" else "scale", error.name) from error
    return {"slurm": executors.SlurmPipelineExecutor, "ray": executors.RayPipelineExecutor}[name]
