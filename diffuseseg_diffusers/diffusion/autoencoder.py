# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A small autoencoder for latent diffusion: reconstruction and a weak pull towards a normal distribution.

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models" (CVPR 2022), section 3.1, without the
perceptual and adversarial losses, which need networks of their own.
"""

import math
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import AutoencoderKL
from torch import nn

from ..features.latents import latents_of
from .latents import decode
from .objective import to_model_range
from .unets import side_or_sides


MEASURED = 2048  # training images that the scale of the latents is measured on


def make_autoencoder(
    size: tuple[int, int], channels: int, latent_channels: int, downsample: int, base_channels: int
) -> AutoencoderKL:
    """An autoencoder with fresh weights.

    Args:
        size (two `int`), channels (`int`): Of the images: height and width in pixels, 1 or 3 channels.
        latent_channels (`int`), downsample (`int`): Of the latents; pixels of the image for one of them, 2 to a power.
        base_channels (`int`): Width of the finest level; deeper ones are twice as wide.
    """
    levels = int(math.log2(downsample)) + 1
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(base_channels * min(2**level, 2) for level in range(levels)),
        latent_channels=latent_channels,
        norm_num_groups=math.gcd(base_channels, 8),
        layers_per_block=1,
        sample_size=side_or_sides(size),
        mid_block_add_attention=False,
    )


class Reconstruction(nn.Module):
    """Images `[N, C, H, W]` and noise of their latents to reconstructions, and the divergence from a normal."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, images: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(images).latent_dist
        generator = torch.Generator(images.device).manual_seed(seed)
        restored = self.vae.decode(posterior.sample(generator)).sample  # [N,C,H,W]
        return restored, posterior.kl().mean() / images[0].numel()


@torch.no_grad()
def reconstruction_errors(vae: AutoencoderKL, pixels: torch.Tensor) -> dict[str, float]:
    """Errors of reconstructions of `[N, C, H, W]` uint8: `absolute_error`, the mean in [0, 1], and `psnr` in dB."""
    absolute, squared = [], []
    for batch in pixels.split(64):
        images = to_model_range(batch, vae.device)
        difference = (vae.decode(latents_of(vae.encode(images))).sample.clamp(-1, 1) - images) / 2
        absolute.append(difference.abs().mean((1, 2, 3)))
        squared.append(difference.square().mean((1, 2, 3)))
    psnr = -10 * torch.cat(squared).clamp(min=1e-10).log10()
    return {"absolute_error": torch.cat(absolute).mean().item(), "psnr": psnr.mean().item()}


@torch.no_grad()
def draw_reconstructions(vae: AutoencoderKL, pixels: torch.Tensor) -> list[PIL.Image.Image]:
    """Images `[N, C, H, W]` uint8, each followed by its reconstruction."""
    images = to_model_range(pixels, vae.device)
    restored = vae.decode(latents_of(vae.encode(images))).sample
    return [to_pil(x) for x in torch.stack([images, restored.clamp(-1, 1)], dim=1).flatten(0, 1)]


@torch.no_grad()
def latent_scale(vae: AutoencoderKL, images: Any) -> float:
    """The factor that makes the standard deviation of latents 1 (Rombach et al., appendix G).

    Of images `[N, C, H, W]` uint8, or an [`UnlabeledImages`] that is decoded.
    """
    if not torch.is_tensor(images):
        images = decode(images, range(min(len(images), MEASURED)))
    found = [latents_of(vae.encode(to_model_range(b, vae.device))) for b in images[:MEASURED].split(64)]
    return 1 / torch.cat(found).std().item()


def to_pil(image: torch.Tensor) -> PIL.Image.Image:
    """`[C, H, W]` in [-1, 1] as an image."""
    pixels = ((image.cpu() / 2 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(np.squeeze(pixels, -1) if pixels.shape[-1] == 1 else pixels)
