# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoder activations of a frozen diffusion U-Net on pixels.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section 3: a real image is
noised to a few late timesteps, one U-Net pass per timestep predicts the noise, and the activations of some decoder
blocks are the representation of its pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel

from ..jobs.errors import UserError
from .base import Block, FeatureExtractor, Features, LastTapReached, Tap, relative_blocks
from .dry_run import Place, dry_run
from .noise import noise_schedule


PAPER_BLOCKS = (5, 6, 7, 8, 12)


def num_decoder_blocks(unet: UNet2DModel) -> int:
    """Number of decoder blocks: `L * (layers_per_block + 1)` for `L` levels."""
    return len(unet.config.block_out_channels) * (unet.config.layers_per_block + 1)


def up_block_outputs(unet: UNet2DModel, up_blocks: Sequence[int]) -> tuple[int, ...]:
    """Decoder-block numbers of the outputs of whole up-blocks: `k * (layers_per_block + 1) + layers_per_block`.

    Raises:
        UserError: An up-block does not exist.
    """
    levels = len(unet.config.block_out_channels)
    for k in up_blocks:
        if not 0 <= k < levels:
            raise UserError(f"Up-block {k} does not exist: this U-Net has up-blocks 0 to {levels - 1}.")
    layers = unet.config.layers_per_block
    return tuple(k * (layers + 1) + layers for k in up_blocks)


def decoder_taps(unet: UNet2DModel) -> list[Tap]:
    """All decoder blocks of a U-Net, the deepest first."""
    channels = unet.config.block_out_channels[::-1]
    levels, layers = len(channels), unet.config.layers_per_block
    taps = []
    for block in range(num_decoder_blocks(unet)):
        level, layer = divmod(block, layers + 1)
        upsampled = layer == layers and level < levels - 1 and not _upsamples_first(unet)
        up_block, module = unet.up_blocks[level], f"up_blocks.{level}"
        if layer < layers:
            # `AttnSkipUpBlock2D` has a single attention, after its last residual layer.
            attentions = getattr(up_block, "attentions", None)
            paired = attentions and len(attentions) == len(up_block.resnets)
            module += f".{'attentions' if paired else 'resnets'}.{layer}"
        taps.append(Tap(block, module, channels[level], 2 ** (levels - 1 - level - upsampled)))
    return taps


def _upsamples_first(unet: UNet2DModel) -> bool:
    """Whether a level upsamples before its layers, as in DiffuseSeg's U-Net, and not behind them."""
    return getattr(unet, "upsamples_first", False)


def default_class_labels(unet: UNet2DModel, batch_size: int, device: torch.device | None = None) -> torch.Tensor | None:
    """Class labels for a class-conditional U-Net when none are given: class 0 (a zero embedding for `identity`).

    A real image comes without a class, and the head must see the same conditioning when it is fitted and when it is
    used, so the default is a constant.

    Returns:
        `torch.Tensor` of shape `[N]` (int64), `[N, time_embed_dim]` for `class_embed_type="identity"`, or `None` for a
        U-Net without class conditioning.
    """
    device = device or unet.device
    if unet.class_embedding is None:
        return None
    if unet.config.class_embed_type == "identity":
        dim = unet.config.time_embedding_dim or unet.config.block_out_channels[0] * 4
        return torch.zeros(batch_size, dim, device=device, dtype=unet.dtype)
    return torch.zeros(batch_size, dtype=torch.long, device=device)


class DecoderFeatureExtractor(FeatureExtractor):
    """Decoder activations of a [`UNet2DModel`] for noised images, in one batched pass that ends early.

    All timesteps of an image go through the U-Net as one batch, and the pass stops right after the last block asked
    for. The hooks exist only during a call.

    Args:
        unet ([`UNet2DModel`]): The frozen diffusion model.
        scheduler ([`SchedulerMixin`]): Of the U-Net's pipeline; says how images are noised, see [`noise_schedule`].
        blocks (sequence of `int`, *optional*):
            Decoder blocks counted from the deepest: block `i` is residual layer `i % (layers_per_block + 1)` of
            `up_blocks[i // (layers_per_block + 1)]`, with its attention and, for the last layer, the upsampler. The
            paper's `(5, 6, 7, 8, 12)` of 18 if not given; of other U-Nets the outputs of all up-blocks.
        timesteps (sequence of `int`, *optional*): Diffusion timesteps; the paper's `(50, 150, 250)` if not given.
        up_blocks (sequence of `int`, *optional*): Outputs of whole up-blocks, in place of `blocks`.
        share_noise (`bool`, defaults to `True`):
            One fixed noise, drawn from `noise_seed`, for all images and timesteps (the paper's setting). If `False`,
            fresh noise for every image and timestep.
        noise_seed (`int`, defaults to 0): Seed of the shared noise; drawn on the CPU, so it is the same everywhere.
        size (two `int`, *optional*): Height and width at which images are read; the U-Net's `sample_size` if not given.
        device (`torch.device`, *optional*):
            Where the U-Net computes, if its weights are elsewhere between passes (CPU offload).

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
        size: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ):
        if up_blocks is not None:
            blocks = up_block_outputs(unet, up_blocks)
        self.unet, self.scheduler = unet, scheduler
        self.share_noise, self.noise_seed, self._device = share_noise, noise_seed, device
        super().__init__(
            decoder_taps(unet),
            blocks,
            timesteps,
            size or image_size(unet),
            unet.config.in_channels,
            noise_schedule(scheduler),
        )

    @classmethod
    def of(cls, pipe: Any, **choice: Any) -> "DecoderFeatureExtractor":
        if choice.pop("prompt", None) is not None:
            raise UserError(f"{type(pipe.unet).__name__} takes no prompt; leave it out.")
        return cls(pipe.unet, pipe.scheduler, **choice)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        return self._device or self.unet.device

    def choose(
        self, blocks: Sequence[Block] | None = None, timesteps: Sequence[int] | None = None, **options: Any
    ) -> "DecoderFeatureExtractor":
        given = dict(share_noise=self.share_noise, noise_seed=self.noise_seed, size=self.size, device=self._device)
        blocks = self.blocks if blocks is None else blocks
        timesteps = self.timesteps if timesteps is None else timesteps
        return type(self)(self.unet, self.scheduler, blocks, timesteps, **{**given, **options})

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[int, ...]:
        total = num_decoder_blocks(self.unet)
        if of_18 is not None:
            return relative_blocks(of_18, total)
        if total == 18:
            return PAPER_BLOCKS
        return up_block_outputs(self.unet, range(len(self.unet.config.block_out_channels)))

    def shares(self) -> dict[Block, float | None]:
        def arguments() -> dict[str, Any]:
            images = torch.zeros(1, self.in_channels, *self.size)
            return {"sample": images, "timestep": 0, "class_labels": default_class_labels(self.unet, 1, images.device)}

        places: dict[Block, Place] = {tap.index: Place(tap.module) for tap in self.taps}
        return {index: sighting.share for index, sighting in dry_run(self.unet, places, arguments).items()}

    def check_size(self, height: int, width: int) -> None:
        check_image_size(self.unet, height, width)

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Features:
        """Extracts the activations of a batch of images; see [`FeatureExtractor`].

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` in [-1, 1], `C` the U-Net's `in_channels`.
            class_labels (`torch.Tensor`, *optional*):
                `[N]`, for class-conditional U-Nets; see [`default_class_labels`] for the default.
            generator (`torch.Generator` or list of one per image, *optional*):
                Of the noise when `share_noise=False`; images are drawn one after another, so the batch size does not
                change what an image gets.
        """
        n, c, height, width = images.shape
        if c != self.in_channels:
            raise UserError(f"The images have {c} channels, but the U-Net takes {self.in_channels}.")
        info = self.feature_info(height, width)
        device, steps = self.device, len(self.timesteps)

        # 1. Noise the images to every timestep; batch entry t * N + i is image i at timestep t.
        images = images.to(device, torch.float32)  # [N,C,H,W]
        noise = self.draw_noise(images, generator)  # [T*N,C,H,W]
        timesteps = torch.tensor(self.timesteps, device=device).repeat_interleave(n)  # [T*N]
        noisy = self.schedule.add_noise(images.repeat(steps, 1, 1, 1), noise, timesteps).to(self.dtype)  # [T*N,C,H,W]
        if class_labels is None:
            class_labels = default_class_labels(self.unet, n, device)
        if class_labels is not None:
            class_labels = class_labels.to(device).repeat(steps, *[1] * (class_labels.ndim - 1))  # [T*N]

        # 2. One pass that ends at the last tapped block.
        was_training = self.unet.training
        self.unet.eval()
        try:
            with self.reading(self.unet, stop_at=self.blocks[-1]) as seen:
                self.unet(noisy, timesteps, class_labels=class_labels)
        except LastTapReached:
            pass
        finally:
            self.unet.train(was_training)

        # 3. Timesteps apart, timestep-major as in the published code.
        tapped = {block: first_tensor(output).unflatten(0, (steps, n)) for block, output in seen.items()}
        activations = [tapped[i.block][self.timesteps.index(i.timestep)] for i in info]
        return self.check_finite(Features(activations=activations, info=info))


def first_tensor(output: torch.Tensor | tuple) -> torch.Tensor:
    """The activation in what a module of a U-Net returns."""
    return output[0] if isinstance(output, tuple) else output


def image_size(unet: UNet2DModel) -> tuple[int, int]:
    """Height and width in pixels that the U-Net was made for.

    Raises:
        UserError: Its config has no `sample_size`.
    """
    size = unet.config.sample_size
    if size is None:
        raise UserError("This U-Net has no `sample_size` in its config; set it to the image size or (height, width).")
    return (size, size) if isinstance(size, int) else tuple(size)


def check_image_size(unet: UNet2DModel, height: int, width: int) -> None:
    """Raises [`UserError`], naming the nearest size that works, if the U-Net cannot halve these often enough."""
    multiple = 2 ** (len(unet.config.block_out_channels) - 1 + _upsamples_first(unet))
    if height % multiple or width % multiple:
        near = " × ".join(str(max(multiple, round(x / multiple) * multiple)) for x in (height, width))
        raise UserError(
            f"This U-Net takes sizes that are multiples of {multiple}, got {height} × {width}; the nearest is {near}."
        )
