# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoder activations of U-Nets on latents: latent diffusion, Stable Diffusion 1.x and 2.x, SDXL."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..jobs.errors import UserError
from .base import relative_blocks
from .denoiser import IP_ADAPTER, DenoiserFeatureExtractor, both_sides
from .dry_run import Place
from .pixel_unet import default_class_labels


class LatentUNetFeatureExtractor(DenoiserFeatureExtractor):
    """[`UNet2DModel`] on latents (Rombach et al., CVPR 2022); its numbers are those of [`DecoderFeatureExtractor`]."""

    component = "unet"
    patch_size = 1

    def places(self) -> list[Place]:
        # Blocks are counted by residual layers, since a U-Net may have another number of them at each level.
        found = []
        for level, up_block in enumerate(self.denoiser.up_blocks):
            layers = len(up_block.resnets)
            attentions = getattr(up_block, "attentions", None)
            kind = "attentions" if attentions is not None and len(attentions) == layers else "resnets"
            found += [Place(f"up_blocks.{level}.{kind}.{layer}") for layer in range(layers - 1)]
            found.append(Place(f"up_blocks.{level}"))
        return found

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[int, ...]:
        total = len(self.numbers)
        if of_18 is None:
            return tuple(self.up_block_outputs(range(len(self.denoiser.up_blocks))))
        return relative_blocks(of_18, total)

    def up_block_outputs(self, up_blocks: Sequence[int]) -> list[int]:
        ends, end = [], -1
        for up_block in self.denoiser.up_blocks:
            end += len(up_block.resnets)
            ends.append(end)
        for k in up_blocks:
            if not 0 <= k < len(ends):
                raise UserError(f"Up-block {k} does not exist: this U-Net has up-blocks 0 to {len(ends) - 1}.")
        return [ends[k] for k in up_blocks]

    def encode_condition(self) -> dict[str, torch.Tensor]:
        if self.prompt is not None:
            raise UserError(f"{type(self.denoiser).__name__} takes no prompt; leave it out.")
        labels = default_class_labels(self.denoiser, 1, self.device)
        return {} if labels is None else {"class_labels": labels}

    def stand_in(self) -> dict[str, torch.Tensor]:
        labels = default_class_labels(self.denoiser, 1)
        return {} if labels is None else {"class_labels": torch.zeros_like(labels)}

    def arguments(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        return {"sample": latents, "timestep": timesteps, **condition}

    def own_size(self) -> tuple[int, int]:
        height, width = both_sides(self.denoiser.config.sample_size)
        return height * self._vae_stride, width * self._vae_stride

    def check_size(self, height: int, width: int) -> None:
        multiple = self._vae_stride * 2 ** (len(self.denoiser.up_blocks) - 1)
        if height % multiple or width % multiple:
            near = " × ".join(str(max(multiple, round(x / multiple) * multiple)) for x in (height, width))
            raise UserError(
                f"This model takes sizes that are multiples of {multiple}, got {height} × {width}; the nearest is "
                f"{near}."
            )
        super().check_size(height, width)

    def token_grid(self, grid: Sequence[int], tokens: int) -> tuple[int, int]:
        height, width = grid
        while height * width > tokens and height * width > 1:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        if height * width != tokens:
            raise UserError(
                f"{tokens} tokens have no place in latents of {grid[0]} × {grid[1]}; choose another module."
            )
        return height, width


class TextUNetFeatureExtractor(LatentUNetFeatureExtractor):
    """[`UNet2DConditionModel`]: Stable Diffusion 1.x and 2.x (Rombach et al.) and SDXL (Podell et al., ICLR 2024).

    The null prompt is the empty one; of SDXL, zeros where its pipeline says `force_zeros_for_empty_prompt`. SDXL sees
    images as not cropped and of the size at which they are read.
    """

    def __init__(self, pipe: Any, *args: Any, **kwargs: Any):
        config = pipe.unet.config
        kinds = {config.addition_embed_type, config.encoder_hid_dim_type} - {None, "text_time", IP_ADAPTER}
        if kinds:
            raise UserError(
                f"This U-Net is conditioned on {' and '.join(sorted(kinds))}, which is not known here; known are those "
                f"of Stable Diffusion 1.x and 2.x, and of SDXL."
            )
        super().__init__(pipe, *args, **kwargs)

    @property
    def _is_xl(self) -> bool:
        return self.denoiser.config.addition_embed_type == "text_time"

    def check_size(self, height: int, width: int) -> None:
        # These U-Nets pass the sizes of odd maps on to their upsamplers, so that the autoencoder alone sets a limit.
        super(LatentUNetFeatureExtractor, self).check_size(height, width)

    def encode_condition(self) -> dict[str, torch.Tensor]:
        given = dict(prompt=self.prompt or "", num_images_per_prompt=1, do_classifier_free_guidance=False)
        if not self._is_xl:
            embeds = self.pipe.encode_prompt(device=self.device, **given)[0]
            return {"encoder_hidden_states": embeds, **self._guidance()}
        embeds, _, pooled, _ = self.pipe.encode_prompt(device=self.device, **given)
        if self.prompt is None and self.pipe.config.force_zeros_for_empty_prompt:
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        sizes = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=embeds.dtype, device=embeds.device)
        return {"encoder_hidden_states": embeds, "text_embeds": pooled, "time_ids": sizes, **self._guidance()}

    def _guidance(self) -> dict[str, torch.Tensor]:
        """Guidance embedding for w = 0."""
        width = self.denoiser.config.time_cond_proj_dim
        if width is None:
            return {}
        embedding = self.pipe.get_guidance_scale_embedding(torch.zeros(1), embedding_dim=width)
        return {"timestep_cond": embedding.to(self.device, self.dtype)}

    def stand_in(self) -> dict[str, torch.Tensor]:
        config = self.denoiser.config
        width = config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        made = {"encoder_hidden_states": torch.zeros(1, 77, width)}
        if self._is_xl:
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            made |= {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
        if config.time_cond_proj_dim is not None:
            made["timestep_cond"] = torch.zeros(1, config.time_cond_proj_dim)
        return made

    def arguments(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        made: dict[str, Any] = {"sample": latents, "timestep": timesteps, **condition}
        if self._is_xl:
            made["added_cond_kwargs"] = {name: made.pop(name) for name in ("text_embeds", "time_ids")}
        return made
