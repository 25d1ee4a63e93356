# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options of `diffuseseg train-autoencoder`; the training is `training/train_autoencoder.py`."""

from dataclasses import dataclass

from ..jobs.config import option
from ..jobs.errors import UserError
from .options import CachesDownloads, WritesFolder
from .train_options import DrawsSamples, KeepsCheckpoints, ReadsUnlabeled, SetsChannels, TrainsBySteps


DOWNSAMPLE = (2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoderConfig(
    ReadsUnlabeled, SetsChannels, TrainsBySteps, KeepsCheckpoints, DrawsSamples, CachesDownloads, WritesFolder
):
    """Train an autoencoder for latent diffusion on unlabelled images."""

    title = "model"

    latent_channels: int = option(4, "Channels of the latents.", minimum=1)
    downsample: int = option(4, "Pixels of the image per pixel of the latents, along each axis.", choices=DOWNSAMPLE)
    base_channels: int = option(32, "Width of the finest level.", minimum=1)
    kl_weight: float = option(1e-6, "Weight of the latents' KL divergence from a standard normal.")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        sides = self.resolution or (64,)
        return sides[0], sides[-1]

    def check(self) -> None:
        super().check()
        if self.input_channels or self.intensity_window or self.intensity_percentiles:
            raise UserError("Autoencoders take pictures of eight bits; leave channels and intensities out.")
        if self.streaming:
            raise UserError("The scale of latents is measured on images at hand; leave --streaming out.")
        if any(side % self.downsample for side in self.size):
            given = " × ".join(map(str, self.size))
            raise UserError(f"--resolution must be a multiple of --downsample {self.downsample}, got {given}.")
