# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of transformers that attend to text and image together: Stable Diffusion 3 and 3.5, and Flux.

Esser et al., "Scaling Rectified Flow Transformers" (ICML 2024); Black Forest Labs, FLUX.1 (2024).
"""

from typing import Any

import torch

from ..jobs.errors import UserError
from .denoiser import Condition, DenoiserFeatureExtractor
from .dry_run import Place


class SD3FeatureExtractor(DenoiserFeatureExtractor):
    """[`SD3Transformer2DModel`]; block `i` is what the image's attention reads: normalised and modulated."""

    attention = "attn"

    def encode_condition(self) -> Condition:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            self.prompt or "", None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def stand_in(self) -> Condition:
        config = self.model.config
        return {
            "encoder_hidden_states": torch.zeros(1, 333, config.joint_attention_dim),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
        }

    def check_size(self, height: int, width: int) -> None:
        super().check_size(height, width)
        limit = self.model.config.pos_embed_max_size * self.patch_size * self._vae_stride
        if max(height, width) > limit:
            near = " × ".join(str(min(x, limit)) for x in (height, width))
            raise UserError(f"This model takes up to {limit} pixels a side, got {height} × {width}; give {near}.")


class FluxFeatureExtractor(DenoiserFeatureExtractor):
    """[`FluxTransformer2DModel`]; blocks of two streams are counted first, then those of one.

    Block `i` is what the image's attention reads: normalised and modulated. Guidance-distilled models get the
    pipeline's default guidance scale, 3.5.
    """

    attention = "attn"
    patch_size = 2  # packed before the denoiser sees the latents

    @property
    def latent_channels(self) -> int:
        return self.model.config.in_channels // 4

    def places(self) -> list[Place]:
        single = range(len(self.model.single_transformer_blocks))
        return [*super().places(), *(Place(f"single_transformer_blocks.{i}.attn", True) for i in single)]

    def encode_condition(self) -> Condition:
        embeds, pooled, _ = self.pipe.encode_prompt(self.prompt or "", None, device=self.device)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def stand_in(self) -> Condition:
        config = self.model.config
        return {
            "encoder_hidden_states": torch.zeros(1, 512, config.joint_attention_dim),
            "pooled_projections": torch.zeros(1, config.pooled_projection_dim),
        }

    def arguments(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> dict[str, Any]:
        n, c, height, width = latents.shape
        packed = latents.view(n, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)  # [N,h/2,w/2,C,2,2]
        places = torch.zeros(height // 2, width // 2, 3, device=latents.device, dtype=latents.dtype)
        places[..., 1] = torch.arange(height // 2, device=latents.device)[:, None]
        places[..., 2] = torch.arange(width // 2, device=latents.device)[None, :]
        text = condition["encoder_hidden_states"]
        made = {
            "hidden_states": packed.reshape(n, -1, 4 * c),  # [N,h/2*w/2,4C]
            "timestep": timesteps.to(latents.dtype) / 1000,
            "img_ids": places.view(-1, 3),
            "txt_ids": torch.zeros(text.shape[1], 3, device=text.device, dtype=text.dtype),
            **condition,
        }
        if self.model.config.guidance_embeds:
            made["guidance"] = torch.full((n,), 3.5, device=latents.device, dtype=torch.float32)
        return made

    def timestep_of(self, args: tuple, kwargs: dict[str, Any]) -> float:
        return 1000 * super().timestep_of(args, kwargs)

    def own_size(self) -> tuple[int, int]:
        side = self.pipe.default_sample_size * self._vae_stride
        return side, side
