# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Transformers that denoise latents, by their size (Peebles and Xie, "Scalable Diffusion Models", ICCV 2023)."""

from diffusers import DiTTransformer2DModel

from ..jobs.errors import UserError


DENOISERS = ("unet", "dit")
# Width and layers by the longer side of the latents: a small one for little data, then DiT-S and DiT-B.
PRESETS = {32: (256, 8), 64: (384, 12), 128: (768, 12)}
HEAD_CHANNELS = 64


def transformer_config(size: tuple[int, int], width: int | None = None) -> dict:
    """Arguments of [`DiTTransformer2DModel`] that suit a height and width of latents; `width` replaces the preset's."""
    preset, layers = PRESETS[next((s for s in PRESETS if max(size) <= s), max(PRESETS))]
    width = width or preset
    heads = max(1, width // HEAD_CHANNELS)
    return {"num_attention_heads": heads, "attention_head_dim": width // heads, "num_layers": layers, "patch_size": 2}


def make_transformer(config: dict, shape: tuple[int, int, int]) -> DiTTransformer2DModel:
    """A transformer with fresh weights, for latents `[C, h, w]`, trained with the null class alone.

    Raises:
        UserError: The latents are no square, or cannot be cut into patches, or the config makes no model.
    """
    channels, height, width = shape
    if height != width:
        raise UserError(f"DiTTransformer2DModel takes squares, got latents of {height} × {width}; use --denoiser unet.")
    if height % config["patch_size"]:
        raise UserError(f"Latents of {height} × {width} cannot be cut into patches of {config['patch_size']}.")
    fixed = {"in_channels": channels, "out_channels": channels, "sample_size": height, "num_embeds_ada_norm": 1000}
    try:
        return DiTTransformer2DModel(**{**config, **fixed})
    except (TypeError, ValueError) as error:
        raise UserError(f"DiTTransformer2DModel does not take this config: {error}.") from error
