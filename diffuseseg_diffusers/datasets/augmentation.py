# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Augmented views of images and masks."""

import math

import torch
import torch.nn.functional as F


IGNORED = 255  # in training batches, whatever the dataset's own number is


def augment(
    images: torch.Tensor, masks: torch.Tensor, generator: torch.Generator, flip: bool = True, p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Applies random rotation, scale, shift and flip to images and masks; brightness, gamma and noise to images.

    Args:
        images (`torch.Tensor`): `[N, C, H, W]` float32 in [0, 1].
        masks (`torch.Tensor`): `[N, H, W]` int64, or `[N, M, H, W]` for several of each image.
        generator (`torch.Generator`): CPU generator.
        flip (`bool`, defaults to `True`): Whether to flip horizontally.
        p (`float`, defaults to 1.0):
            Probability of each change but the mirroring, drawn for each image and change by itself: a turn by up to
            20°, a size of 0.7 to 1.4 times, a shift by up to 10 %, light and contrast by up to 30 %, a gamma of 0.8 to
            1.25, noise of up to 4 %.

    Returns:
        The same shapes; `IGNORED` where a mask came from outside of the image.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        value = low + (high - low) * torch.rand(n, generator=generator)
        return torch.where(torch.rand(n, generator=generator) < p, value, 0.0)

    # 1. Geometry: from output to input coordinates, in pixels so that a turn does not shear.
    angle, scale = uniform(-20, 20) * math.pi / 180, uniform(math.log(0.7), math.log(1.4)).exp()
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin, aspect = angle.cos() / scale, angle.sin() / scale, width / height
    shift = torch.stack([uniform(-0.1, 0.1), uniform(-0.1, 0.1)], dim=-1)  # [N,2]
    matrix = torch.stack([cos * mirror, -sin / aspect, sin * aspect * mirror, cos], dim=-1).view(n, 2, 2)
    theta = torch.cat([matrix, 2 * shift[..., None]], dim=-1).to(images.device)  # [N,2,3]
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)  # [N,H,W,2]
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    shifted = (masks + 1).view(n, -1, height, width).float()  # so that the 0 from outside is none of the classes
    masks = (F.grid_sample(shifted, grid, mode="nearest", align_corners=False).long() - 1).view(masks.shape)
    masks[masks < 0] = IGNORED

    # 2. Light, contrast, gamma, noise.
    def each(values: torch.Tensor) -> torch.Tensor:
        return values.view(n, 1, 1, 1).to(images.device)

    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * each(1 + uniform(-0.3, 0.3)) + mean * each(1 + uniform(-0.3, 0.3))
    images = images.clamp(0, 1) ** each(uniform(math.log(0.8), math.log(1.25)).exp())
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + noise * each(uniform(0, 0.04))).clamp(0, 1), masks
