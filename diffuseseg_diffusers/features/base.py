# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The protocol of features: what can be tapped, images in, activations out."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from diffusers import DDPMScheduler
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from ..jobs.errors import NotFiniteError, UserError
from .dry_run import hooked
from .filters import check_sigmas, filter_bank, filter_channels
from .noise import PAPER_TIMESTEPS, BetaSchedule, NoiseSchedule


Block: TypeAlias = int | str  # what a block is called: its number, or the name of a module
FILTERS = "filters"  # the block that filters of the images stand for
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class Tap:
    """A place in a model where activations can be read, known before anything runs (as timm's `FeatureInfo`).

    Args:
        index (`int` or `str`):
            Number of the block: of a U-Net, decoder blocks counted from the deepest (the paper's numbering), of a
            transformer, its blocks counted from the first. Or the name of a module.
        module (`str`): Name of the module whose output it is, for `model.get_submodule`.
        channels (`int`): Channels of the activation.
        stride (`int`): Pixels of the image for one of the activation, along each axis.
        of_input (`bool`, defaults to `False`): Whether it is the input of the module instead.
        share (`float`, *optional*): Fraction of forward FLOPs before the tap, if known.
    """

    index: int | str
    module: str
    channels: int
    stride: int
    of_input: bool = False
    share: float | None = None


@dataclass(frozen=True)
class FeatureInfo:
    """Describes one entry of [`Features.activations`] before anything runs.

    Args:
        block (`int` or `str`): Number or name of the tap, [`Tap.index`]; `"filters"` for those of [`filter_bank`].
        timestep (`int`): Diffusion timestep of the noised image; 0 for models without noise, and for filters.
        channels (`int`), height (`int`), width (`int`): Shape of the activation.
    """

    block: int | str
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
            model's dtype; ordered by timestep, then by block, as the published code concatenates them. Filters of the
            images, if the extractor gives them, are the last.
        info (`list[FeatureInfo]`): The description of each, in the same order.
    """

    activations: list[torch.Tensor]
    info: list[FeatureInfo]


class LastTapReached(Exception):
    """Ends a forward pass at the last tap."""


class FeatureExtractor(ABC):
    """A frozen model as a source of pixel features: a choice of its taps and, for diffusion models, of noise levels.

    A family of models is a subclass in a file of its own and a line in `features/families.py`. Its constructor sets
    `model`, `origin` and `settings`.

    Args:
        taps (sequence of [`Tap`]): All that can be tapped.
        blocks (sequence of `int` or `str`, *optional*): Which of them to read, by number or name;
            [`~FeatureExtractor.default_blocks`] if none.
        timesteps (sequence of `int`, *optional*): Diffusion timesteps, likewise.
        size (two `int`): Height and width in pixels at which images are read.
        in_channels (`int`): Channels of the images.
        schedule ([`NoiseSchedule`], *optional*): How images are noised; none for models without noise, which know
            timestep 0 alone.

    Attributes:
        model (`torch.nn.Module`): Whose activations are read.
        origin (`tuple`), settings (`dict`): Arguments of the constructor before and after `blocks` and `timesteps`.
        share_noise (`bool`), noise_seed (`int`): How noise is drawn; see [`DecoderFeatureExtractor`].
        clean (`bool`): Whether images are read without noise: the model sees the mean of the noised ones, and the
            timesteps as usual.
        prompt (`str`, *optional*): What conditions the model; the family's null prompt if none.
        filters (`tuple[float]`, *optional*): Scales of the filters that it gives too, see [`filter_bank`].
        numbers (`list[int]`): Of the taps that have one.

    Raises:
        UserError: A block or timestep does not exist, is given twice, or none is given.
    """

    model: Any
    origin: tuple
    settings: dict[str, Any]
    share_noise: bool = True
    noise_seed: int = 0
    clean: bool = False
    prompt: str | None = None
    filters: tuple[float, ...] | None = None
    _shapes: Mapping[Any, Sequence[int]] | None = None  # of activations, `[N,c,h,w]`, where strides do not tell them

    def __init__(
        self,
        taps: Sequence[Tap],
        blocks: Sequence[Block] | None,
        timesteps: Sequence[int] | None,
        size: tuple[int, int],
        in_channels: int,
        schedule: NoiseSchedule | None = None,
    ):
        self.taps, self.size = list(taps), (size[0], size[1])
        self.in_channels, self.schedule = in_channels, schedule
        self._by_index = {tap.index: tap for tap in taps}
        self.numbers = [i for i in self._by_index if isinstance(i, int)]
        blocks = self.default_blocks() if blocks is None else blocks
        timesteps = self.default_timesteps() if timesteps is None else timesteps
        for block in blocks:
            if block not in self._by_index:
                raise UserError(f"Block {block} does not exist: this model has blocks 0 to {len(self.numbers) - 1}.")
        low, high = (schedule.lowest, schedule.highest) if schedule else (0, 0)
        for t in timesteps:
            if not low <= t <= high and not self.sees_noise:
                raise UserError(f"This model sees no noise and knows timestep {low} alone, got {t}; leave them out.")
            if not low <= t <= high:
                raise UserError(f"Timestep {t} does not exist: this model has timesteps {low} to {high}.")
        if not blocks or not timesteps:
            raise UserError(f"At least one block and one timestep are needed, got blocks {blocks}, steps {timesteps}.")
        if len(set(blocks)) < len(blocks) or len(set(timesteps)) < len(timesteps):
            raise UserError(f"A block or timestep is given twice: blocks {blocks}, timesteps {timesteps}.")
        self.blocks, self.timesteps = ordered(blocks), tuple(timesteps)

    @classmethod
    @abstractmethod
    def of(cls, pipe: Any, **choice: Any) -> "FeatureExtractor":
        """An extractor of the model that a pipeline holds.

        Args:
            pipe (`DiffusionPipeline`): With the components that tell the family.
            **choice: `blocks`, `timesteps`, `share_noise`, `noise_seed`, `clean`, `size`, `prompt` and `device`;
                families ignore what they do not use.

        Raises:
            UserError: A prompt was given to a model that knows none, or the model cannot be read.
        """

    @property
    def sees_noise(self) -> bool:
        """Whether the model knows noise levels at all: vision models and distilled denoisers do not."""
        return self.schedule is not None and self.schedule.lowest < self.schedule.highest

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Of the activations."""
        return self.settings["device"] or self.model.device

    def choose(
        self, blocks: Sequence[Block] | None = None, timesteps: Sequence[int] | None = None, **options: Any
    ) -> "FeatureExtractor":
        """A copy with other blocks or timesteps; `None` keeps the current choice.

        The options are `up_blocks`, of a U-Net, in place of `blocks`; `filters`, see
        [`~FeatureExtractor.with_filters`]; and those of the constructor.
        """
        filters = options.pop("filters", self.filters)
        if (up_blocks := options.pop("up_blocks", None)) is not None:
            blocks = self.up_block_outputs(up_blocks)
        blocks = self.blocks if blocks is None else blocks
        timesteps = self.timesteps if timesteps is None else timesteps
        family: Any = type(self)
        alone = bool(filters) and not blocks
        made = family(*self.origin, *((None, None) if alone else (blocks, timesteps)), **{**self.settings, **options})
        return made.with_filters(filters, alone)

    def with_filters(self, filters: Sequence[float] | None, alone: bool = False) -> "FeatureExtractor":
        """A copy that gives filters of the images too, at these scales, or with `alone` nothing else.

        With filters alone the model does not run, and there are no blocks and no timesteps.
        """
        check_sigmas(filters)
        made = copy.copy(self)
        made.filters = tuple(filters) if filters else None
        if alone:
            made.blocks = made.timesteps = ()
        return made

    def up_block_outputs(self, up_blocks: Sequence[int]) -> tuple[int, ...]:
        """Numbers of the outputs of whole up-blocks; raises for models that have none."""
        raise UserError(f"{type(self.model).__name__} has no up-blocks; give `blocks`.")

    @abstractmethod
    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[Block, ...]:
        """Blocks to read if none are given; `of_18` are those that a recipe reads of the paper's 18 decoder blocks."""

    def default_timesteps(self, of_1000: Sequence[int] = PAPER_TIMESTEPS) -> tuple[int, ...]:
        """Timesteps to read if none are given: those with the same noise-to-signal ratios as `of_1000`.

        These are what a recipe reads of the paper's linear schedule of 1,000 steps.
        """
        if self.schedule is None:
            return (0,)
        paper = BetaSchedule(DDPMScheduler())
        return tuple(dict.fromkeys(self.schedule.timestep(paper.ratio(t)) for t in of_1000))

    def check_size(self, height: int, width: int) -> None:
        """Raises [`UserError`], with the nearest size that works, for image sizes that the model cannot take."""
        if (height, width) != self.size:
            raise UserError(f"This extractor reads images of {self.size[0]} × {self.size[1]}, got {height} × {width}.")

    def shares(self) -> dict[Block, float | None]:
        """Fraction of forward FLOPs before each tap; `None` if unknown."""
        return {tap.index: tap.share for tap in self.taps}

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
        shapes = {}
        for block in self.blocks:
            tap = self._by_index[block]
            strided = (tap.channels, height // tap.stride, width // tap.stride)
            shapes[block] = strided if self._shapes is None else self._shapes[block][1:]
        info = [FeatureInfo(block, t, *shapes[block]) for t in self.timesteps for block in self.blocks]
        if self.filters:
            info.append(FeatureInfo(FILTERS, 0, filter_channels(self.in_channels, self.filters), height, width))
        return info

    @torch.no_grad()
    def __call__(
        self, images: torch.Tensor, class_labels: torch.Tensor | None = None, generator: Generators = None
    ) -> Features:
        """Extracts the activations of a batch of images, and their filters, if it gives them.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` in [-1, 1], `C` the extractor's `in_channels`.
            class_labels (`torch.Tensor`, *optional*): `[N]`, for class-conditional U-Nets on pixels; class 0 if not
                given.
            generator (`torch.Generator` or list of one per image, *optional*): Of the noise with `share_noise=False`;
                images are drawn one after another, so the batch size does not change what an image gets.

        Returns:
            [`Features`]

        Raises:
            UserError: The images do not fit the model.
            NotFiniteError: An activation is not finite; names its block and timestep.
        """
        _, c, height, width = images.shape
        if c != self.in_channels:
            raise UserError(f"The images have {c} channels, but the model takes {self.in_channels}.")
        info = self.feature_info(height, width)
        activations = self.run(images, class_labels, generator) if self.blocks else []
        return self.check_finite(Features(activations=[*activations, *self.filtered(images)], info=info))

    @abstractmethod
    def run(
        self, images: torch.Tensor, class_labels: torch.Tensor | None = None, generator: Generators = None
    ) -> list[torch.Tensor]:
        """Runs the model on images that fit it; returns the activations in their order, without filters."""

    def filtered(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The entry of [`Features.activations`] with filters of images `[N, C, H, W]`; none if it gives none."""
        return [filter_bank(images.to(self.device), self.filters).to(self.dtype)] if self.filters else []

    def _noised_pass(
        self,
        samples: torch.Tensor,
        generator: Generators,
        call: Callable[[torch.Tensor, torch.Tensor], Any],
        last: Block,
    ) -> list[torch.Tensor]:
        """Noises samples `[N, C, H, W]` to every timestep and runs the model once, up to block `last`.

        `call(noisy, timesteps)` runs it on `[T*N, C, H, W]` and `[T*N]`; entry t * N + i is sample i at timestep t.
        """
        n, steps = len(samples), len(self.timesteps)
        noise = self.draw_noise(samples, generator)  # [T*N,C,H,W]
        timesteps = torch.tensor(self.timesteps, device=self.device).repeat_interleave(n)  # [T*N]
        noisy = self.schedule.add_noise(samples.repeat(steps, 1, 1, 1), noise, timesteps).to(self.dtype)  # [T*N,C,H,W]
        was_training = self.model.training
        self.model.eval()
        try:
            with self.reading(stop_at=last) as seen:
                call(noisy, timesteps)
        except LastTapReached:
            pass
        finally:
            self.model.train(was_training)
        # Timestep-major, as in the published code.
        maps = {block: self.as_map(out, samples.shape[-2:]).unflatten(0, (steps, n)) for block, out in seen.items()}
        return [maps[block][step] for step in range(steps) for block in self.blocks]

    def as_map(self, output: Any, grid: Sequence[int]) -> torch.Tensor:
        """What a tap sees as a map `[N, channels, h, w]`, if the model takes samples of `grid`, height and width."""
        return output[0] if isinstance(output, tuple) else output

    def draw_noise(self, images: torch.Tensor, generator: Generators) -> torch.Tensor:
        """The noise of a batch `[N, C, H, W]`: `[T*N, C, H, W]` for `T` timesteps, on the device of the images."""
        n, *shape = images.shape
        steps = len(self.timesteps)
        if self.clean:
            return torch.zeros(1, *shape, device=images.device).expand(steps * n, *shape)
        if self.share_noise:
            seeded = torch.Generator().manual_seed(self.noise_seed)
            return torch.randn(1, *shape, generator=seeded).expand(steps * n, *shape).to(images.device)
        own = list(generator) if isinstance(generator, (list, tuple)) else [generator] * n
        if len(own) != n:
            raise UserError(f"{len(own)} generators were given for {n} images; give one, or one for each image.")
        drawn = [randn_tensor((steps, *shape), generator=g, device=images.device) for g in own]
        return torch.stack(drawn, dim=1).flatten(0, 1)

    def check_noised(self) -> None:
        """Raises [`UserError`] if the model reads clean images, so that passes of sampling do not do."""
        if self.clean and self.blocks:
            raise UserError(
                "Masks while sampling are read off noisy images, and this head was fitted on clean ones; leave that "
                "out, or fit with --noise shared (`clean=False`)."
            )

    @contextmanager
    def reading(self, stop_at: Block | None = None) -> Iterator[dict[Block, Any]]:
        """Hooks the taps; yields `{block: output}`, filled by every forward pass within the context.

        The pass ends behind block `stop_at`, if given, with [`LastTapReached`], which the caller has to catch.
        """
        seen: dict[Block, Any] = {}

        def see(block: Block, output: Any) -> None:
            seen[block] = output
            if block == stop_at:
                raise LastTapReached

        with hooked(self.model, {block: self._by_index[block] for block in self.blocks}, see):
            yield seen

    def check_finite(self, features: Features) -> Features:
        """Raises for non-finite activations, with a single device synchronisation."""
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


def check_multiple(height: int, width: int, multiple: int) -> None:
    """Raises [`UserError`], naming the nearest size that works, unless both are multiples."""
    if height % multiple or width % multiple:
        near = " × ".join(str(max(multiple, round(x / multiple) * multiple)) for x in (height, width))
        raise UserError(
            f"This model takes sizes that are multiples of {multiple}, got {height} × {width}; the nearest is {near}."
        )


def refuse_prompt(model: Any, prompt: str | None) -> None:
    """Raises [`UserError`] if a prompt is given to a model that takes none."""
    if prompt is not None:
        raise UserError(f"{type(model).__name__} takes no prompt; leave it out.")


def both_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of a size in a config."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def relative_blocks(of_18: Iterable[int], total: int) -> tuple[int, ...]:
    """Decoder blocks, of `total`, at the same relative depth as some of the paper's 18.

    Where a block of the paper falls between two, both are read: the one in which its middle lies, and the nearest by
    number. 6, 7, 12, 15 of 18 are 4, 5, 8, 10 of 12, and 2, 3, 5, 6, 7 of 8.
    """
    found = {where for b in of_18 for where in (int((b + 0.5) * total / 18), round(b * total / 18))}
    return tuple(sorted({min(where, total - 1) for where in found}))


def ordered(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """Numbers ascending, then names: the order in which features are concatenated."""
    return tuple(sorted(blocks, key=lambda block: (isinstance(block, str), block)))
