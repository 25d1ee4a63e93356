# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images to the latents of a latent diffusion model, as the image-to-image pipelines of diffusers encode them."""

from typing import Any

import torch


def latent_stride(vae: torch.nn.Module) -> int:
    """Pixels of the image for one of the latents, along each axis."""
    config = vae.config
    return 2 ** (len(config.get("block_out_channels") or config["encoder_block_out_channels"]) - 1)


def encode_latents(vae: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Scaled latents of images: the mode of the posterior, for the features to be a function of the image alone.

    Args:
        vae (`AutoencoderKL`, `VQModel`, `AutoencoderDC` or `AutoencoderTiny`): Left as it is; where its config says
            `force_upcast` and it is in float16, it encodes in float32.
        images (`torch.Tensor`): `[N, C, H, W]` in [-1, 1], on the device that the autoencoder computes on.

    Returns:
        `torch.Tensor` `[N, latent channels, H / stride, W / stride]` float32, before vectors are quantised.
    """
    dtype, was_training = vae.dtype, vae.training
    upcast = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    vae.eval()
    if upcast:  # float16 to float32 and back changes no bit
        vae.to(dtype=torch.float32)
    try:
        encoded = vae.encode(images.to(vae.dtype))
    finally:
        if upcast:
            vae.to(dtype=dtype)
        vae.train(was_training)
    latents, config = latents_of(encoded).float(), vae.config
    mean, std, factor = config.get("latents_mean"), config.get("latents_std"), config.get("scaling_factor") or 1.0
    if mean is not None and std is not None:
        mean, std = (torch.tensor(x, device=latents.device).view(1, -1, 1, 1) for x in (mean, std))
        return (latents - mean) * factor / std
    return (latents - (config.get("shift_factor") or 0.0)) * factor


def latents_of(encoded: Any) -> torch.Tensor:
    """The latents of an autoencoder's `encode` output."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latents if hasattr(encoded, "latents") else encoded.latent
