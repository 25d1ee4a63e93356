# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The families of models whose activations can be features, recognised by the components of a pipeline."""

import importlib
from collections.abc import Mapping
from typing import Any

from ..jobs.errors import UserError
from .base import FeatureExtractor


# A component, its class, and another component that must be there: they tell the family. The first that fits is taken,
# and the class that reads its features is imported when asked for.
FAMILIES: dict[tuple[str, str, str | None], str] = {
    ("unet", "UNet2DModel", "vqvae"): "latent_unet:LatentUNetFeatureExtractor",
    ("unet", "UNet2DModel", "vae"): "latent_unet:LatentUNetFeatureExtractor",
    ("unet", "UNet2DModel", None): "pixel_unet:DecoderFeatureExtractor",
    ("unet", "UNet2DConditionModel", "vae"): "latent_unet:TextUNetFeatureExtractor",
    ("transformer", "DiTTransformer2DModel", "vae"): "dit:DiTFeatureExtractor",
    ("transformer", "PixArtTransformer2DModel", "vae"): "pixart:PixArtFeatureExtractor",
    ("transformer", "SanaTransformer2DModel", "vae"): "pixart:SanaFeatureExtractor",
    ("transformer", "SD3Transformer2DModel", "vae"): "mmdit:SD3FeatureExtractor",
    ("transformer", "FluxTransformer2DModel", "vae"): "mmdit:FluxFeatureExtractor",
    ("backbone", "PreTrainedModel", None): "vision:VisionFeatureExtractor",
}


def find_family(components: Mapping[str, Any]) -> type[FeatureExtractor]:
    """The family that a pipeline's components, by name, belong to.

    Raises:
        UserError: They match no known family; names them and the families.
    """
    for (component, kind, other), where in FAMILIES.items():
        model = components.get(component)
        model = getattr(model, "_orig_mod", model)  # of torch.compile
        if kind in {c.__name__ for c in type(model).__mro__} and (not other or components.get(other) is not None):
            module, name = where.split(":")
            return getattr(importlib.import_module(f".{module}", __package__), name)
    found = ", ".join(f"{name} ({type(value).__name__})" for name, value in components.items())
    known = [f"{component} ({kind}{f' with a {other}' if other else ''})" for component, kind, other in FAMILIES]
    raise UserError(f"A pipeline of {found} gives no features that are known here; one with {' or '.join(known)} does.")
