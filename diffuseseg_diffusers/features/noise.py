# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Noise levels on one scale: the noise-to-signal ratio σ / α of `x_t = α x + σ noise`.

A timestep means another level of noise in every family of models: the paper's 50 of a linear schedule is 32 of Stable
Diffusion's and 150 of flow matching. Ratios can be compared, up to the variance of what is noised.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from diffusers import DDPMScheduler

from ..jobs.errors import UserError


PAPER_TIMESTEPS = (50, 150, 250)  # of Baranchuk et al. (ICLR 2022), in a linear schedule of 1,000 steps


class NoiseSchedule(ABC):
    """The forward process that a model was trained with."""

    lowest: int = 0  # the range of its timesteps, both included
    highest: int

    @abstractmethod
    def ratio(self, timestep: float) -> float:
        """Noise-to-signal ratio at a timestep, 0 to infinity; between two timesteps of a table, interpolated."""

    @abstractmethod
    def add_noise(self, samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The model's input: `samples` `[N, ...]` noised to `timesteps` `[N]`, and scaled as the model wants it."""

    def timestep(self, ratio: float) -> int:
        """The whole timestep whose noise-to-signal ratio is nearest to the given one, on a logarithmic scale."""
        if not 0 < ratio < math.inf:
            raise UserError(f"A noise level is a noise-to-signal ratio above 0, got {ratio}.")
        low, high = self.lowest, self.highest  # the ratio grows with the timestep
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.ratio(middle) > ratio else (middle, high)
        return min((low, high), key=lambda t: abs(math.log(max(self.ratio(t), 1e-12)) - math.log(ratio)))


class BetaSchedule(NoiseSchedule):
    """A table of ᾱ: `x_t = √ᾱ x + √(1 - ᾱ) noise` (Ho et al., NeurIPS 2020), whatever the sampler.

    Multistep samplers would noise to another level whenever their own schedule lacks a timestep; Euler's `add_noise`
    and `scale_model_input` together give the same as this.
    """

    def __init__(self, scheduler: Any):
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        self.highest = len(self.scheduler.alphas_cumprod) - 1

    def ratio(self, timestep: float) -> float:
        below = min(int(timestep), self.highest)
        a, b = (float(self.scheduler.alphas_cumprod[min(t, self.highest)]) for t in (below, below + 1))
        a, b = (math.sqrt((1 - x) / x) if x > 0 else math.inf for x in (a, b))
        return a if timestep == below else a + (timestep - below) * (b - a)

    def add_noise(self, samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(samples, noise, timesteps)


class FlowSchedule(NoiseSchedule):
    """Flow matching: `x_t = (1 - σ) x + σ noise`, with `t = 1000 σ` (Esser et al., "Scaling Rectified Flow", 2024).

    `FlowMatchEulerDiscreteScheduler.scale_noise` is not called: it looks timesteps up by equality in the schedule of
    the last sampling.
    """

    def __init__(self, scheduler: Any):
        self.highest = scheduler.config.num_train_timesteps

    def ratio(self, timestep: float) -> float:
        sigma = timestep / self.highest
        return sigma / (1 - sigma) if sigma < 1 else math.inf

    def add_noise(self, samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        sigma = (timesteps.to(samples) / self.highest).view(-1, *[1] * (samples.ndim - 1))
        return sigma * noise + (1 - sigma) * samples


class ConsistencySchedule(NoiseSchedule):
    """Consistency models: `(x + σ noise) / √(σ² + σ_data²)`, with `t = 250 ln σ` (Song et al., ICML 2023)."""

    def __init__(self, scheduler: Any):
        config = scheduler.config
        self.sigma_data = config.sigma_data
        self.lowest = math.ceil(250 * math.log(config.sigma_min))
        self.highest = math.floor(250 * math.log(config.sigma_max))

    def ratio(self, timestep: float) -> float:
        return math.exp(timestep / 250)

    def add_noise(self, samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        sigma = (timesteps.to(samples) / 250).exp().view(-1, *[1] * (samples.ndim - 1))
        return (samples + sigma * noise) / (sigma**2 + self.sigma_data**2).sqrt()


def clean_scheduler() -> DDPMScheduler:
    """The schedule of denoisers that were distilled to see clean images: one timestep, 0, and no noise in it."""
    # Of latents too, whose pipelines warn of other settings.
    return DDPMScheduler(num_train_timesteps=1, trained_betas=[0.0], clip_sample=False, steps_offset=1)


def sees_no_noise(scheduler: Any) -> bool:
    """Whether a schedule is that of [`clean_scheduler`], whose denoiser gives features and cannot generate."""
    return scheduler is not None and list(scheduler.config.get("trained_betas") or ()) == [0.0]


def noise_schedule(scheduler: Any) -> NoiseSchedule:
    """The noise schedule of a pipeline's scheduler; raises [`UserError`] for unknown kinds."""
    kind, config = type(scheduler).__name__, scheduler.config
    if kind == "CMStochasticIterativeScheduler":
        return ConsistencySchedule(scheduler)
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    if flow or kind.startswith("FlowMatch"):
        return FlowSchedule(scheduler)
    if hasattr(scheduler, "alphas_cumprod"):
        return BetaSchedule(scheduler)
    raise UserError(
        f"The noise of {kind} is not known here; known are schedules of betas (DDPM, DDIM, Euler, DPM-Solver, …), flow "
        f"matching, and consistency models."
    )
