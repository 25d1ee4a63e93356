# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Starts the processes that share the parts of a run: on this machine, or on others by datatrove's executors.

Every process runs the same command line, and takes parts of its run (see `jobs/parts.py`), so nothing is lost with a
process. On this machine they are plain processes: datatrove's pool waits for ever for one that was killed.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError
from .install import missing_extra
from .parts import PARTS


VISIBLE = "CUDA_VISIBLE_DEVICES"
WORKER = "DIFFUSESEG_WORKER"  # set in processes that were started here, to their number
LOGS = f"{PARTS}/logs"


def is_worker() -> bool:
    """Whether this process was started by another one, to share its run."""
    return WORKER in os.environ


def check_executor(executor: str, options: Sequence[str]) -> None:
    """Raises [`UserError`] if an option, a `name=value` word, is malformed or missing, or the executor takes none."""
    if executor == "local" and options:
        raise UserError("--executor_options are for --executor slurm or ray.")
    missing = {"partition", "time"} - parse_options(options).keys()
    if executor == "slurm" and missing:
        needed = " and a ".join(sorted(missing))
        raise UserError(f"Slurm needs a {needed}: --executor_options partition=… time=08:00:00.")


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Parses `name=value` words; values are YAML, except times, which stay text."""
    options = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"--executor_options are of the form name=value, got {word!r}.")
        options[name] = value if ":" in value else yaml.safe_load(value)
    return options


def share_work(config: Any, command: str, work: Callable[[], None]) -> bool:
    """Makes the parts of a run in the number of processes that its configuration states.

    Args:
        config (`Config`): With the fields of `tasks.options.SharesWork`; the record of the run is in its `output_dir`.
        command (`str`): Name of its command, which further processes run.
        work (`Callable`): Makes parts until all are there.

    Returns:
        `bool`: Whether the run is complete; with Slurm it is only submitted.
    """
    if is_worker() or (config.executor == "local" and config.tasks == 1):
        work()
        return True
    words = [command, *replace(config, overwrite=False).arguments()]
    logs = config.output_dir / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    if config.executor == "local":
        started = [_start(words, rank, logs) for rank in range(1, config.tasks)]
        try:
            work()
        finally:
            for process in started:
                process.wait()
        return True
    common: dict[str, Any] = dict(tasks=config.tasks, logging_dir=str(logs.absolute()), skip_completed=False)
    if config.executor == "slurm":
        common |= dict(job_name="diffuseseg", venv_path=os.path.join(sys.prefix, "bin", "activate"), qos=None)
        common["slurm_logs_folder"] = str((logs / "slurm").absolute())
    worker = partial(run_worker, words, os.getcwd())
    try:
        made = load_executor(config.executor)(pipeline=[worker], **{**common, **parse_options(config.executor_options)})
    except TypeError as error:
        raise UserError(f"--executor_options: {error}.") from error
    try:
        made.run()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"The job could not be submitted ({error}); is this a machine that Slurm takes jobs from?"
        ) from error
    return config.executor != "slurm"


def run_worker(words: Sequence[str], folder: str, data: Any, rank: int = 0, world_size: int = 1) -> None:
    """Runs a command line in a folder, as a task of datatrove, whose executor tries again what fails."""
    subprocess.run(_command(words), check=True, cwd=folder, env={**os.environ, WORKER: str(rank)})


def _command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "diffuseseg_diffusers", *words]


def _start(words: Sequence[str], rank: int, logs: Path) -> subprocess.Popen:
    """A further process on this machine; where there are several GPUs, each sees another."""
    import torch

    environment, count = {**os.environ, WORKER: str(rank)}, torch.cuda.device_count()
    if count > 1 and "--device" not in words:  # all see their own as cuda:0, and no command line differs
        visible = os.environ[VISIBLE].split(",") if os.environ.get(VISIBLE) else list(map(str, range(count)))
        environment[VISIBLE] = visible[rank % count]
    with open(logs / f"worker-{rank}.log", "w", encoding="utf-8") as log:
        return subprocess.Popen(_command(words), stdout=log, stderr=log, env=environment)


def load_executor(name: str) -> Any:
    """The class of datatrove's executor, `"slurm"` or `"ray"`; raises [`UserError`] if a package is missing."""
    try:
        import datatrove.executor as executors

        if name == "ray":
            import ray  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("ray" if name == "ray" else "scale", error.name) from error
    return {"slurm": executors.SlurmPipelineExecutor, "ray": executors.RayPipelineExecutor}[name]
