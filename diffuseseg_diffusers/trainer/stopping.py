# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What ends a run early: a signal, or a loss that is not finite."""

import signal
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator

from ..jobs.errors import NotFiniteError
from .checkpoints import last_good


class StopSignal:
    """SIGTERM (a machine that goes away) and Ctrl-C end the run after the step; a second one at once."""

    def __init__(self):
        self.signal = 0
        self._before = {}

    def listen(self) -> None:
        """Handles the signals from here on; in the main thread alone, where Python allows it."""
        with suppress(ValueError):  # of another thread
            self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}

    def restore(self) -> None:
        """Gives the signals back to who handled them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _remember(self, number: int, frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


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


def check_finite(folder: Path, step: int, losses: torch.Tensor, mixed_precision: str) -> None:
    """Raises [`NotFiniteError`] if one of the losses and gradient norms, `[steps, 2]`, of the steps up to `step` is not
    finite; names the step and the last good checkpoint in `folder`."""
    # In float16 the gradient scaler meets infinite gradients and passes over their steps by itself.
    watched = losses[:, :1] if mixed_precision == "fp16" else losses
    bad = (~watched.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        raise NotFiniteError(
            f"The loss or gradient of step {step - len(losses) + 1 + int(bad[0])} is not finite; {last_good(folder)}. "
            f"A lower --learning_rate, or --mixed_precision no or bf16, may help: resume from a good checkpoint by "
            f"--resume_from_checkpoint, or start again with --overwrite."
        )
