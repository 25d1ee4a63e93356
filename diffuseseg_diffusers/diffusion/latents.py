# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Latents of training images, encoded once, and the pipelines that latent denoisers are saved as."""

import os
from typing import Any

import torch
from accelerate import PartialState
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler, DiffusionPipeline, DiTPipeline, LDMPipeline
from tqdm.auto import tqdm

from ..features.latents import encode_latents, latent_stride
from ..images.channels import InputChannels
from ..jobs.errors import UserError
from ..jobs.hub_errors import explain_hub_error
from ..pipelines.pixel import DiffuseSegPipeline
from .objective import to_model_range


BATCH = 64  # images that are encoded at once


def load_autoencoder(name: str, cache_dir: str | None = None) -> AutoencoderKL:
    """A frozen autoencoder, from a folder or a repository of its own, or from a pipeline's.

    Raises:
        UserError: There is none.
    """
    reason: object = None
    for subfolder in (None, "vae", "vqvae"):
        if os.path.isdir(name) and not os.path.isfile(os.path.join(name, subfolder or "", "config.json")):
            continue
        try:
            vae = AutoencoderKL.from_pretrained(name, subfolder=subfolder, cache_dir=cache_dir, use_safetensors=True)
            return vae.eval().requires_grad_(False)
        except (OSError, ValueError) as error:
            reason = explain_hub_error(error) or str(error).splitlines()[0]
    raise UserError(f"{name} holds no autoencoder ({reason or 'no config.json'}); `train-autoencoder` makes one.")


def latent_shape(vae: AutoencoderKL, size: tuple[int, int]) -> tuple[int, int, int]:
    """Channels, height and width of the latents of images of a size.

    Raises:
        UserError: The size is no multiple of the autoencoder's stride; names the nearest that is.
    """
    stride = latent_stride(vae)
    if any(side % stride for side in size):
        near = " × ".join(str(max(stride, round(side / stride) * stride)) for side in size)
        what = f"The autoencoder takes sizes that are multiples of {stride}, got {size[0]} × {size[1]}"
        raise UserError(f"{what}; the nearest is {near}.")
    return vae.config.latent_channels, size[0] // stride, size[1] // stride


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Any, mirrored: bool = False) -> torch.Tensor:
    """Scaled latents `[N, c, h, w]` float32 on the CPU, of images `[N, C, H, W]` uint8 or an [`UnlabeledImages`].

    With `mirrored`, the latents of the mirror images follow, `[2N, c, h, w]`: latents cannot be mirrored themselves.
    """
    found: list[torch.Tensor] = []
    turns = (False, True) if mirrored else (False,)
    show = PartialState().is_local_main_process
    with tqdm(total=len(turns) * len(images), desc="Encoding", unit="image", disable=not show, leave=None) as bar:
        for turn in turns:
            for start in range(0, len(images), BATCH):
                rows = range(start, min(start + BATCH, len(images)))
                batch = images[rows.start : rows.stop] if torch.is_tensor(images) else decode(images, rows)
                pixels = to_model_range(batch, vae.device)
                found.append(encode_latents(vae, pixels.flip(-1) if turn else pixels).cpu())
                bar.update(len(rows))
    return torch.cat(found) if found else torch.zeros(0)


def decode(images: Any, rows: range) -> torch.Tensor:
    """Some images of an [`UnlabeledImages`], decoded."""
    return torch.stack([images[i][0] for i in rows])


def as_pipeline(
    denoiser: Any, scheduler: DDPMScheduler, vae: AutoencoderKL | None, channels: InputChannels | None = None
) -> DiffusionPipeline:
    """The pipeline that a trained denoiser is saved as: a plain one of diffusers, of chosen channels ours."""
    if channels is not None and channels.config is not None:
        return DiffuseSegPipeline(denoiser, scheduler, channels=channels.config)
    if vae is None:
        return DDPMPipeline(denoiser, scheduler)
    if "num_embeds_ada_norm" in denoiser.config:
        return DiTPipeline(denoiser, vae, scheduler)
    return LDMPipeline(vae, denoiser, scheduler)
