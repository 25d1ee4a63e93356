# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A U-Net in the manner of Ronneberger et al. (2015) with batch norms: no diffusion model, but quick to train."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


LEAST_DEVIATION = 0.02  # of pixels in [-1, 1]: the noise of an even ground is not made a texture


class PlainUNet(ModelMixin, ConfigMixin):
    """A U-Net, by default of 0.5 million weights, that standardises each image by its own mean and deviation.

    Args:
        sample_size (two `int`): Height and width of the images that it is used on, at least `2 ** (levels - 1)` each.
        in_channels (`int`), out_channels (`int`): Channels of the images, and classes.
        width (`int`): Channels of the first level, doubled at each of the others, at most three times.
        levels (`int`): Each but the first at half the resolution of the one before.
        mirror (`bool`): Whether logits are averaged with those of the mirror image, except in training.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: tuple[int, int] = (128, 128),
        in_channels: int = 3,
        out_channels: int = 2,
        width: int = 16,
        levels: int = 4,
        mirror: bool = False,
    ):
        super().__init__()
        widths = [width * 2 ** min(i, 3) for i in range(levels)]
        self.down = nn.ModuleList(map(_convolutions, [in_channels, *widths], widths))
        self.up = nn.ModuleList(_convolutions(sum(pair), pair[0]) for pair in zip(widths, widths[1:]))
        self.conv_out = nn.Conv2d(width, out_channels, 1)

    def forward(
        self, sample: torch.Tensor, timestep: Any = None, class_labels: Any = None, return_dict: bool = False
    ) -> tuple[torch.Tensor]:
        """Logits `[N, out_channels, H, W]` of images `[N, in_channels, H, W]` float32 in [-1, 1].

        It is called as a `UNet2DModel`, and needs the first of its arguments alone.
        """
        if self.config.mirror and not self.training:
            return ((self.logits(sample) + self.logits(sample.flip(-1)).flip(-1)) / 2,)
        return (self.logits(sample),)

    def logits(self, sample: torch.Tensor) -> torch.Tensor:
        """Those of `forward` without the mirror image."""
        # In full precision: bfloat16 would round a faint picture away.
        sample = sample.float()
        deviation = sample.std((1, 2, 3), keepdim=True).clamp(min=LEAST_DEVIATION)
        x = ((sample - sample.mean((1, 2, 3), keepdim=True)) / deviation).to(self.dtype)
        skips = []
        for block in self.down:
            x = block(F.max_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for block in reversed(self.up):
            skip = skips.pop()
            x = block(torch.cat([skip, F.interpolate(x, size=skip.shape[-2:])], dim=1))
        return self.conv_out(x)


def _convolutions(channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (channels, width):
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
