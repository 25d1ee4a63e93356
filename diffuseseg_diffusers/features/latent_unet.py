# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decoder activations of U-Nets on latents: latent diffusion, Stable Diffusion 1.x and 2.x, SDXL."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..jobs.errors import UserError
from .base import Block, refuse_prompt, relative_blocks
from .denoiser import IP_ADAPTER, Condition, DenoiserFeatureExtractor
from .dry_run import Place
from .pixel_unet import decoder_places, default_class_labels, up_block_outputs


# What tells most in U-Nets of the shapes of Stable Diffusion 1.x and 2.x, and of SDXL, by Meng et al., "Not All
# Diffusion Model Activations Have Been Evaluated as Discriminative Features" (NeurIPS 2024): queries and keys of
# attention beside outputs.
STABLE_DIFFUSION_TAPS = (
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_q",
    "up_blocks.1.resnets.2",
    "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_q",
    "up_blocks.3.attentions.0.transformer_blocks.0.attn1.to_k",
)
SDXL_TAPS = (
    "up_blocks.0.attentions.0.transformer_blocks.5",
    "up_blocks.0.attentions.0.transformer_blocks.7",
    "up_blocks.1.attentions.0.transformer_blocks.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q",
)


class LatentUNetFeatureExtractor(DenoiserFeatureExtractor):
    """[`UNet2DModel`] on latents (Rombach et al., CVPR 2022); its numbers are those of [`DecoderFeatureExtractor`]."""

    component = "unet"
    patch_size = 1

    def places(self) -> list[Place]:
        return decoder_places(self.model)

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[Block, ...]:
        return up_block_outputs(self.model) if of_18 is None else relative_blocks(of_18, len(self.numbers))

    def up_block_outputs(self, up_blocks: Sequence[int]) -> tuple[int, ...]:
        return up_block_outputs(self.model, up_blocks)

    def encode_condition(self) -> Condition:
        refuse_prompt(self.model, self.prompt)
        labels = default_class_labels(self.model, 1, self.device)
        return {} if labels is None else {"class_labels": labels}

    def stand_in(self) -> Condition:
        labels = default_class_labels(self.model, 1)
        return {} if labels is None else {"class_labels": torch.zeros_like(labels)}

    def arguments(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> dict[str, Any]:
        return {"sample": latents, "timestep": timesteps, **condition}

    def latent_multiple(self) -> int:
        return 2 ** (len(self.model.up_blocks) - 1)

    def token_grid(self, grid: Sequence[int], tokens: int) -> tuple[int, int]:
        height, width = grid
        while height * width > tokens and height * width > 1:
            height, width = math.ceil(height / 2), math.ceil(width / 2)
        if height * width != tokens:
            raise UserError(f"{tokens} tokens have no place in latents of {grid[0]} × {grid[1]}; take another module.")
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
        return self.model.config.addition_embed_type == "text_time"

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[Block, ...]:
        published, modules = SDXL_TAPS if self._is_xl else STABLE_DIFFUSION_TAPS, dict(self.model.named_modules())
        if of_18 is not None and all(name in modules for name in published):
            return published
        return super().default_blocks(of_18)

    def latent_multiple(self) -> int:
        return 1  # these U-Nets pass the sizes of odd maps on to their upsamplers

    def encode_condition(self) -> Condition:
        given = dict(prompt=self.prompt or "", num_images_per_prompt=1, do_classifier_free_guidance=False)
        if not self._is_xl:
            embeds = self.pipe.encode_prompt(device=self.device, **given)[0]
            return {"encoder_hidden_states": embeds, **self._guidance()}
        embeds, _, pooled, _ = self.pipe.encode_prompt(device=self.device, **given)
        if self.prompt is None and self.pipe.config.force_zeros_for_empty_prompt:
            embeds, pooled = torch.zeros_like(embeds), torch.zeros_like(pooled)
        sizes = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=embeds.dtype, device=embeds.device)
        return {"encoder_hidden_states": embeds, "text_embeds": pooled, "time_ids": sizes, **self._guidance()}

    def _guidance(self) -> Condition:
        """Guidance embedding for w = 0."""
        width = self.model.config.time_cond_proj_dim
        if width is None:
            return {}
        embedding = self.pipe.get_guidance_scale_embedding(torch.zeros(1), embedding_dim=width)
        return {"timestep_cond": embedding.to(self.device, self.dtype)}

    def stand_in(self) -> Condition:
        config = self.model.config
        width = config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        made = {"encoder_hidden_states": torch.zeros(1, 77, width)}
        if self._is_xl:
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            made |= {"text_embeds": torch.zeros(1, pooled), "time_ids": torch.zeros(1, 6)}
        if config.time_cond_proj_dim is not None:
            made["timestep_cond"] = torch.zeros(1, config.time_cond_proj_dim)
        return made

    def arguments(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> dict[str, Any]:
        made: dict[str, Any] = {"sample": latents, "timestep": timesteps, **condition}
        if self._is_xl:
            made["added_cond_kwargs"] = {name: made.pop(name) for name in ("text_embeds", "time_ids")}
        return made
