# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of class-conditional diffusion transformers (Peebles and Xie, "Scalable Diffusion Models", ICCV 2023)."""

import torch

from ..jobs.errors import UserError
from .base import refuse_prompt
from .denoiser import Condition, DenoiserFeatureExtractor


class DiTFeatureExtractor(DenoiserFeatureExtractor):
    """[`DiTTransformer2DModel`]; block `i` is what its self-attention reads: normalised and modulated.

    Raw activations of such transformers are ruled by a few channels, see docs/models.md. The null class conditions it.
    """

    conditional_first = True

    def encode_condition(self) -> Condition:
        refuse_prompt(self.model, self.prompt)
        return {"class_labels": torch.tensor([self.model.config.num_embeds_ada_norm], device=self.device)}

    def stand_in(self) -> Condition:
        return {"class_labels": torch.zeros(1, dtype=torch.long)}

    def check_size(self, height: int, width: int) -> None:
        if height != width:
            side = self.own_size()[0]
            raise UserError(f"{type(self.model).__name__} takes squares, got {height} × {width}; give {side} × {side}.")
        super().check_size(height, width)
