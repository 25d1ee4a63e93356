# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoder activations of a frozen diffusion U-Net on pixels.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section 3: a real image is
noised to a few late timesteps, one U-Net pass per timestep predicts the noise, and the activations of some decoder
blocks are the representation of its pixels.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel

from ..jobs.errors import UserError
from .base import (
    Block,
    FeatureExtractor,
    Generators,
    Tap,
    both_sides,
    check_multiple,
    refuse_prompt,
    relative_blocks,
)
from .dry_run import Place, dry_run
from .noise import noise_schedule


PAPER_BLOCKS = (5, 6, 7, 8, 12)


def up_block_outputs(unet: UNet2DModel, up_blocks: Sequence[int] | None = None) -> tuple[int, ...]:
    """Decoder-block numbers of the outputs of whole up-blocks, of all if none are given.

    Raises:
        UserError: An up-block does not exist.
    """
    ends = [end - 1 for end in itertools.accumulate(len(up_block.resnets) for up_block in unet.up_blocks)]
    for k in up_blocks or ():
        if not 0 <= k < len(ends):
            raise UserError(f"Up-block {k} does not exist: this U-Net has up-blocks 0 to {len(ends) - 1}.")
    return tuple(ends) if up_blocks is None else tuple(ends[k] for k in up_blocks)


def decoder_places(unet: torch.nn.Module) -> list[Place]:
    """All decoder blocks of a U-Net, the deepest first."""
    places = []
    for level, up_block in enumerate(unet.up_blocks):
        layers = len(up_block.resnets)  # U-Nets may have another number of them at each level
        # `AttnSkipUpBlock2D` has a single attention, after its last residual layer.
        paired = len(getattr(up_block, "attentions", None) or ()) == layers
        kind = "attentions" if paired else "resnets"
        places += [Place(f"up_blocks.{level}.{kind}.{layer}") for layer in range(layers - 1)]
        places.append(Place(f"up_blocks.{level}"))
    return places


def decoder_taps(unet: UNet2DModel) -> list[Tap]:
    """All decoder blocks of a U-Net on pixels, the deepest first."""
    channels, layers = unet.config.block_out_channels[::-1], unet.config.layers_per_block
    taps = []
    for block, place in enumerate(decoder_places(unet)):
        level, layer = divmod(block, layers + 1)
        finer = len(channels) - 1 - level  # levels
        upsampled = layer == layers and finer > 0 and not _upsamples_first(unet)
        taps.append(Tap(block, place.module, channels[level], 2 ** (finer - upsampled)))
    return taps


def _upsamples_first(unet: UNet2DModel) -> bool:
    """Whether a level upsamples before its layers, as in DiffuseSeg's U-Net, and not behind them."""
    return getattr(unet, "upsamples_first", False)


def default_class_labels(unet: UNet2DModel, batch_size: int, device: torch.device | None = None) -> torch.Tensor | None:
    """Class labels for a class-conditional U-Net when none are given, in fitting and in use: class 0.

    `[N]` int64, zeros `[N, time_embed_dim]` for `class_embed_type="identity"`, or `None` without class conditioning.
    """
    device = device or unet.device
    if getattr(unet, "class_embedding", None) is None:
        return None
    if unet.config.class_embed_type == "identity":
        dim = unet.config.time_embedding_dim or unet.config.block_out_channels[0] * 4
        return torch.zeros(batch_size, dim, device=device, dtype=unet.dtype)
    return torch.zeros(batch_size, dtype=torch.long, device=device)


class DecoderFeatureExtractor(FeatureExtractor):
    """Decoder activations of a [`UNet2DModel`] for noised images, in one batched pass that ends at the last block.

    Args:
        unet ([`UNet2DModel`]): The frozen diffusion model.
        scheduler ([`SchedulerMixin`]): Of the U-Net's pipeline; says how images are noised, see [`noise_schedule`].
        blocks (sequence of `int`, *optional*):
            Decoder blocks counted from the deepest: block `i` is residual layer `i % (layers_per_block + 1)` of
            `up_blocks[i // (layers_per_block + 1)]`, with its attention and, for the last layer, the upsampler. The
            paper's `(5, 6, 7, 8, 12)` of 18 if not given; of other U-Nets the outputs of all up-blocks.
        timesteps (sequence of `int`, *optional*): Diffusion timesteps; the paper's `(50, 150, 250)` if not given.
        up_blocks (sequence of `int`, *optional*): Outputs of whole up-blocks, in place of `blocks`.
        share_noise (`bool`, defaults to `True`): One fixed noise for all images and timesteps (the paper's setting), or
            fresh noise for each.
        noise_seed (`int`, defaults to 0): Seed of the shared noise; drawn on the CPU, so it is the same everywhere.
        clean (`bool`, defaults to `False`): No noise at all: the U-Net sees the mean of the noised images, and the
            timesteps as usual.
        size (two `int`, *optional*): Height and width at which images are read; the U-Net's `sample_size` if not given.
        device (`torch.device`, *optional*): Where the U-Net computes, if its weights are elsewhere between passes.

    Raises:
        UserError: A block or timestep does not exist, or none was asked for.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        blocks: Sequence[Block] | None = None,
        timesteps: Sequence[int] | None = None,
        up_blocks: Sequence[int] | None = None,
        share_noise: bool = True,
        noise_seed: int = 0,
        clean: bool = False,
        size: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ):
        self.model, self.origin = unet, (unet, scheduler)
        self.settings = dict(share_noise=share_noise, noise_seed=noise_seed, clean=clean, size=size, device=device)
        self.share_noise, self.noise_seed, self.clean = share_noise, noise_seed, clean
        blocks = blocks if up_blocks is None else up_block_outputs(unet, up_blocks)
        size, channels = size or image_size(unet), unet.config.in_channels
        super().__init__(decoder_taps(unet), blocks, timesteps, size, channels, noise_schedule(scheduler))

    @classmethod
    def of(cls, pipe: Any, **choice: Any) -> "DecoderFeatureExtractor":
        refuse_prompt(pipe.unet, choice.pop("prompt", None))
        return cls(pipe.unet, pipe.scheduler, **choice)

    def up_block_outputs(self, up_blocks: Sequence[int]) -> tuple[int, ...]:
        return up_block_outputs(self.model, up_blocks)

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[Block, ...]:
        if of_18 is not None:
            return relative_blocks(of_18, len(self.taps))
        return PAPER_BLOCKS if len(self.taps) == 18 else up_block_outputs(self.model)

    def shares(self) -> dict[Block, float | None]:
        def arguments() -> dict[str, Any]:
            images = torch.zeros(1, self.in_channels, *self.size)
            return {"sample": images, "timestep": 0, "class_labels": default_class_labels(self.model, 1, images.device)}

        places: dict[Block, Place] = {tap.index: Place(tap.module) for tap in self.taps}
        return {index: sighting.share for index, sighting in dry_run(self.model, places, arguments).items()}

    def check_size(self, height: int, width: int) -> None:
        check_image_size(self.model, height, width)

    def run(
        self, images: torch.Tensor, class_labels: torch.Tensor | None = None, generator: Generators = None
    ) -> list[torch.Tensor]:
        if class_labels is None:
            class_labels = default_class_labels(self.model, len(images), self.device)
        if class_labels is not None:
            repeats = (len(self.timesteps), *[1] * (class_labels.ndim - 1))
            class_labels = class_labels.to(self.device).repeat(repeats)  # [T*N]

        def call(noisy: torch.Tensor, timesteps: torch.Tensor) -> None:
            self.model(noisy, timesteps, class_labels=class_labels)

        images = images.to(self.device, torch.float32)  # [N,C,H,W]
        return self._noised_pass(images, generator, call, self.blocks[-1])


def image_size(unet: UNet2DModel) -> tuple[int, int]:
    """Height and width in pixels that the U-Net was made for; raises [`UserError`] if its config has none."""
    size = unet.config.sample_size
    if size is None:
        raise UserError("This U-Net has no `sample_size` in its config; set it to the image size or (height, width).")
    return both_sides(size)


def check_image_size(unet: UNet2DModel, height: int, width: int) -> None:
    """Raises [`UserError`], naming the nearest size that works, if the U-Net cannot halve these often enough."""
    check_multiple(height, width, 2 ** (len(unet.config.block_out_channels) - 1 + _upsamples_first(unet)))
