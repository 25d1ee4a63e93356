# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The families of models whose activations can be features, recognised by the components of a pipeline."""

import importlib
from collections.abc import Mapping
from typing import Any

from ..runs.errors import UserError
from .base import FeatureExtractor


# A component and its class, which tell the family, and the class that reads its features, imported when asked for.
FAMILIES = {
    ("unet", "UNet2DModel"): "pixel_unet:DecoderFeatureExtractor",
    ("backbone", "PreTrainedModel"): "vision:VisionFeatureExtractor",
}


def find_family(components: Mapping[str, Any]) -> type[FeatureExtractor]:
    """The family that a pipeline's components belong to.

    Args:
        components (mapping): Of a pipeline, by name, as `DiffusionPipeline.components`.

    Raises:
        UserError: They belong to none of the known families; names them and the families.
    """
    for (component, kind), where in FAMILIES.items():
        if kind in {c.__name__ for c in type(components.get(component)).__mro__}:
            module, name = where.split(":")
            return getattr(importlib.import_module(f".{module}", __package__), name)
    found = ", ".join(f"{name} ({type(value).__name__})" for name, value in components.items())
    known = " or ".join(f"{component} ({kind})" for component, kind in FAMILIES)
    raise UserError(f"A pipeline of {found} gives no features that are known here; one with {known} does.")
