# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What masks depend on, in a form that can be compared: exactly for runs that resume, within precisions for heads."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..features.weights import active_adapters, adapted_layers, base_weights


# Entries of a config on which no mask depends, or that are stated apart.
APART = {"agreement", "base", "decisions", "dtype", "format_version", "torch_dtype", "transformers_version"}


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over a value, as JSON holds it."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(*models: nn.Module) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all weights, buffers and active adapters in float32.

    Args:
        *models (`torch.nn.Module`): A U-Net and its head, for instance.

    Example:
        >>> weights_digest(pipe.unet) == weights_digest(pipe.unet.float())
        True
    """
    seen = hashlib.sha256()

    def add(name: str, weight: torch.Tensor) -> None:
        seen.update(name.encode())
        seen.update(weight.detach().float().cpu().contiguous().numpy().tobytes())

    for model in models:
        for name, weight in base_weights(model, buffers=True).items():
            add(name, weight)
        for place, layer in adapted_layers(model).items():
            for adapter in active_adapters(layer):
                add(f"{place} {layer.scaling[adapter]}", torch.zeros(0))
                for kind in layer.adapter_layer_names:
                    held = getattr(layer, kind)
                    if adapter in held:
                        own = held[adapter]
                        for name, weight in [("", own)] if isinstance(own, torch.Tensor) else own.named_parameters():
                            add(kind + name, weight)
    return seen.hexdigest()[:16]


def describe_network(network: nn.Module) -> str:
    """Weights, config and precision of a network, as a run's record states them."""
    config = getattr(network, "config", None)
    given = config.to_dict() if hasattr(config, "to_dict") else config
    known = {k: v for k, v in given.items() if k[0] != "_" and k not in APART} if isinstance(given, Mapping) else {}
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in network.parameters()})
    return " ".join([weights_digest(network), digest(known)[:8], *dtypes])


def describe_freeu(denoiser: Any) -> list[float] | None:
    """The factors s1, s2, b1 and b2 of FreeU (Si et al., CVPR 2024), if a U-Net uses it."""
    block = next(iter(getattr(denoiser, "up_blocks", ())), None)
    factors = [getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")]
    return [float(factor) for factor in factors if factor is not None] if all(factors) else None


def describe_noise(extractor: Any) -> list[list[float]] | None:
    """How much is left of the image, and how much noise is added, at each timestep of an extractor: `[[α, σ], …]`.

    Whatever the sampler: only the betas, or what stands for them, matter. `None` of models that see no noise.
    """
    if extractor.schedule is None:
        return None
    ones, zeros = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    steps = [torch.tensor([t]) for t in extractor.timesteps]
    pairs = [
        (extractor.schedule.add_noise(ones, zeros, t), extractor.schedule.add_noise(zeros, ones, t)) for t in steps
    ]
    return [[round(float(signal), 6), round(float(noise), 6)] for signal, noise in pairs]


def describe_segmenter(segmenter: Any) -> dict[str, str]:
    """Everything that the masks of a segmenter depend on, beside the images: what [`Segmenter.identity`] returns."""
    found = {name: describe_network(network) for name, network in sorted(segmenter.read_networks().items())}
    components = getattr(segmenter, "components", {})
    for name, part in {**components, "processor": getattr(segmenter, "processor", None)}.items():
        if name.startswith("tokenizer") and hasattr(part, "get_vocab"):
            found[name] = digest(part.get_vocab())
        elif name.endswith("processor") and hasattr(part, "to_json_string"):
            found[name] = digest(part.to_json_string())
    freeu = describe_freeu(getattr(segmenter, "denoiser", None))
    if freeu is not None:
        found["freeu"] = json.dumps(freeu)
    has_head = getattr(segmenter, "segmentation_head", None) is not None
    noise = describe_noise(segmenter.head_extractor()) if has_head else None
    if noise is not None:
        found["noise"] = json.dumps(noise)
    found["channels"] = json.dumps(segmenter.channels.config, sort_keys=True)
    if (has_head or not hasattr(segmenter, "segmentation_head")) and segmenter.decisions is not None:
        found["decisions"] = digest(segmenter.decisions.config)
    return found


def describe_pipeline(pipe: Any) -> dict[str, str]:
    """Everything that a pipeline's images and masks depend on: its identity, all other components, the scheduler."""
    found = pipe.identity()
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name not in found:
            found[name] = describe_network(part)
        elif hasattr(part, "add_noise"):
            found[name] = digest([type(part).__name__, dict(part.config)])
    return found
