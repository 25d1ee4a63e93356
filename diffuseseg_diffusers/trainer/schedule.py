# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How long a run goes on, what it does at which step, and its learning rate."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler


SCHEDULE_STEPS = 1_000_000  # resolution of the learning-rate schedule when it runs on time


@dataclass(frozen=True)
class Plan:
    """How long a run goes on, and what happens at which of its steps."""

    max_steps: int | None = None  # optimisation steps, with those before resuming
    max_minutes: float | None = None  # with those before resuming; what comes first ends the run
    max_grad_norm: float = 1.0  # norm that gradients are clipped to; 0: no clipping
    checkpointing_steps: int | None = None  # steps between checkpoints; if not given, `Trainer.save` is called
    total_limit: int = 1  # number of checkpoints to keep; 0: all
    events: tuple[int, ...] = ()  # numbers of steps after which something else happens, such as a measurement

    def is_over(self, state: Mapping[str, Any]) -> bool:
        """Whether the steps or minutes of a run in this state are over."""
        steps, minutes = (math.inf if x is None else x for x in (self.max_steps, self.max_minutes))
        return state["step"] >= steps or state["seconds"] >= 60 * minutes


def learning_rate_schedule(
    optimizer: torch.optim.Optimizer, name: str, learning_rate: float, warmup_steps: int, plan: Plan
) -> Callable[[int, float], float]:
    """Learning rate at a step and second: warm-up by steps, then the schedule over the run's steps or minutes.

    `name` is that of a schedule of `diffusers.optimization.get_scheduler`.
    """
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=SCHEDULE_STEPS)
    factor = scheduler.lr_lambdas[0]

    def rate(step: int, seconds: float) -> float:
        by_steps = step / plan.max_steps if plan.max_steps else 0
        by_time = seconds / 60 / plan.max_minutes if plan.max_minutes else 0
        warm_up = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return learning_rate * warm_up * factor(int(min(1.0, max(by_steps, by_time)) * SCHEDULE_STEPS))

    return rate
