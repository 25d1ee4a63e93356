# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where a run computes, in which precision, and on how many processes."""

import logging
import math
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from time import perf_counter

import psutil
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from filelock import FileLock
from huggingface_hub.constants import HF_ASSETS_CACHE

from .errors import UserError
from .files import read_json, write_json


logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FASTER = 1.3  # times, from which on bfloat16 is worth it: twice and more where a processor multiplies in it
# What is timed: function, shapes of input and weight.
OPERATIONS: dict[str, tuple] = {
    "convolutions": (partial(F.conv2d, padding=1), (1, 128, 32, 32), (128, 128, 3, 3)),
    "products": (F.linear, (1, 256, 768), (768, 768)),
}
AGREEMENT = 0.999  # of a model's masks with those in float32, from which on another precision is taken by itself


def default_device() -> torch.device:
    """A GPU if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def find_device(name: str | torch.device | None) -> torch.device:
    """The device of that name, or [`default_device`].

    Raises:
        UserError: There is no such device.
    """
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"There is no device {name} here ({reason}); leave --device out.") from error
    return device


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes faster in it than in float32, else float32; see [`explain_dtype`]."""
    return explain_dtype(device)[0]


def find_dtype(
    name: str | torch.dtype, device: torch.device, model: str, agreement: Mapping[str, float] | None = None
) -> torch.dtype:
    """The precision of that name; logs it, and why, for a model.

    Args:
        name (`str` or `torch.dtype`): A key of `DTYPES`; `"auto"`, see [`explain_dtype`]; or what was found before.
        device (`torch.device`): Where the model runs.
        model (`str`): What it is called.
        agreement (mapping, *optional*): What was measured when the model was made: by precision, the share of the
            pixels whose class is that in float32. Where it is less than `AGREEMENT`, `"auto"` is float32.
    """
    if isinstance(name, torch.dtype):
        return name
    precision, reason = explain_dtype(device) if name == "auto" else (DTYPES[name], "asked for")
    chosen = short_name(precision)
    share = (agreement or {}).get(chosen, 1.0)
    if name == "auto" and share < AGREEMENT:
        logger.warning(
            "%s: float32; %s is faster, but changes the class of %.2f %% of the pixels (--dtype %s takes it all the "
            "same).",
            *(model, chosen, 100 * (1 - share), chosen),
        )
        return torch.float32
    logger.info("%s: %s on %s (%s)", model, chosen, device, reason)
    return precision


def short_name(dtype: torch.dtype) -> str:
    """The name of a precision, a key of `DTYPES`."""
    return str(dtype).removeprefix("torch.")


def explain_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The precision that goes with a device, and why, as a clause.

    On CPUs a convolution and a product are timed in both precisions, once for each machine and version of PyTorch:
    instructions for bfloat16 do not tell whether PyTorch is faster with them. bfloat16 is taken where both are at least
    `FASTER` times as fast in it. GPUs multiply in it since Ampere. Other devices stay at float32.

    Examples:
        >>> dtype, reason = explain_dtype(torch.device("cpu"))
        >>> reason
        'bfloat16 was timed on this CPU: 1.9 times as fast in convolutions, 2.1 times as fast in products'
    """
    if device.type == "cuda":
        name, version = torch.cuda.get_device_name(device), ".".join(map(str, torch.cuda.get_device_capability(device)))
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, f"{name} has compute capability {version}, which multiplies in bfloat16"
        return torch.float32, f"{name} has compute capability {version}, and bfloat16 takes 8.0"
    if device.type != "cpu":
        return torch.float32, f"bfloat16 was not measured on {device.type}"
    speedups = kept_speedups(Path(HF_ASSETS_CACHE, "diffuseseg", "bfloat16.json"))
    dtype = torch.bfloat16 if min(speedups.values()) >= FASTER else torch.float32
    shown = ", ".join(f"{ratio:.1f} times as fast in {name}" for name, ratio in speedups.items())
    return dtype, f"bfloat16 was timed on this CPU: {shown}"


@cache
def kept_speedups(path: Path) -> dict[str, float]:
    """[`bfloat16_speedups`] of this machine, as they were measured first.

    Args:
        path (`Path`): JSON file in which they are kept, by machine and version of PyTorch; homes are shared among
            machines. Where it cannot be written, every process measures.
    """
    machine = (platform.node(), cpu_name(), torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}")
    key = ", ".join(machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=60):  # of processes that start together one measures
            kept = _read_speedups(path)
            if key not in kept:
                kept[key] = bfloat16_speedups()
                write_json(path, kept)
            return kept[key]
    except OSError:
        return bfloat16_speedups()


def _read_speedups(path: Path) -> dict[str, dict[str, float]]:
    try:
        kept = read_json(path) if path.is_file() else {}
    except (UserError, RecursionError):  # it can be made again
        return {}
    return {
        key: ratios
        for key, ratios in (kept.items() if isinstance(kept, dict) else ())
        if isinstance(ratios, dict)
        and ratios.keys() == OPERATIONS.keys()
        and all(isinstance(ratio, float) and 0 < ratio < math.inf for ratio in ratios.values())
    }


@torch.no_grad()
def bfloat16_speedups() -> dict[str, float]:
    """How many times as fast as in float32 this CPU computes in bfloat16: a convolution of a small U-Net and a product
    of a small transformer. Takes a fraction of a second; the best of many short rounds, so that other load matters
    little.
    """
    speedups = {}
    for name, (operation, shape, weight_shape) in OPERATIONS.items():
        seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
        inputs = {d: (torch.ones(shape, dtype=d), torch.ones(weight_shape, dtype=d)) for d in seconds}
        for _ in range(12):
            for dtype, (x, weight) in inputs.items():
                began = perf_counter()
                operation(x, weight)
                seconds[dtype].append(perf_counter() - began)
        speedups[name] = min(seconds[torch.float32]) / min(seconds[torch.bfloat16])
    return speedups


def cpu_name() -> str:
    """The model of the processor, such as `AMD EPYC 9654`."""
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device) -> str:
    """What a report says it was computed on: the name of the GPU, or of the CPU with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return (
        f"{cpu_name()}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{cpu_name()}, {device.type}"
    )


def report_processes(accelerator: Accelerator) -> None:
    """Says how many processes run if another number was asked for.

    `accelerate launch --cpu --num_processes 2` wants MPI for several processes on CPUs, and starts a single one without
    a word where there is none.

    Args:
        accelerator (`Accelerator`): Of this process; the main one prints.
    """
    asked, number = _processes_asked_for(), accelerator.num_processes
    if accelerator.is_main_process and asked is not None and asked != number:
        running = "1 process runs" if number == 1 else f"{number} processes run"
        print(
            f"{running}, though `accelerate launch` was asked for {asked}; on CPUs it needs MPI for several. Use "
            f"`torchrun --nproc_per_node {asked} SCRIPT …` in its place.",
            file=sys.stderr,
        )


def _processes_asked_for() -> int | None:
    """Number of processes that the `accelerate launch` which started this one was asked for, or is configured for.

    `None` if it says no number, or if this process was started in another way.
    """
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    given = _launch_arguments(words)
    if given is None:
        return None
    # As `accelerate launch` itself reads them; it has no other way to be asked.
    from accelerate.commands.config import config_args
    from accelerate.commands.launch import launch_command_parser

    try:
        args = launch_command_parser().parse_args(given)
        asked = args.num_processes
        if asked is None and (args.config_file or (os.path.isfile(config_args.default_config_file) and not args.cpu)):
            asked = config_args.load_config_from_file(args.config_file).num_processes
    except (SystemExit, OSError, ValueError, AttributeError):  # of a version that differs; this is a courtesy
        return None
    return asked


def _launch_arguments(words: list[str]) -> list[str] | None:
    """What follows `accelerate launch`, `accelerate-launch` or `python -m accelerate.commands.launch`, or `None`."""
    for i, word in enumerate(words[:4]):
        name = os.path.basename(word)
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[i + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[i + 1 : i + 2] == ["launch"]:
            return words[i + 2 :]
    return None
