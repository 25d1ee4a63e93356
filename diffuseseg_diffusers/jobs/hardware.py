# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where a run computes, in which precision, and on how many processes."""

import logging
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from time import perf_counter

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
NO_SLOWER = 0.9  # times, within the noise of timing
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
    """The device of that name, or [`default_device`]; raises [`UserError`] if there is none."""
    try:
        device = torch.device(name) if name else default_device()
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"There is no device {name} here ({reason}); leave --device out.") from error
    return device


def default_dtype(device: torch.device) -> torch.dtype:
    """The precision that goes with a device; see [`explain_dtype`]."""
    return explain_dtype(device)[0]


def training_dtype(device: torch.device) -> torch.dtype:
    """The precision of the passes of a training that goes with a device, by autocast.

    Weights stay in float32, so a CPU that gains in products and loses nothing in convolutions takes bfloat16: a
    training step moves more data than it multiplies, and was 1.6 times as fast where convolutions were 1.0 times.
    """
    if device.type != "cpu":
        return default_dtype(device)
    speedups = own_speedups().values()
    return torch.bfloat16 if max(speedups) >= FASTER and min(speedups) >= NO_SLOWER else torch.float32


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
    speedups = own_speedups()
    dtype = torch.bfloat16 if min(speedups.values()) >= FASTER else torch.float32
    shown = ", ".join(f"{ratio:.1f} times as fast in {name}" for name, ratio in speedups.items())
    return dtype, f"bfloat16 was timed on this CPU: {shown}"


def own_speedups() -> dict[str, float]:
    """[`kept_speedups`] in the folder of assets of the Hub's library."""
    return kept_speedups(Path(HF_ASSETS_CACHE, "diffuseseg", "bfloat16.json"))


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
        kept = read_json(path)
        whole = all(
            ratios.keys() == OPERATIONS.keys() and all(0 < ratio < math.inf for ratio in ratios.values())
            for ratios in kept.values()
        )
    except (UserError, RecursionError, AttributeError, TypeError):  # it can be made again
        return {}
    return kept if whole else {}


@torch.no_grad()
def bfloat16_speedups() -> dict[str, float]:
    """How many times as fast as in float32 this CPU computes in bfloat16: a convolution of a small U-Net and a product
    of a small transformer. Takes a fraction of a second; the best of many rounds, so that other load matters little."""
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
    path = Path("/proc/cpuinfo")
    found = re.search(r"^model name.*?:(.*)", path.read_text(encoding="utf-8"), re.M) if path.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def hardware(device: torch.device) -> str:
    """What a report says it was computed on: the name of the GPU, or of the CPU with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, " + (f"{torch.get_num_threads()} threads" if device.type == "cpu" else device.type)


def report_processes(accelerator: Accelerator) -> None:
    """Says so where one process runs though `accelerate launch` was asked for several: on CPUs it wants MPI for them,
    and starts a single one without a word where there is none."""
    # `accelerate launch` names a master for several processes alone, and a number of them once they run.
    several = {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ
    if several and accelerator.is_main_process and accelerator.num_processes == 1:
        print(
            "1 process runs, though `accelerate launch` was asked for more; on CPUs it needs MPI for several. Use "
            "`torchrun --nproc_per_node NUMBER SCRIPT …` in its place.",
            file=sys.stderr,
        )
