# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of class-conditional diffusion transformers (Peebles and Xie, "Scalable Diffusion Models", ICCV 2023)."""

from typing import Any

import torch

from ..jobs.errors import UserError
from .denoiser import DenoiserFeatureExtractor, both_sides
from .dry_run import Place


class DiTFeatureExtractor(DenoiserFeatureExtractor):
    """[`DiTTransformer2DModel`]; block `i` is what its self-attention reads: normalised and modulated.

    Raw activations of such transformers are ruled by a few channels, see docs/models.md. The null class conditions it.
    """

    conditional_first = True

    def places(self) -> list[Place]:
        return [Place(f"transformer_blocks.{i}.attn1", True) for i in range(len(self.denoiser.transformer_blocks))]

    def encode_condition(self) -> dict[str, torch.Tensor]:
        if self.prompt is not None:
            raise UserError(f"{type(self.denoiser).__name__} takes no prompt; leave it out.")
        return {"class_labels": torch.tensor([self.denoiser.config.num_embeds_ada_norm], device=self.device)}

    def stand_in(self) -> dict[str, torch.Tensor]:
        return {"class_labels": torch.zeros(1, dtype=torch.long)}

    def arguments(
        self, latents: torch.Tensor, timesteps: torch.Tensor, condition: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        return {"hidden_states": latents, "timestep": timesteps, **condition}

    def own_size(self) -> tuple[int, int]:
        height, width = both_sides(self.denoiser.config.sample_size)
        return height * self._vae_stride, width * self._vae_stride

    def check_size(self, height: int, width: int) -> None:
        if height != width:
            side = self.own_size()[0]
            raise UserError(
                f"{type(self.denoiser).__name__} takes squares, got {height} × {width}; give {side} × {side}."
            )
        super().check_size(height, width)
