# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of transformers with cross-attention to text: PixArt-α and -Σ, Sana.

Chen et al., "PixArt-α" (ICLR 2024) and "PixArt-Σ" (ECCV 2024); Xie et al., "Sana" (ICLR 2025).
"""

from typing import Any

import torch

from .denoiser import DenoiserFeatureExtractor, both_sides
from .dry_run import Place


class PixArtFeatureExtractor(DenoiserFeatureExtractor):
    """[`PixArtTransformer2DModel`]; block `i` is what its self-attention reads: normalised and modulated.

    The null prompt is the empty one. Models that know the size of images are told the one at which they are read.
    """

    def places(self) -> list[Place]:
        return [Place(f"transformer_blocks.{i}.attn1", True) for i in range(len(self.denoiser.transformer_blocks))]

    def encode_condition(self) -> dict[str, torch.Tensor]:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            self.prompt or "", do_classifier_free_guidance=False, num_images_per_prompt=1, device=self.device
        )
        made = {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}
        if self._knows_size:
            height, width = self.size
            made["resolution"] = torch.tensor([[height, width]], dtype=embeds.dtype, device=embeds.device)
            made["aspect_ratio"] = torch.tensor([[height / width]], dtype=embeds.dtype, device=embeds.device)
        return made

    @property
    def _knows_size(self) -> bool:
        return self.denoiser.config.sample_size == 128  # as its pipeline tells it

    def stand_in(self) -> dict[str, torch.Tensor]:
        made = {
            "encoder_hidden_states": torch.zeros(1, 120, self.denoiser.config.caption_channels),
            "encoder_attention_mask": torch.ones(1, 120),
        }
        if self._knows_size:
            made |= {"resolution": torch.zeros(1, 2), "aspect_ratio": torch.zeros(1, 1)}
        return made

    def arguments(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        known = {name: condition.get(name) for name in ("resolution", "aspect_ratio")}
        text = {name: condition[name] for name in ("encoder_hidden_states", "encoder_attention_mask")}
        return {"hidden_states": latents, "timestep": timesteps, **text, "added_cond_kwargs": known}

    def own_size(self) -> tuple[int, int]:
        height, width = both_sides(self.denoiser.config.sample_size)
        return height * self._vae_stride, width * self._vae_stride


class SanaFeatureExtractor(PixArtFeatureExtractor):
    """[`SanaTransformer2DModel`]; prompts are encoded as they are, without the instruction that expands them."""

    _knows_size = False

    def encode_condition(self) -> dict[str, torch.Tensor]:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            self.prompt or "", do_classifier_free_guidance=False, num_images_per_prompt=1, device=self.device
        )
        return {"encoder_hidden_states": embeds.to(self.dtype), "encoder_attention_mask": mask}

    def arguments(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        scaled = timesteps * self.denoiser.config.timestep_scale
        return {"hidden_states": latents, "timestep": scaled, **condition}

    def timestep_of(self, args: tuple, kwargs: dict[str, Any]) -> float:
        return super().timestep_of(args, kwargs) / self.denoiser.config.timestep_scale
