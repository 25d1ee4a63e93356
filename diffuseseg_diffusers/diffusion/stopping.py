# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""When a run ends: its steps or minutes are over, a signal, or a loss that is not finite."""

import argparse
import math
import signal

import torch
from accelerate import Accelerator

from ..jobs.errors import NotFiniteError
from .checkpoints import last_good


def finished(args: argparse.Namespace, run: dict) -> bool:
    """Whether the steps or minutes that were asked for are over."""
    return run["step"] >= (args.max_train_steps or math.inf) or run["seconds"] >= 60 * (
        args.max_train_minutes or math.inf
    )


class StopSignal:
    """SIGTERM (a machine that goes away) and Ctrl-C end the run after the step; a second one at once."""

    def __init__(self):
        self.signal = 0

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def alone(self, accelerator: Accelerator) -> bool:
        """Whether to stop without asking other processes, because there are none."""
        return bool(self.signal) and accelerator.num_processes == 1


def agree(
    accelerator: Accelerator, window: list[torch.Tensor], stop_signal: int, seconds: float
) -> tuple[torch.Tensor, int, float]:
    """Losses and gradient norms of the last steps, `[steps, 2]`; the signal that any process got; the longest time."""
    losses = torch.stack(window).float()
    if accelerator.num_processes == 1:
        return losses.cpu(), stop_signal, seconds
    losses = accelerator.reduce(losses, "mean")
    state = torch.tensor([[float(stop_signal), seconds]], device=accelerator.device)
    signals, times = accelerator.gather(state).max(0).values.tolist()
    return losses.cpu(), int(signals), times


def check_finite(args: argparse.Namespace, step: int, losses: torch.Tensor, mixed_precision: str) -> None:
    """Looks at losses and gradient norms, `[steps, 2]`, of the steps up to `step`.

    Raises:
        NotFiniteError: One of them is not finite; names the step and the last good checkpoint.
    """
    # In float16 the gradient scaler meets infinite gradients and passes over their steps by itself.
    watched = losses[:, :1] if mixed_precision == "fp16" else losses
    bad = (~watched.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise NotFiniteError(
            f"The loss or gradient of step {step - len(losses) + 1 + int(bad[0])} is not finite; "
            f"{last_good(args.output_dir)}. Resuming from it by --resume_from_checkpoint with a lower --learning_rate, "
            f"--mixed_precision no or bf16, or without --compile may help."
        )
