# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What masks depend on, in a form that can be compared: exactly for runs that resume, within precisions for heads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..features.noise import NoiseSchedule, noise_schedule
from ..features.weights import active_adapters, adapted_layers, adapter_samples, base_weights
from ..jobs.errors import UserError


SKETCH, SAMPLES = 16, 4096  # numbers of a sketch, and weights of each tensor that it is of
# Entries of a config on which no mask depends, or that are stated apart.
APART = {"agreement", "base", "decisions", "dtype", "format_version", "torch_dtype", "transformers_version"}
# Entries of newer heads, which count where they are set: digests of older heads stay.
LATER = {"clean", "filters", "member_inputs", "member_weights"}


def digest(value: Any) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over a value as JSON."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def weights_digest(*models: nn.Module) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all weights, buffers and active adapters in float32."""
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
                    own = getattr(layer, kind)[adapter] if adapter in getattr(layer, kind) else nn.Module()
                    for name, weight in [("", own)] if isinstance(own, torch.Tensor) else own.named_parameters():
                        add(kind + name, weight)
    return seen.hexdigest()[:16]


def sketch(*models: nn.Module, adapters: bool = False, raw: bool = False) -> list[float]:
    """Random projections of the weights of models, relative to their norm: nearly the same in every precision.

    The Euclidean distance of two sketches estimates the distance of the weights, relative to their norm (Johnson and
    Lindenstrauss, 1984): about 0.001 for bfloat16 against float32.

    With `adapters`, active ones count as if they were fused; `raw` takes all parameters as they are, those of adapters
    too. Raises [`UserError`] if the weights are not in memory.
    """
    parts = []
    for model in models:
        layers = {} if raw else {k.replace("_orig_mod.", ""): v for k, v in adapted_layers(model).items()}
        for name, weight in dict(sorted(model.named_parameters())).items() if raw else base_weights(model).items():
            if weight.is_meta:
                raise UserError("The weights are offloaded; attach the head before `enable_sequential_cpu_offload()`.")
            flat = weight.detach().flatten()
            step = max(1, flat.numel() // SAMPLES)
            own = flat[::step][:SAMPLES].float().cpu()
            place, _, kind = name.rpartition(".")
            if kind == "weight" and place in layers:
                layer = layers[place]
                merged, active = set(layer.merged_adapters), set(active_adapters(layer) if adapters else ())
                for adapter in sorted(merged ^ active):
                    own = own + (1 if adapter in active else -1) * adapter_samples(layer, adapter, step, SAMPLES)
            parts.append(own)
    values = torch.cat(parts)
    return [round(x, 4) for x in (project(values) / values.double().norm()).tolist()]


def project(values: torch.Tensor) -> torch.Tensor:
    """Projections of a vector on `SKETCH` vectors of random signs, `[SKETCH]` float64."""
    signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return nn.functional.pad(values * signs, (0, -len(values) % SKETCH)).view(-1, SKETCH).double().sum(0)


def describe_network(network: nn.Module) -> str:
    """Weights, config and precision of a network, as a run's record states them."""
    config = getattr(network, "config", None)
    given = config.to_dict() if hasattr(config, "to_dict") else config
    known = {k: v for k, v in given.items() if k[0] != "_" and k not in APART} if isinstance(given, Mapping) else {}
    known = {k: v for k, v in known.items() if v or k not in LATER}
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in network.parameters()})
    return " ".join([weights_digest(network), digest(known)[:8], *dtypes])


def describe_freeu(denoiser: Any) -> list[float] | None:
    """The factors s1, s2, b1 and b2 of FreeU (Si et al., CVPR 2024), if a U-Net uses it."""
    block = next(iter(getattr(denoiser, "up_blocks", ())), None)
    factors = [getattr(block, name, None) for name in ("s1", "s2", "b1", "b2")]
    return [float(factor) for factor in factors if factor is not None] if all(factors) else None


def describe_noise(schedule: NoiseSchedule, timesteps: Sequence[int]) -> list[list[float]]:
    """The shares of image and noise at each timestep, `[[α, σ], …]`; they depend on the betas, not on the sampler."""
    ones, zeros, steps = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), [torch.tensor([t]) for t in timesteps]
    pairs = [(schedule.add_noise(ones, zeros, t), schedule.add_noise(zeros, ones, t)) for t in steps]
    return [[round(float(signal), 6), round(float(noise), 6)] for signal, noise in pairs]


def describe_segmenter(segmenter: Any) -> dict[str, str]:
    """What [`Segmenter.identity`] returns: everything that masks depend on, beside the images."""
    networks = getattr(segmenter, "read_networks", segmenter.networks)()
    found = {name: describe_network(network) for name, network in sorted(networks.items())}
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
    scheduler = getattr(segmenter, "scheduler", None)
    if has_head and scheduler is not None:
        timesteps = segmenter.segmentation_head.config.timesteps
        found["noise"] = json.dumps(describe_noise(noise_schedule(scheduler), timesteps))
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
