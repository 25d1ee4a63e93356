# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations for masks, read while images are sampled."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..features.denoiser import DenoiserFeatureExtractor
from ..jobs.errors import UserError


@contextmanager
def nearest_steps(extractor: DenoiserFeatureExtractor) -> Iterator[dict[int, dict]]:
    """Hooks the denoiser; yields `{timestep: {block: output}}` of the passes at the nearest noise levels.

    Of two passes at one level the first is kept, which under true guidance is the conditional one.
    """
    extractor.check_noised()
    nearest: dict[int, dict] = {}
    distances = dict.fromkeys(extractor.timesteps, math.inf)
    wanted = {t: math.log(max(extractor.schedule.ratio(t), 1e-6)) for t in extractor.timesteps}

    with extractor.reading() as seen:

        def keep(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            ratio = extractor.schedule.ratio(extractor.timestep_of(args, kwargs))
            for t, level in wanted.items():
                distance = abs(math.log(min(max(ratio, 1e-6), 1e6)) - level)
                if distance < distances[t]:
                    distances[t], nearest[t] = distance, dict(seen)

        hook = extractor.model.register_forward_hook(keep, with_kwargs=True)
        try:
            yield nearest
        finally:
            hook.remove()


def sampled_activations(
    extractor: DenoiserFeatureExtractor, steps: dict[int, dict], shape: Sequence[int]
) -> list[torch.Tensor]:
    """The activations that [`nearest_steps`] found, as a head takes them, for images of `shape` `[N, H, W, C]`.

    Raises:
        UserError: The passes were of another number of images than these, or of twice as many.
    """
    n, height, width = shape[:3]
    grid = extractor.latent_grid(height, width)
    activations = []
    for t in extractor.timesteps:
        for block in extractor.blocks:
            maps = extractor.as_map(steps[t][block], grid)
            if len(maps) not in (n, 2 * n):
                raise UserError(
                    f"The denoiser saw {len(maps)} images at once for {n}; `masks_while_sampling` supports at most one "
                    f"unconditional branch."
                )
            first = len(maps) == n or extractor.conditional_first
            activations.append(maps[:n] if first else maps[n:])
    return activations
