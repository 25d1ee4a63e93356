# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoder activations of a frozen diffusion U-Net as pixel features.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section 3: a real image is
noised to a few late timesteps, one U-Net pass per timestep predicts the noise, and the activations of some decoder
blocks are the representation of its pixels.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput


PAPER_BLOCKS = (5, 6, 7, 8, 12)
PAPER_TIMESTEPS = (50, 150, 250)


@dataclass(frozen=True)
class FeatureInfo:
    """What one entry of [`DecoderFeatures.activations`] is, known before anything runs.

    Args:
        block (`int`): Decoder block, counted from the deepest (the paper's numbering).
        timestep (`int`): Diffusion timestep of the noised image.
        channels (`int`): Channels of the activation.
        height (`int`), width (`int`): Its resolution in pixels.
    """

    block: int
    timestep: int
    channels: int
    height: int
    width: int


@dataclass
class DecoderFeatures(BaseOutput):
    """Output of [`DecoderFeatureExtractor`].

    Args:
        activations (`list[torch.Tensor]`):
            One tensor `[N, channels, height, width]` per (timestep, block), at the block's own resolution and in the
            U-Net's dtype; ordered by timestep, then by block, as the published code concatenates them.
        info (`list[FeatureInfo]`): The description of each, in the same order.
    """

    activations: list[torch.Tensor]
    info: list[FeatureInfo]


class _LastBlockReached(Exception):
    """Leaves the U-Net's forward pass once nothing after this point is needed."""


def num_decoder_blocks(unet: UNet2DModel) -> int:
    """Number of decoder blocks: `L * (layers_per_block + 1)` for `L` levels."""
    return len(unet.config.block_out_channels) * (unet.config.layers_per_block + 1)


def up_block_outputs(unet: UNet2DModel, up_blocks: Sequence[int]) -> tuple[int, ...]:
    """Decoder-block numbers of the outputs of whole up-blocks: `k * (layers_per_block + 1) + layers_per_block`.

    Raises:
        ValueError: An up-block does not exist.
    """
    levels = len(unet.config.block_out_channels)
    for k in up_blocks:
        if not 0 <= k < levels:
            raise ValueError(f"Up-block {k} does not exist: this U-Net has up-blocks 0 to {levels - 1}.")
    layers = unet.config.layers_per_block
    return tuple(k * (layers + 1) + layers for k in up_blocks)


def default_class_labels(unet: UNet2DModel, batch_size: int) -> torch.Tensor | None:
    """Class labels for a class-conditional U-Net when none are given: class 0 (a zero embedding for `identity`).

    A real image comes without a class, and the head must see the same conditioning when it is fitted and when it is
    used, so the default is a constant.

    Returns:
        `torch.Tensor` of shape `[N]` (int64), `[N, time_embed_dim]` for `class_embed_type="identity"`, or `None` for a
        U-Net without class conditioning.
    """
    if unet.class_embedding is None:
        return None
    if unet.config.class_embed_type == "identity":
        dim = unet.config.time_embedding_dim or unet.config.block_out_channels[0] * 4
        return torch.zeros(batch_size, dim, device=unet.device, dtype=unet.dtype)
    return torch.zeros(batch_size, dtype=torch.long, device=unet.device)


class DecoderFeatureExtractor:
    """Extracts decoder activations of a [`UNet2DModel`] for noised images, in one batched pass that ends early.

    All timesteps of an image go through the U-Net as one batch, and the pass stops right after the last block asked
    for. The hooks exist only during a call.

    Args:
        unet ([`UNet2DModel`]): The frozen diffusion model.
        scheduler ([`SchedulerMixin`]): Any scheduler with `add_noise`.
        blocks (sequence of `int`, defaults to the paper's `(5, 6, 7, 8, 12)`):
            Decoder blocks counted from the deepest: block `i` is residual layer `i % (layers_per_block + 1)` of
            `up_blocks[i // (layers_per_block + 1)]`, with its attention and, for the last layer, the upsampler.
        timesteps (sequence of `int`, defaults to the paper's `(50, 150, 250)`): Diffusion timesteps.
        up_blocks (sequence of `int`, *optional*):
            Outputs of whole up-blocks (DiffuseSeg's choice), in place of `blocks`.
        share_noise (`bool`, defaults to `True`):
            One fixed noise, drawn from `noise_seed`, for all images and timesteps (the paper's setting). If `False`,
            fresh noise for every image and timestep.
        noise_seed (`int`, defaults to 0): Seed of the shared noise; drawn on the CPU, so it is the same everywhere.

    Raises:
        ValueError: A block or timestep does not exist, or none was asked for.
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        blocks: Sequence[int] = PAPER_BLOCKS,
        timesteps: Sequence[int] = PAPER_TIMESTEPS,
        up_blocks: Sequence[int] | None = None,
        share_noise: bool = True,
        noise_seed: int = 0,
    ):
        if up_blocks is not None:
            blocks = up_block_outputs(unet, up_blocks)
        total = num_decoder_blocks(unet)
        for block in blocks:
            if not 0 <= block < total:
                raise ValueError(
                    f"Decoder block {block} does not exist: this U-Net has blocks 0 to {total - 1}, the deepest first."
                )
        steps = scheduler.config.num_train_timesteps
        for t in timesteps:
            if not 0 <= t < steps:
                raise ValueError(f"Timestep {t} does not exist: this scheduler has timesteps 0 to {steps - 1}.")
        if not blocks or not timesteps:
            raise ValueError(f"At least one block and one timestep are needed, got blocks {blocks}, steps {timesteps}.")
        if len(set(blocks)) < len(blocks) or len(set(timesteps)) < len(timesteps):
            raise ValueError(f"A block or timestep is given twice: blocks {blocks}, timesteps {timesteps}.")

        self.unet = unet
        # Multistep schedulers look timesteps up in their sampling schedule, and would noise to another level whenever
        # it lacks one; the forward process itself depends on the betas alone.
        has_betas = hasattr(scheduler, "alphas_cumprod")
        self.scheduler = DDPMScheduler.from_config(scheduler.config) if has_betas else scheduler
        self.blocks = tuple(sorted(blocks))
        self.timesteps = tuple(timesteps)
        self.share_noise = share_noise
        self.noise_seed = noise_seed

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels at which images are read."""
        return image_size(self.unet)

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.unet.config.in_channels

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.unet.dtype

    @property
    def device(self) -> torch.device:
        """Of the activations."""
        return self.unet.device

    def feature_info(self, height: int | None = None, width: int | None = None) -> list[FeatureInfo]:
        """Describes the activations of a `height` × `width` image without running the U-Net.

        Args:
            height, width (`int`, *optional*): Image size in pixels; the U-Net's `sample_size` if not given.

        Returns:
            `list[FeatureInfo]`, in the order of [`DecoderFeatures.activations`].

        Raises:
            ValueError: The U-Net cannot take images of this size (the nearest sizes that work are named).
        """
        if height is None or width is None:
            default_height, default_width = image_size(self.unet)
            height, width = height or default_height, width or default_width
        channels = self.unet.config.block_out_channels[::-1]
        levels, layers = len(channels), self.unet.config.layers_per_block
        check_image_size(self.unet, height, width)
        info = []
        for t in self.timesteps:
            for block in self.blocks:
                level, layer = divmod(block, layers + 1)
                upsampled = layer == layers and level < levels - 1
                reduction = 2 ** (levels - 1 - level - upsampled)
                info.append(FeatureInfo(block, t, channels[level], height // reduction, width // reduction))
        return info

    @torch.no_grad()
    def __call__(
        self,
        images: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> DecoderFeatures:
        """Extracts the activations of a batch of images.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` in [-1, 1], `C` the U-Net's `in_channels`.
            class_labels (`torch.Tensor`, *optional*):
                `[N]`, for class-conditional U-Nets; see [`default_class_labels`] for the default.
            generator (`torch.Generator`, *optional*):
                CPU generator of the noise when `share_noise=False`; images are drawn one after another, so the batch
                size does not change what an image gets.

        Returns:
            [`DecoderFeatures`]

        Raises:
            ValueError: The images do not fit the U-Net.
            FloatingPointError: An activation is not finite; names its block and timestep.
        """
        n, c, height, width = images.shape
        if c != self.unet.config.in_channels:
            raise ValueError(f"The images have {c} channels, but the U-Net takes {self.unet.config.in_channels}.")
        info = self.feature_info(height, width)
        device, dtype, steps = self.unet.device, self.unet.dtype, len(self.timesteps)

        # 1. Noise the images to every timestep; batch entry t * N + i is image i at timestep t.
        images = images.to(device, torch.float32)  # [N,C,H,W]
        noise = self._noise(images, generator)  # [T*N,C,H,W]
        timesteps = torch.tensor(self.timesteps, device=device).repeat_interleave(n)  # [T*N]
        noisy = self.scheduler.add_noise(images.repeat(steps, 1, 1, 1), noise, timesteps).to(dtype)  # [T*N,C,H,W]
        if class_labels is None:
            class_labels = default_class_labels(self.unet, n)
        if class_labels is not None:
            class_labels = class_labels.to(device).repeat(steps, *[1] * (class_labels.ndim - 1))  # [T*N]

        # 2. One pass that ends at the last tapped block.
        was_training = self.unet.training
        self.unet.eval()
        try:
            with self.tapped(stop_early=True) as tapped:
                self.unet(noisy, timesteps, class_labels=class_labels)
        except _LastBlockReached:
            pass
        finally:
            self.unet.train(was_training)

        # 3. Timesteps apart, timestep-major as in the published code.
        activations = [tapped[i.block].unflatten(0, (steps, n))[self.timesteps.index(i.timestep)] for i in info]
        self._check_finite(tapped)
        return DecoderFeatures(activations=activations, info=info)

    @contextmanager
    def tapped(self, stop_early: bool = False) -> Iterator[dict[int, torch.Tensor]]:
        """Yields a dict that every pass of the U-Net within the context fills: block to `[N, channels, h, w]`.

        Args:
            stop_early (`bool`, defaults to `False`): End the pass after the last block, with an exception that the
                caller has to catch.
        """
        tapped: dict[int, torch.Tensor] = {}
        with ExitStack() as hooks:
            for block in self.blocks:
                hook = self._tap(tapped, block, stop_early and block == self.blocks[-1])
                hooks.callback(self._module(block).register_forward_hook(hook).remove)
            yield tapped

    def _noise(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        n, *shape = images.shape
        steps = len(self.timesteps)
        if self.share_noise:
            seeded = torch.Generator().manual_seed(self.noise_seed)
            noise = torch.randn(1, *shape, generator=seeded).expand(steps * n, *shape)
        else:
            noise = torch.stack([torch.randn(steps, *shape, generator=generator) for _ in range(n)], dim=1).flatten(
                0, 1
            )
        return noise.to(images.device)

    def _module(self, block: int) -> torch.nn.Module:
        """The module whose output is the output of decoder block `block`."""
        level, layer = divmod(block, self.unet.config.layers_per_block + 1)
        up_block = self.unet.up_blocks[level]
        if layer == self.unet.config.layers_per_block:
            return up_block
        # `AttnSkipUpBlock2D` has a single attention, after its last residual layer.
        attentions = getattr(up_block, "attentions", None)
        return attentions[layer] if attentions and len(attentions) == len(up_block.resnets) else up_block.resnets[layer]

    @staticmethod
    def _tap(tapped: dict[int, torch.Tensor], block: int, stop: bool):
        def hook(module, args, output):
            tapped[block] = output[0] if isinstance(output, tuple) else output
            if stop:
                raise _LastBlockReached

        return hook

    def _check_finite(self, tapped: dict[int, torch.Tensor]) -> None:
        # One reduction per block and one synchronisation with the device; a sum is finite only if every summand is.
        sums = torch.stack(
            [tapped[b].unflatten(0, (len(self.timesteps), -1)).flatten(1).float().sum(1) for b in self.blocks]
        )
        bad = (~sums.isfinite()).nonzero().tolist()
        if bad:
            where = ", ".join(f"block {self.blocks[b]} at timestep {self.timesteps[t]}" for b, t in bad)
            raise FloatingPointError(
                f"The U-Net's activations are not finite in {where}; check the checkpoint, or use float32 or bfloat16 "
                f"if it ran in float16."
            )


def image_size(unet: UNet2DModel) -> tuple[int, int]:
    """Height and width in pixels that the U-Net was made for.

    Raises:
        ValueError: Its config has no `sample_size`.
    """
    size = unet.config.sample_size
    if size is None:
        raise ValueError("This U-Net has no `sample_size` in its config; set it to the image size or (height, width).")
    return (size, size) if isinstance(size, int) else tuple(size)


def check_image_size(unet: UNet2DModel, height: int, width: int) -> None:
    """Raises `ValueError`, naming the nearest size that works, if the U-Net cannot halve these often enough."""
    multiple = 2 ** (len(unet.config.block_out_channels) - 1)
    if height % multiple or width % multiple:
        near = " × ".join(str(max(multiple, round(x / multiple) * multiple)) for x in (height, width))
        raise ValueError(
            f"This U-Net takes sizes that are multiples of {multiple}, got {height} × {width}; the nearest is {near}."
        )
