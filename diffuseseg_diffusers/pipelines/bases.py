# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a head says of the pipeline that it was fitted on, and in what another one differs from it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..features.noise import noise_schedule
from ..features.weights import active_adapters, adapted_layers, adapter_samples, relative_scale
from ..jobs.errors import UserError
from .identity import SAMPLES, describe_freeu, describe_noise, project, sketch


logger = logging.get_logger(__name__)

# How far two sketches may be apart: of the same weights in two precisions; of quantised ones; of the embeddings of a
# prompt; of adapters, relative to their own norm. Float8 is 0.03 from float32, int8 0.01.
TOLERANCE, QUANTISED, EMBEDDED, ADAPTED = 0.005, 0.08, 0.05, 0.02
NOISE = 1e-4  # of the shares of image and noise
STATED = ("adapters", "freeu", "noise", "condition")  # beside the weights


def describe_adapters(components: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """The active adapters: `component`, `name`, `scale` (a list if it differs between layers) and `fingerprint`.

    Raises:
        UserError: Fused projections bypass an adapter.
    """
    found = []
    for component, model in components.items():
        scales: dict[str, set] = {}
        samples: dict[str, list] = {}
        for layer in adapted_layers(model).values():
            numel = layer.get_base_layer().weight.numel()
            for name in active_adapters(layer):
                scale = relative_scale(layer, name)
                scales.setdefault(name, set()).add(round(scale, 4))
                own = adapter_samples(layer, name, max(1, numel // SAMPLES), SAMPLES)
                samples.setdefault(name, []).append(own / scale)
        for name, own in scales.items():
            values = torch.cat(samples[name])
            fingerprint = [float(f"{x:.4g}") for x in (project(values) / len(values) ** 0.5).tolist()]
            scale = own.pop() if len(own) == 1 else sorted(own)
            found.append({"component": component, "name": name, "scale": scale, "fingerprint": fingerprint})
        for module in model.modules():
            if getattr(module, "fused_projections", False) and any(_unmerged(child) for child in module.children()):
                raise UserError(
                    f"The fused projections of the {component} bypass its adapters; call `fuse_lora()` before "
                    f"`fuse_qkv_projections()`."
                )
    return found


def _unmerged(layer: Any) -> bool:
    return hasattr(layer, "merged_adapters") and bool(set(active_adapters(layer)) - set(layer.merged_adapters))


def describe_condition(condition: Mapping[str, torch.Tensor]) -> list[float]:
    """Random projections of what conditions the denoiser, each tensor relative to its own norm."""
    parts = [condition[name].detach().float().cpu().flatten() for name in sorted(condition)]
    units = [part / part.norm().clamp(min=1e-12) for part in parts]
    return [round(x, 4) for x in project(torch.cat(units)).tolist()] if units else []


def describe_base(pipe: Any, timesteps: Sequence[int]) -> dict[str, Any]:
    """What a head says of its base, but for the embedding of its prompt.

    Returns:
        `dict`: `model`, `revision`, `pipeline` (its class), `fingerprint` (see [`sketch`]), `adapters`, `adapted` (the
        fingerprint with them, if there are any), `freeu` and `noise`.
    """
    networks, models = pipe.read_networks(), _fingerprinted(pipe)
    adapters = describe_adapters({k: v for k, v in networks.items() if k != "segmentation_head"})
    return {
        "model": pipe.model,
        "revision": pipe.revision,
        "pipeline": type(pipe.base).__name__,
        "fingerprint": sketch(*models),
        "adapters": adapters,
        **({"adapted": sketch(*models, adapters=True)} if adapters else {}),
        "freeu": describe_freeu(pipe.denoiser),
        "noise": describe_noise(noise_schedule(pipe.base.scheduler), timesteps),
    }


def _fingerprinted(pipe: Any) -> list[nn.Module]:
    """Denoiser and autoencoder."""
    networks = pipe.read_networks()
    return [pipe.denoiser, *(networks[name] for name in ("vae", "vqvae") if name in networks)]


def check_base(fitted: Mapping[str, Any], pipe: Any, timesteps: Sequence[int]) -> None:
    """Refuses a base that is not `fitted`, the `base` of a head; what the head does not state is not checked.

    Raises:
        UserError: They differ; says in what, and what to do.
    """
    found, models = describe_base(pipe, timesteps), _fingerprinted(pipe)
    stored = sorted({kind for model in models for kind in _quantised(model)})
    tolerance = QUANTISED if stored else TOLERANCE
    missing, extra, scaled = _compare_adapters(fitted.get("adapters", found["adapters"]), found["adapters"])
    missing, extra = ([a for a in own if not _of_text(a)] for own in (missing, extra))  # their embeddings are compared
    one, other = fitted.get("adapted", fitted["fingerprint"]), found.get("adapted", found["fingerprint"])
    apart = math.dist(one, other)
    moved = max(math.dist(one, fitted["fingerprint"]), math.dist(other, found["fingerprint"]))
    if (missing or extra) and not scaled and apart <= min(tolerance, moved / 4, max(moved / 20, 0.0015)):
        missing = extra = []  # the same weights, fused in one and not in the other
        distance = apart
    else:
        distance = math.dist(fitted["fingerprint"], found["fingerprint"])
    if distance > tolerance and "adapters" not in fitted:  # older heads counted the weights of adapters as they are
        distance = min(distance, math.dist(fitted["fingerprint"], sketch(*models, raw=True)))
    names = [f"{b['model'] or 'a ' + b['pipeline']} (fingerprint {short(b)})" for b in (fitted, found)]
    if distance > tolerance:
        raise UserError(
            f"The segmentation head was fitted on {names[0]}, but this is {names[1]}"
            f"{' with weights stored as ' + ', '.join(stored) if stored else ''}: their weights differ by "
            f"{distance:.0%}; use the base that the head was fitted on, or fit one on this."
        )
    differences = [*_sentences(missing, extra, scaled), *_settings(fitted, found)]
    if differences:
        do = "Load it with `load_lora_weights` or `lora=` (--lora), or fit" if missing else "Change it back, or fit"
        raise UserError(
            f"The segmentation head was fitted on {names[0]}, from which this one differs: {'; '.join(differences)}. "
            f"{do} a head on this."
        )
    if stored and distance > TOLERANCE:
        logger.warning(
            f"The weights are stored as {', '.join(stored)}, {100 * distance:.1f} % from those that the head was "
            f"fitted on; masks may differ."
        )


def check_condition(fitted: Mapping[str, Any], condition: Mapping[str, torch.Tensor], adapters: list) -> None:
    """Refuses text encoders that embed the prompt differently than `fitted`, the head's `base`, or other class labels.

    The adapters are those of the text encoders, see [`describe_adapters`].
    """
    if "condition" not in fitted:
        return
    distance = math.dist(fitted["condition"], describe_condition(condition))
    if distance > EMBEDDED:
        told = "; ".join(_sentences(*_compare_adapters([a for a in fitted["adapters"] if _of_text(a)], adapters)))
        raise UserError(
            f"The segmentation head was fitted with other text encoders: the embedding of its prompt differs by "
            f"{distance:.0%}{' (' + told + ')' if told else ''}; use those, or fit a head on this."
        )


def tell_unstated(fitted: Mapping[str, Any]) -> None:
    """Says what a head of an older version does not state, so that it is not checked."""
    if not set(STATED) <= set(fitted):
        logger.warning(
            "The segmentation head states the weights of its base alone; whether adapters, text encoders, FreeU and "
            "noise schedule are those of fitting is not checked."
        )


def short(base: Mapping[str, Any]) -> str:
    """The first numbers of a fingerprint, for people to compare."""
    return " ".join(f"{x:+.2f}" for x in base["fingerprint"][:4])


def _of_text(adapter: Mapping) -> bool:
    return adapter["component"].startswith("text_encoder")


def _compare_adapters(fitted: Sequence[Mapping], found: Sequence[Mapping]) -> tuple[list, list, list]:
    """Adapters of the head alone, of the base alone, and pairs whose scales differ; names do not matter."""
    missing, extra, scaled = list(fitted), list(found), []
    for one in fitted:
        for other in extra:
            size = math.hypot(*one["fingerprint"])
            near = math.dist(one["fingerprint"], other["fingerprint"]) <= ADAPTED * size
            if near and one["component"] == other["component"]:
                missing.remove(one)
                extra.remove(other)
                if one["scale"] != other["scale"]:
                    scaled.append((one, other))
                break
    return missing, extra, scaled


def _sentences(missing: Sequence[Mapping], extra: Sequence[Mapping], scaled: Sequence[tuple]) -> list[str]:
    told = [f"the adapter {a['name']!r} of the {a['component']} (scale {a['scale']}) is not active" for a in missing]
    told += [f"the adapter {a['name']!r} of the {a['component']} (scale {a['scale']}) is active" for a in extra]
    told += [f"the adapter {b['name']!r} has scale {b['scale']} and had {a['scale']}" for a, b in scaled]
    return told


def _settings(fitted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    told = []
    if "freeu" in fitted and list(fitted["freeu"] or ()) != list(found["freeu"] or ()):
        had, has = (f"on ({', '.join(map(str, b['freeu']))})" if b["freeu"] else "off" for b in (fitted, found))
        told.append(f"FreeU is {has} and was {had}")
    for one, other in zip(fitted.get("noise") or (), found["noise"] or ()):
        if math.dist(one, other) > NOISE:
            told.append(
                f"the scheduler's betas give another noise level ({other[1]:.4f} of noise in place of {one[1]:.4f}; "
                f"see `beta_start`, `beta_end`, `rescale_betas_zero_snr`)"
            )
            break
    return told


def _quantised(model: nn.Module) -> set[str]:
    """In which forms of few bits weights are stored."""
    kinds = {type(p.data).__name__ for p in model.parameters() if type(p.data) is not torch.Tensor}
    small = {p.dtype for p in model.parameters() if p.dtype.itemsize == 1}
    return kinds | {str(dtype).removeprefix("torch.") for dtype in small}
