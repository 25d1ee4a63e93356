# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images and masks turned, scaled, shifted, mirrored and lit anew."""

import math

import torch
import torch.nn.functional as F


IGNORED = 255  # in training batches, whatever the dataset's own number is


def augment(
    images: torch.Tensor,
    masks: torch.Tensor,
    generator: torch.Generator,
    flip: bool = True,
    strength: float | torch.Tensor = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turns, scales, shifts and mirrors images and masks alike, and changes light, contrast and noise of the images.

    Args:
        images (`torch.Tensor`): `[N, C, H, W]` float32 in [0, 1].
        masks (`torch.Tensor`): `[N, H, W]` int64.
        generator (`torch.Generator`): CPU generator.
        flip (`bool`, defaults to `True`): Whether left and right may be exchanged.
        strength (`float` or `torch.Tensor`, defaults to 1.0):
            Share of the full ranges (±15°, ±25 % in scale, ±10 % in position, ±30 % in light and contrast) from which
            all but the mirroring is drawn, 0 to 1; of all images or `[N]` for each.

    Returns:
        The same shapes; `IGNORED` where a mask came from outside of the picture.
    """
    n, _, height, width = images.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return strength * (low + (high - low) * torch.rand(n, generator=generator))

    # 1. Geometry: from output to input coordinates, in pixels so that a turn does not shear.
    angle, scale = uniform(-15, 15) * math.pi / 180, uniform(math.log(0.8), math.log(1.25)).exp()
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(n)
    cos, sin, aspect = angle.cos() / scale, angle.sin() / scale, width / height
    shift = torch.stack([uniform(-0.1, 0.1), uniform(-0.1, 0.1)], dim=-1)  # [N,2]
    matrix = torch.stack([cos * mirror, -sin / aspect, sin * aspect * mirror, cos], dim=-1).view(n, 2, 2)
    theta = torch.cat([matrix, 2 * shift[..., None]], dim=-1).to(images.device)  # [N,2,3]
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)  # [N,H,W,2]
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    shifted = (masks + 1)[:, None].float()  # so that the 0 from outside is none of the classes
    masks = F.grid_sample(shifted, grid, mode="nearest", align_corners=False)[:, 0].long() - 1
    masks[masks < 0] = IGNORED

    # 2. Light, contrast, gamma, noise.
    def each(values: torch.Tensor) -> torch.Tensor:
        return values.view(n, 1, 1, 1).to(images.device)

    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * each(1 + uniform(-0.3, 0.3)) + mean * each(1 + uniform(-0.3, 0.3))
    images = images.clamp(0, 1) ** each(uniform(math.log(0.8), math.log(1.25)).exp())
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (images + noise * each(uniform(0, 0.04))).clamp(0, 1), masks
