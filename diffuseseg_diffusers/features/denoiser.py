# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of any frozen latent denoiser of diffusers; each family states how its denoiser is called."""

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from ..jobs.errors import UserError
from .base import Block, FeatureExtractor, Generators, Tap, both_sides, check_multiple
from .dry_run import ATTENTION_MAP, Place, dry_run
from .latents import encode_latents, latent_stride
from .noise import noise_schedule
from .weights import state_of


Condition: TypeAlias = dict[str, torch.Tensor]  # what conditions a pass, by the name of the denoiser's argument

# What is known of each denoiser: its taps by size; its conditioning by prompt and size, with the state of the encoders.
_DESCRIBED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_CONDITIONS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
IP_ADAPTER = "ip_image_proj"  # in the config of denoisers that see an image through one


class DenoiserFeatureExtractor(FeatureExtractor):
    """Activations of a denoiser for noised latents of images, in one batched pass that ends early.

    A family is a subclass that says which places have numbers, what conditions the denoiser, and how it is called; all
    else is here. Nothing of the pipeline is changed.

    Args:
        pipe (`DiffusionPipeline`): With the denoiser, its autoencoder, scheduler and text encoders.
        blocks (sequence of `int` or `str`, *optional*):
            Numbers of blocks, or names of modules as in `model.named_modules()`, such as
            `up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q`; with `.attention_map` behind that of a
            cross-attention, how much each place attends to each token of the prompt.
        timesteps (sequence of `int`, *optional*): Of the model's own schedule; see [`NoiseSchedule`].
        share_noise (`bool`, defaults to `True`), noise_seed (`int`, defaults to 0), clean (`bool`, defaults to
            `False`): As in [`DecoderFeatureExtractor`].
        size (two `int`, *optional*), device (`torch.device`, *optional*): As there.
        prompt (`str`, *optional*): What conditions the denoiser; the model's null prompt if not given.

    Raises:
        UserError: The pipeline has no autoencoder that fits the denoiser; a block, timestep or size does not exist.
    """

    component = "transformer"  # name of the denoiser in the pipeline
    attention = "attn1"  # name of the layer in a transformer block whose input is tapped: normalised and modulated
    conditional_first = False  # which half of a batch under classifier-free guidance has the prompt

    def __init__(
        self,
        pipe: Any,
        blocks: Sequence[Block] | None = None,
        timesteps: Sequence[int] | None = None,
        share_noise: bool = True,
        noise_seed: int = 0,
        clean: bool = False,
        size: tuple[int, int] | None = None,
        prompt: str | None = None,
        device: torch.device | None = None,
    ):
        self.pipe, self.origin = pipe, (pipe,)
        self.settings = dict(share_noise=share_noise, noise_seed=noise_seed, clean=clean, size=size, prompt=prompt)
        self.settings["device"] = device
        self.share_noise, self.noise_seed, self.clean, self.prompt = share_noise, noise_seed, clean, prompt
        self.vae = getattr(pipe, "vae", None) or pipe.vqvae
        denoiser = getattr(pipe, self.component)
        self.model = getattr(denoiser, "_orig_mod", denoiser)  # hooks and an early end would break compiled graphs
        hidden = getattr(self.model.config, "encoder_hid_dim_type", None)
        if hidden == IP_ADAPTER or getattr(self.model, "image_proj", None) is not None:
            raise UserError(
                "This pipeline has an IP-Adapter, which conditions it on an image; call `unload_ip_adapter()` first."
            )
        self._vae_stride = latent_stride(self.vae)
        if self.vae.config.latent_channels != self.latent_channels:
            raise UserError(
                f"The denoiser takes {self.latent_channels} channels of latents, but the autoencoder gives "
                f"{self.vae.config.latent_channels}; models of inpainting and of editing are not known here."
            )
        height, width = size or self.own_size()
        self.size = (height, width)
        self.check_size(height, width)
        taps = self._described(tuple(b for b in blocks or () if isinstance(b, str)))
        channels = self.vae.config.in_channels
        super().__init__(taps, blocks, timesteps, self.size, channels, noise_schedule(pipe.scheduler))

    # What a family says.

    def places(self) -> list[Place]:
        """Of the blocks that have numbers, in their order."""
        depth = len(self.model.transformer_blocks)
        return [Place(f"transformer_blocks.{i}.{self.attention}", True) for i in range(depth)]

    @abstractmethod
    def encode_condition(self) -> Condition:
        """Conditioning of every pass from the pipeline's text encoders: tensors `[1, ...]` by name."""

    @abstractmethod
    def stand_in(self) -> Condition:
        """Tensors of the shapes of [`~DenoiserFeatureExtractor.encode_condition`], by the configs alone."""

    def arguments(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> dict[str, Any]:
        """The arguments of the denoiser, as its pipeline gives them.

        Args:
            latents (`torch.Tensor`): `[N, C, h, w]`, noised.
            timesteps (`torch.Tensor`): `[N]`, of the schedule.
            condition (`dict`): Of [`~DenoiserFeatureExtractor.encode_condition`], `[N, ...]`.
        """
        return {"hidden_states": latents, "timestep": timesteps, **condition}

    def own_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was made for."""
        height, width = both_sides(self.model.config.sample_size)
        return height * self._vae_stride, width * self._vae_stride

    @property
    def latent_channels(self) -> int:
        """Channels of the latents that the denoiser takes."""
        return self.model.config.in_channels

    @property
    def patch_size(self) -> int:
        """Pixels of the latents for a token, along each axis; 1 for U-Nets."""
        return self.model.config.patch_size

    def latent_multiple(self) -> int:
        """What height and width of the latents are multiples of."""
        return self.patch_size

    # What all share.

    @classmethod
    def of(cls, pipe: Any, **choice: Any) -> "DenoiserFeatureExtractor":
        return cls(pipe, **choice)

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[Block, ...]:
        """Of a transformer the blocks at a third, a half and two thirds of its depth, whatever the recipe."""
        return tuple(sorted({round(len(self.numbers) * part) for part in (1 / 3, 1 / 2, 2 / 3)}))

    def check_size(self, height: int, width: int) -> None:
        check_multiple(height, width, self._vae_stride * self.latent_multiple())
        super().check_size(height, width)

    def run(
        self, images: torch.Tensor, class_labels: torch.Tensor | None = None, generator: Generators = None
    ) -> list[torch.Tensor]:
        total = len(self.timesteps) * len(images)
        latents = encode_latents(self.vae, images.to(self.device, torch.float32))  # [N,c,h,w]
        condition = {}
        for name, value in self.condition().items():  # all but ids and masks in the denoiser's precision
            value = value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)
            condition[name] = value.expand(total, *value.shape[1:])

        def call(noisy: torch.Tensor, timesteps: torch.Tensor) -> None:
            self.model(**self.arguments(noisy, timesteps, condition), return_dict=False)

        last = max(self.blocks, key=lambda block: (self._order[block], str(block)))
        return self._noised_pass(latents, generator, call, last)

    @torch.no_grad()  # with gradients, attention takes other kernels, which round differently in bfloat16
    def condition(self) -> Condition:
        """What conditions every pass, `[1, ...]` by name.

        Encoded once, so that text encoders can be freed then, and anew when a text encoder or tokenizer is another one
        or its weights or adapters changed.
        """
        known, key = _CONDITIONS.setdefault(self.model, {}), (self.prompt, self.size)
        encoders = {n: c for n, c in self.pipe.components.items() if n.startswith(("text_encoder", "tokenizer"))}
        state = {
            name: state_of(part) if name.startswith("text_encoder") else (weakref.ref(part), len(part))
            for name, part in encoders.items()
            if part is not None
        }
        made, by = known.get(key, (None, {}))
        if made is None or any(by.get(name) != own for name, own in state.items()):
            try:
                made = self.encode_condition()
            except (AttributeError, TypeError) as error:
                gone = [name for name, part in encoders.items() if name.startswith("text_encoder") and part is None]
                if not gone:
                    raise
                raise UserError(
                    f"The pipeline has no {' and no '.join(gone)} to encode the prompt {self.prompt or ''!r}; load it "
                    f"with its text encoders, and free them after the first use."
                ) from error
            known[key] = made, state
        return made

    def as_map(self, output: Any, grid: Sequence[int]) -> torch.Tensor:
        """What a tap sees as a map `[N, channels, h, w]`: itself, or the tokens of the image in their places."""
        if isinstance(output, tuple):  # its last tensor with an axis of tokens is the image's stream
            output = [x for x in output if isinstance(x, torch.Tensor) and x.ndim >= 3][-1]
        if output.ndim == 4:
            return output
        height, width = self.token_grid(grid, output.shape[1])
        return output[:, -height * width :].mT.unflatten(2, (height, width))  # text, where there is any, stands first

    def token_grid(self, grid: Sequence[int], tokens: int) -> tuple[int, int]:
        """Height and width of the image among so many tokens; raises [`UserError`] if they are not the image's."""
        height, width = (side // self.patch_size for side in grid)
        if tokens < height * width:
            raise UserError(f"{tokens} tokens have no place in an image of {height} × {width}; choose another module.")
        return height, width

    def latent_grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the latents of an image."""
        return height // self._vae_stride, width // self._vae_stride

    def timestep_of(self, args: tuple, kwargs: dict[str, Any]) -> float:
        """The schedule's timestep in what a pipeline calls its denoiser with: the reverse of `arguments`."""
        given = kwargs["timestep"] if "timestep" in kwargs else args[1]
        return float(torch.as_tensor(given).flatten()[0])

    def _described(self, names: tuple[str, ...]) -> list[Tap]:
        """All numbered taps and those of the given names, by a dry run."""
        maps = [name for name in names if name.endswith(ATTENTION_MAP)]
        if maps and not self.prompt:
            raise UserError(f"{maps[0]} tells where the words of a prompt are; give --prompt (`prompt` in Python).")
        known, key = _DESCRIBED.setdefault(self.model, {}), (type(self), self.size, names)
        if key not in known:
            known[key] = self._describe(names)
        taps, self._shapes, self._order = known[key]
        return taps

    @torch.no_grad()
    def _describe(self, names: tuple[str, ...]) -> tuple[list[Tap], dict, dict]:
        places: dict[Block, Place] = {**dict(enumerate(self.places())), **{name: Place(name) for name in names}}
        modules = dict(self.model.named_modules())
        for name in names:
            if name.removesuffix(ATTENTION_MAP) not in modules:
                raise UserError(f"{type(self.model).__name__} has no module {name!r}; `diffuseseg taps` lists some.")
        grid = self.latent_grid(*self.size)

        def arguments() -> dict[str, Any]:
            latents, timesteps = torch.zeros(1, self.latent_channels, *grid), torch.zeros(1, dtype=torch.long)
            return self.arguments(latents, timesteps, {k: v.to("meta") for k, v in self.stand_in().items()})

        seen = dry_run(self.model, places, arguments)
        for index in places.keys() - seen.keys():
            raise UserError(f"A pass of {type(self.model).__name__} does not run {places[index].module}.")
        shapes = {index: self.as_map(sighting.output, grid).shape for index, sighting in seen.items()}
        taps = [
            Tap(i, p.module, shapes[i][1], self.size[0] // shapes[i][2], p.of_input, seen[i].share)
            for i, p in places.items()
        ]
        return taps, shapes, {index: order for order, index in enumerate(seen)}
