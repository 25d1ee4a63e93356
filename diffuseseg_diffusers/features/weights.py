# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The weights that a model computes with, wherever and however they are stored, and the adapters on them."""

import weakref
from typing import Any

import torch
from torch import nn


FUSED = {"to_qkv", "to_kv", "to_added_qkv"}  # copies that `fuse_qkv_projections` makes; the originals stay
PROBES = 8  # weights whose values are part of a state, since edits of `.data` count no version


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Layers of a model that carry adapters of `peft`, by the names of the modules that they replaced."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "adapter_layer_names") and hasattr(module, "base_layer")
    }


def active_adapters(layer: Any) -> list[str]:
    """Names of the adapters that a layer computes with, merged ones included."""
    if layer.disable_adapters:
        return []
    names = dict.fromkeys([*layer.merged_adapters, *layer.active_adapters])
    return [name for name in names if layer.scaling.get(name, 0) != 0]


def adapter_samples(layer: Any, adapter: str, step: int, number: int) -> torch.Tensor:
    """Every `step`-th weight, up to `number`, of what an adapter adds to its layer's weight, in float32 on the CPU."""
    down, up = (getattr(layer, name, {}) for name in ("lora_A", "lora_B"))
    if adapter not in down:  # other kinds than LoRA of linear layers and convolutions
        return layer.get_delta_weight(adapter).detach().flatten()[::step][:number].float().cpu()
    both = [_in_memory(held[adapter], "weight", held[adapter].weight) for held in (down, up)]
    a, b = (weight.float().flatten(1) for weight in both)  # [r,in*kh*kw], [out,r]
    place = torch.arange(0, len(b) * a.shape[1], step, device=a.device)[:number]
    product = (b[place // a.shape[1]] * a[:, place % a.shape[1]].mT).sum(1)  # [number]
    return (product * layer.scaling[adapter]).cpu()


def relative_scale(layer: Any, adapter: str) -> float:
    """An adapter's scale as a user sets it, 1 if nobody did."""
    alpha, rank = (getattr(layer, name, {}).get(adapter) for name in ("lora_alpha", "r"))
    own = alpha / (rank**0.5 if getattr(layer, "use_rslora", {}).get(adapter) else rank) if alpha and rank else 1.0
    return layer.scaling[adapter] / own


def base_weights(model: nn.Module, buffers: bool = False) -> dict[str, torch.Tensor]:
    """The weights and, if wanted, buffers by name, as if there were no adapters and fused projections.

    Weights that are offloaded between passes are fetched, and quantised ones dequantised if they can be.
    """
    found: dict[str, torch.Tensor] = {}

    def visit(module: Any, prefix: str) -> None:
        if hasattr(module, "adapter_layer_names") and hasattr(module, "base_layer"):
            return visit(module.base_layer, prefix)
        own = [*module.named_parameters(recurse=False), *(module.named_buffers(recurse=False) if buffers else ())]
        for name, weight in own:
            found[prefix + name] = _in_memory(module, name, weight)
        for name, child in module.named_children():
            if not (name in FUSED and getattr(module, "fused_projections", False)):
                visit(child, prefix if name == "_orig_mod" else f"{prefix}{name}.")

    visit(model, "")
    return dict(sorted(found.items()))


def _in_memory(module: Any, name: str, weight: torch.Tensor) -> torch.Tensor:
    """A weight as a plain tensor; on the meta device if it is nowhere."""
    if weight.is_meta:  # between passes, Accelerate's hooks keep it
        hook = getattr(module, "_hf_hook", None)
        for own in (hook, *getattr(hook, "hooks", ())):
            if getattr(own, "weights_map", None) is not None:
                return own.weights_map[name]
    weight = weight.detach()
    if type(weight) not in (torch.Tensor, nn.Parameter):
        try:
            return weight.dequantize()
        except (RuntimeError, NotImplementedError):  # packed in a way that only its own layer reads
            return weight.as_subclass(torch.Tensor)
    return weight


def state_of(model: nn.Module) -> tuple:
    """What changes when a model computes with other weights; a millisecond, no look at all of them.

    Two states are equal if the model is the same object, no weight was replaced or written to, its adapters are
    switched and scaled alike, and the precision is the same. Moves between devices change nothing.
    """
    weights = [p for p in model.parameters() if not p.is_meta]
    versions = sum(p._version for p in weights if not p.is_inference())
    plain = [p for p in weights if type(p.data) is torch.Tensor and p.numel()]
    chosen = plain[:: max(1, len(plain) // PROBES)]
    values = torch.stack([p.data[(-1,) * p.ndim].float().cpu() for p in chosen]).tolist() if chosen else []
    adapters = tuple(
        (name, tuple(layer.active_adapters), layer.disable_adapters, *layer.merged_adapters, *layer.scaling.items())
        for name, layer in adapted_layers(model).items()
    )
    dtypes = frozenset(p.dtype for p in weights)
    return weakref.ref(model), len(weights), versions, tuple(values), adapters, dtypes


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the weights and statistics of a module."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
