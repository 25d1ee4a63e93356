# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One clean pass in place of many noised ones: a copy of a denoiser learns what the original's activations are on
average over noise.

Stracke et al., "CleanDIFT: Diffusion Features without Noise" (CVPR 2025), for any denoiser whose features are known
here. A head reads activations at several timesteps, each with one noise, and of the mirror image too; what it gains by
that is an estimate of their means. Least squares learn the mean of a noisy target, so a copy that sees the clean image
learns those means in one pass: a linear map for each timestep and tap, which is thrown away afterwards, tells them
apart.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..features.base import FeatureExtractor
from ..features.families import find_family
from ..features.noise import clean_scheduler, sees_no_noise
from ..heads.fit import recipe_extractor
from ..jobs.errors import UserError
from ..pipelines.general import suited_recipe
from ..pipelines.pixel import DiffuseSegPipeline
from .latents import as_pipeline
from .objective import to_model_range


LEAST_DEVIATION = 1e-3  # of a channel of the teacher
BATCH = 16  # images that activations are measured on at once


def teacher_features(config: Any, pipe: Any) -> FeatureExtractor:
    """What a configuration (`tasks.distil_features`) distils of a pipeline: its recipe's taps, with fresh noise.

    Raises:
        UserError: The model sees no noise, or does not have what is asked for.
    """
    if getattr(pipe, "scheduler", None) is None:
        raise UserError(f"{config.model} sees no noise as it is, so there is nothing to distil; give a denoiser.")
    if sees_no_noise(pipe.scheduler):
        raise UserError(f"{config.model} was distilled already; give the model that it was distilled from.")
    prompt = {} if config.prompt is None else {"prompt": config.prompt}
    recipe, chosen = suited_recipe("default", config.model), (config.blocks, config.timesteps)
    return recipe_extractor(pipe, recipe, *chosen, share_noise=False, size=config.size, **prompt)


def with_clean_copy(pipe: Any) -> Any:
    """A pipeline of diffusers with a copy of its denoiser, in float32, that sees no noise; all else is shared.

    Of a [`DiffuseSegPipeline`] or a [`ComposedDiffuseSegPipeline`]; a head is left out.
    """
    return with_denoiser(pipe, copy.deepcopy(pipe.denoiser).float().train())


def with_denoiser(pipe: Any, denoiser: Any) -> Any:
    """A pipeline of diffusers with another denoiser, which sees no noise."""
    if isinstance(pipe, DiffuseSegPipeline):
        return as_pipeline(denoiser, clean_scheduler(), None, pipe.channels)
    parts = {getattr(pipe.family, "component", "unet"): denoiser, "scheduler": clean_scheduler()}
    return type(pipe.base)(**{**pipe.base.components, **parts})


def reader(made: Any, like: FeatureExtractor) -> FeatureExtractor:
    """What reads the taps of an extractor in the one pass of a pipeline of [`with_denoiser`]."""
    prompt: dict[str, Any] = {} if like.prompt is None else {"prompt": like.prompt}
    where = dict(size=like.size, device=like.device)
    return find_family(made.components).of(made, blocks=like.blocks, timesteps=(0,), **where, **prompt)


class StandardizedMap(nn.Module):
    """A linear map between activations that begins as the identity, both standardised as the target.

    The target's activations `[N, c, h, w]` give the means and deviations of its channels.
    """

    def __init__(self, target: torch.Tensor):
        super().__init__()
        channels = target.shape[1]
        self.register_buffer("mean", target.mean((0, 2, 3), keepdim=True))  # [1,c,1,1]
        self.register_buffer("deviation", target.std((0, 2, 3), keepdim=True).clamp(min=LEAST_DEVIATION))
        self.linear = nn.Conv2d(channels, channels, 1)
        nn.init.dirac_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a map of `[N, c, h, w]` to a target of that shape, in units of its variance."""
        found, target = ((x.float() - self.mean) / self.deviation for x in (found, target))
        return (self.linear(found).float() - target).square().mean()


class CleanPass(nn.Module):
    """A denoiser that sees clean images, and a linear map for each activation of its teacher.

    Args:
        made (`DiffusionPipeline`): Of [`with_clean_copy`]; its denoiser is trained.
        teacher ([`FeatureExtractor`]): Of the original, with fresh noise: see [`teacher_features`].
        images (`torch.Tensor`): `[N, C, H, W]` uint8, on which the teacher's activations are measured.

    Attributes:
        denoiser (`torch.nn.Module`): What is trained.
        student ([`FeatureExtractor`]): Reads it.
        maps (`torch.nn.ModuleList`): [`StandardizedMap`] of each activation of the teacher, timestep by timestep.

    Raises:
        UserError: There are no images.
    """

    def __init__(self, made: Any, teacher: FeatureExtractor, images: torch.Tensor):
        super().__init__()
        if not len(images):
            raise UserError("No images can be held out to measure on; ten are needed, or --num_validation_images.")
        self.student, self.teacher = reader(made, teacher), teacher
        self.denoiser = self.student.model
        batches = [self.targets(to_model_range(x, teacher.device), i) for i, x in enumerate(images.split(BATCH))]
        self.maps = nn.ModuleList(StandardizedMap(torch.cat(parts)) for parts in zip(*batches)).to(teacher.device)

    def targets(self, images: torch.Tensor, seed: int, mirrored: bool = False) -> list[torch.Tensor]:
        """Activations of the teacher, timestep by timestep, with noise from a seed.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` float32 in [-1, 1].
            seed (`int`): Of the noise.
            mirrored (`bool`, defaults to `False`): Whether those of the mirror images, mirrored back.
        """
        generator = torch.Generator().manual_seed(seed)
        found = self.teacher(images.flip(-1) if mirrored else images, generator=generator).activations
        return [x.flip(-1).float() if mirrored else x.float() for x in found]

    def forward(self, images: torch.Tensor, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean squared error of each of the teacher's activations, in units of its variance, `[timesteps * taps]`.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` float32 in [-1, 1], clean.
            targets (sequence of `torch.Tensor`): Of [`~CleanPass.targets`].
        """
        return self.errors(self.student, images, targets)

    def errors(self, student: FeatureExtractor, images: torch.Tensor, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """Those of [`~CleanPass.forward`], of any denoiser."""
        own = student.run(images)
        return torch.stack([one(own[i % len(own)], target) for i, (one, target) in enumerate(zip(self.maps, targets))])

    @torch.no_grad()
    def measure(self, student: FeatureExtractor, images: torch.Tensor) -> list[float]:
        """Errors on images `[N, C, H, W]` uint8, each with its own noise, in the order of the teacher's activations."""
        total, device = torch.zeros(len(self.maps)), self.teacher.device
        for i, batch in enumerate(images.split(BATCH)):
            clean = to_model_range(batch, device)
            total += len(batch) * self.errors(student, clean, self.targets(clean, i)).cpu()
        return (total / max(1, len(images))).tolist()


def freeze_unread(clean: CleanPass, images: torch.Tensor) -> None:
    """Freezes what lies behind the last tap, which no gradient reaches; images as for [`CleanPass`], one at least."""
    first = to_model_range(images[:1], clean.teacher.device)
    clean(first, clean.targets(first, 0)).sum().backward()
    for parameter in clean.denoiser.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    clean.zero_grad()


def describe_errors(clean: CleanPass, found: Mapping[str, Any]) -> str:
    """What one clean pass leaves unexplained of the teacher, before and after, in two sentences."""
    info = clean.teacher.feature_info()
    pairs = zip(info, found["errors_before"], found["errors"])
    said = "; ".join(f"block {i.block} at timestep {i.timestep} {a:.2f}, then {b:.2f}" for i, a, b in pairs)
    return (
        f"Squared error on held-out images, in units of the variance: {said}. Noise that no clean pass can know is in "
        f"these."
    )
