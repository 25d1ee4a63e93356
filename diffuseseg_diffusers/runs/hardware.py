# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where a run computes, in which precision, and on how many processes."""

import os
import platform
import sys

import psutil
import torch
from accelerate import Accelerator


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def default_device() -> torch.device:
    """A GPU if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it at a multiple of float32's speed, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # `get_capabilities` is newer than the oldest PyTorch that we take.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = device.type == "cpu" and capabilities.get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def hardware(device: torch.device) -> str:
    """What a report says it was computed on: the name of the GPU, or of the CPU with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{name}, {device.type}"


def report_processes(accelerator: Accelerator) -> None:
    """Says how many processes run if another number was asked for.

    `accelerate launch --cpu --num_processes 2` wants MPI for several processes on CPUs, and starts a single one without
    a word where there is none.

    Args:
        accelerator (`Accelerator`): Of this process; the main one prints.
    """
    asked = _processes_asked_for()
    if accelerator.is_main_process and asked is not None and asked != accelerator.num_processes:
        print(
            f"{accelerator.num_processes} process runs, though {asked} were asked for: on CPUs `accelerate launch` "
            f"needs MPI for several. Use `torchrun --nproc_per_node {asked} SCRIPT …` in its place.",
            file=sys.stderr,
        )


def _processes_asked_for() -> int | None:
    """`--num_processes` of the `accelerate launch` that started this process; `None` if it says none, or none did."""
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    if "launch" not in words or not any("accelerate" in word for word in words[:3]):
        return None
    for word, following in zip(words, [*words[1:], ""]):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or following
            return int(value) if value.isdigit() else None
    return None
