# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The protocol of features: what can be tapped, images in, activations out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput

from ..runs.errors import NotFiniteError, UserError


@dataclass(frozen=True)
class Tap:
    """A place in a model where activations can be read, known before anything runs (as timm's `FeatureInfo`).

    Args:
        index (`int`): Number of the block; of a U-Net, decoder blocks counted from the deepest (the paper's numbering).
        module (`str`): Name of the module whose output it is, for `model.get_submodule`.
        channels (`int`): Channels of the activation.
        stride (`int`): Pixels of the image for one of the activation, along each axis.
    """

    index: int
    module: str
    channels: int
    stride: int


@dataclass(frozen=True)
class FeatureInfo:
    """What one entry of [`Features.activations`] is, known before anything runs.

    Args:
        block (`int`): Number of the tap, [`Tap.index`].
        timestep (`int`): Diffusion timestep of the noised image; 0 for models without noise.
        channels (`int`): Channels of the activation.
        height (`int`), width (`int`): Its resolution in pixels.
    """

    block: int
    timestep: int
    channels: int
    height: int
    width: int


@dataclass
class Features(BaseOutput):
    """Output of a [`FeatureExtractor`].

    Args:
        activations (`list[torch.Tensor]`):
            One tensor `[N, channels, height, width]` per (timestep, block), at the block's own resolution and in the
            model's dtype; ordered by timestep, then by block, as the published code concatenates them.
        info (`list[FeatureInfo]`): The description of each, in the same order.
    """

    activations: list[torch.Tensor]
    info: list[FeatureInfo]


class FeatureExtractor(ABC):
    """A frozen model as a source of pixel features: a choice of its taps and, for diffusion models, of noise levels.

    A family of models is a subclass in a file of its own and a line in `features/families.py`.

    Args:
        taps (sequence of [`Tap`]): All that can be tapped.
        blocks (sequence of `int`, *optional*): Which of them to read; [`~FeatureExtractor.default_blocks`] if none.
        timesteps (sequence of `int`, *optional*): Diffusion timesteps, likewise.
        size (two `int`): Height and width in pixels at which images are read.
        in_channels (`int`): Channels of the images.
        num_timesteps (`int`, defaults to 1): Of the model's noise schedule; 1 for models without noise.

    Attributes:
        share_noise (`bool`), noise_seed (`int`): How noise is drawn; see [`DecoderFeatureExtractor`].

    Raises:
        UserError: A block or timestep does not exist, is given twice, or none is given.
    """

    share_noise: bool = True
    noise_seed: int = 0

    def __init__(
        self,
        taps: Sequence[Tap],
        blocks: Sequence[int] | None,
        timesteps: Sequence[int] | None,
        size: tuple[int, int],
        in_channels: int,
        num_timesteps: int = 1,
    ):
        self.taps, self.size, self.in_channels = list(taps), (size[0], size[1]), in_channels
        self.num_timesteps = num_timesteps
        blocks = self.default_blocks() if blocks is None else blocks
        timesteps = self.default_timesteps() if timesteps is None else timesteps
        for block in blocks:
            if not 0 <= block < len(taps):
                raise UserError(f"Block {block} does not exist: this model has blocks 0 to {len(taps) - 1}.")
        for t in timesteps:
            if not 0 <= t < num_timesteps:
                raise UserError(f"Timestep {t} does not exist: this model has timesteps 0 to {num_timesteps - 1}.")
        if not blocks or not timesteps:
            raise UserError(f"At least one block and one timestep are needed, got blocks {blocks}, steps {timesteps}.")
        if len(set(blocks)) < len(blocks) or len(set(timesteps)) < len(timesteps):
            raise UserError(f"A block or timestep is given twice: blocks {blocks}, timesteps {timesteps}.")
        self.blocks, self.timesteps = tuple(sorted(blocks)), tuple(timesteps)

    @classmethod
    @abstractmethod
    def of(cls, components: Mapping[str, Any], **choice: Any) -> "FeatureExtractor":
        """An extractor of the model that a pipeline's components hold.

        Args:
            components (mapping): By name, as `DiffusionPipeline.components`.
            **choice: `blocks`, `timesteps`, `share_noise`, `noise_seed`, `size` and `device`; what a family has no use
                for, it leaves out.
        """

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the activations."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Of the activations."""

    @abstractmethod
    def choose(
        self, blocks: Sequence[int] | None = None, timesteps: Sequence[int] | None = None, **options: Any
    ) -> "FeatureExtractor":
        """Another choice of the same model; what is not given stays as it is."""

    @abstractmethod
    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[int, ...]:
        """Blocks to read if none are given.

        Args:
            of_18 (sequence of `int`, *optional*):
                What a recipe reads of a U-Net with 18 decoder blocks, as the paper's have; the family translates it.
        """

    def default_timesteps(self, of_1000: Sequence[int] = (0,)) -> tuple[int, ...]:
        """Timesteps to read if none are given; `of_1000` is what a recipe reads in a schedule of 1,000 steps."""
        return tuple(dict.fromkeys(t * self.num_timesteps // 1000 for t in of_1000))

    def check_size(self, height: int, width: int) -> None:  # noqa: B027 (a family may take every size)
        """Refuses image sizes that the model cannot take.

        Raises:
            UserError: Names the nearest size that it takes.
        """

    def feature_info(self, height: int | None = None, width: int | None = None) -> list[FeatureInfo]:
        """Describes the activations of a `height` × `width` image without running the model.

        Args:
            height, width (`int`, *optional*): Image size in pixels; the model's own if not given.

        Returns:
            `list[FeatureInfo]`, in the order of [`Features.activations`].

        Raises:
            UserError: The model cannot take images of this size.
        """
        height, width = height or self.size[0], width or self.size[1]
        self.check_size(height, width)
        taps = [self.taps[block] for block in self.blocks]
        return [
            FeatureInfo(tap.index, t, tap.channels, height // tap.stride, width // tap.stride)
            for t in self.timesteps
            for tap in taps
        ]

    @abstractmethod
    def __call__(
        self,
        images: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Features:
        """Extracts the activations of a batch of images.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` in [-1, 1], `C` the extractor's `in_channels`.
            class_labels (`torch.Tensor`, *optional*): `[N]`, for class-conditional models.
            generator (`torch.Generator` or list of one per image, *optional*): Of noise that is drawn anew.

        Returns:
            [`Features`]

        Raises:
            UserError: The images do not fit the model.
            NotFiniteError: An activation is not finite; names its block and timestep.
        """

    def check_finite(self, features: Features) -> Features:
        """Refuses activations that are not finite, with one synchronisation of the device."""
        # A sum is finite only if every summand is.
        sums = torch.stack([a.float().sum() for a in features.activations])
        bad = (~sums.isfinite()).nonzero().flatten().tolist()
        if bad:
            where = ", ".join(f"block {features.info[i].block} at timestep {features.info[i].timestep}" for i in bad)
            raise NotFiniteError(
                f"The model's activations are not finite in {where}; check the checkpoint, or use float32 or bfloat16 "
                f"if it ran in float16."
            )
        return features
