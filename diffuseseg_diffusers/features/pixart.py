# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of transformers with cross-attention to text: PixArt-α and -Σ, Sana.

Chen et al., "PixArt-α" (ICLR 2024) and "PixArt-Σ" (ECCV 2024); Xie et al., "Sana" (ICLR 2025).
"""

import inspect
from typing import Any

import torch

from .denoiser import Condition, DenoiserFeatureExtractor


class PixArtFeatureExtractor(DenoiserFeatureExtractor):
    """[`PixArtTransformer2DModel`]; block `i` is what its self-attention reads: normalised and modulated.

    The null prompt is the empty one. Models that know the size of images are told the one at which they are read.
    """

    def encode_condition(self) -> Condition:
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
        return self.model.config.sample_size == 128  # as its pipeline tells it

    def stand_in(self) -> Condition:
        tokens = inspect.signature(self.pipe.encode_prompt).parameters["max_sequence_length"].default
        made = {
            "encoder_hidden_states": torch.zeros(1, tokens, self.model.config.caption_channels),
            "encoder_attention_mask": torch.ones(1, tokens),
        }
        if self._knows_size:
            made |= {"resolution": torch.zeros(1, 2), "aspect_ratio": torch.zeros(1, 1)}
        return made

    def arguments(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> dict[str, Any]:
        known = {name: condition.get(name) for name in ("resolution", "aspect_ratio")}
        text = {name: condition[name] for name in ("encoder_hidden_states", "encoder_attention_mask")}
        return {"hidden_states": latents, "timestep": timesteps, **text, "added_cond_kwargs": known}


class SanaFeatureExtractor(PixArtFeatureExtractor):
    """[`SanaTransformer2DModel`]; prompts are encoded as they are, without the instruction that expands them."""

    _knows_size = False

    def encode_condition(self) -> Condition:
        made = super().encode_condition()
        return made | {"encoder_hidden_states": made["encoder_hidden_states"].to(self.dtype)}

    def arguments(self, latents: torch.Tensor, timesteps: torch.Tensor, condition: Condition) -> dict[str, Any]:
        scaled = timesteps * self.model.config.timestep_scale
        return DenoiserFeatureExtractor.arguments(self, latents, scaled, condition)

    def timestep_of(self, args: tuple, kwargs: dict[str, Any]) -> float:
        return super().timestep_of(args, kwargs) / self.model.config.timestep_scale
