# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Hooks on the places where activations are read, and shape and FLOP inference there on the meta device."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..jobs.errors import UserError


ATTENTION_MAP = ".attention_map"  # behind the name of a cross-attention: what its queries attend to


@dataclass(frozen=True)
class Place:
    """Where a tap is: the output of a module, or its input; or the map of a cross-attention ([`attention_map`])."""

    module: str
    of_input: bool = False


@dataclass(frozen=True)
class Sighting:
    """Output of a tap in a dry run, without content, and the fraction of forward FLOPs before it."""

    output: Any
    share: float


@contextmanager
def hooked(model: torch.nn.Module, places: Mapping[Any, Any], see: Callable[[Any, Any], None]) -> Iterator[None]:
    """Calls `see(key, value)` whenever a forward pass within the context reaches a place.

    The places, by any key, have the fields of [`Place`]; the value is the module's output or input.
    """
    with ExitStack() as hooks:
        for key, place in places.items():
            if place.module.endswith(ATTENTION_MAP):

                def attended(module: Any, args: tuple, kwargs: dict, key: Any = key) -> None:
                    see(key, attention_map(module, *args, **kwargs))

                attention = model.get_submodule(place.module.removesuffix(ATTENTION_MAP))
                hooks.callback(attention.register_forward_pre_hook(attended, with_kwargs=True).remove)
                continue
            module, part, parts = _computed(model, place.module)
            if place.of_input:

                def before(module: Any, args: tuple, kwargs: dict, key: Any = key) -> None:
                    see(key, args[0] if args else kwargs["hidden_states"])

                hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            else:

                def after(
                    module: Any, args: tuple, output: Any, key: Any = key, part: int = part, parts: int = parts
                ) -> None:
                    see(key, output.chunk(parts, dim=-1)[part] if parts > 1 else output)

                hooks.callback(module.register_forward_hook(after).remove)
        yield


def attention_map(
    attention: Any,
    hidden_states: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> torch.Tensor:
    """What a cross-attention of diffusers attends to: `[N, pixels, tokens]`, mean over its heads, 1 in all over tokens.

    The arguments are those of its `forward`.

    Raises:
        UserError: It attends to no text, or to text and image together, or normalises queries or keys.
    """
    given = isinstance(hidden_states, torch.Tensor) and isinstance(encoder_hidden_states, torch.Tensor)
    if not given or not hasattr(attention, "to_q") or getattr(attention, "add_k_proj", None) is not None:
        raise UserError("Attention maps are those of cross-attentions, which attend to the text alone; take another.")
    if attention.norm_q is not None or attention.norm_k is not None:
        raise UserError("Maps of attentions with normalised queries or keys are not known here; take another.")
    if attention.norm_cross:
        encoder_hidden_states = attention.norm_encoder_hidden_states(encoder_hidden_states)
    # By `forward`, so that taps at these layers see the pass alone.
    query, key = attention.to_q.forward(hidden_states), attention.to_k.forward(encoder_hidden_states)
    query, key = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (query, key))  # [N,heads,·,d]
    scores = query.float() @ key.float().mT * attention.scale  # [N,heads,pixels,tokens]
    if attention_mask is not None:
        mask = attention.prepare_attention_mask(attention_mask, key.shape[2], len(key))
        scores = scores + mask.view(len(key), attention.heads, -1, mask.shape[-1])
    return scores.softmax(-1).mean(1).to(query.dtype)


def _computed(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, int, int]:
    """The module that computes what one of that name does; which part of its output that is, and of how many.

    Another one where an attention's projections are fused (`fuse_qkv_projections`).
    """
    where, _, own = name.rpartition(".")
    attention: Any = model.get_submodule(where)
    if getattr(attention, "fused_projections", False):
        for fused in (("to_q", "to_k", "to_v"), ("to_k", "to_v")):
            layer = getattr(attention, "to_" + "".join(one[-1] for one in fused), None)
            if own in fused and layer is not None:
                return layer, fused.index(own), len(fused)
    return model.get_submodule(name), 0, 1


@torch.no_grad()
def dry_run(
    model: torch.nn.Module, places: Mapping[int | str, Place], arguments: Callable[[], dict[str, Any]]
) -> dict[int | str, Sighting]:
    """Runs a model of the same config on the meta device, the default when `arguments` are made; allocates nothing.

    Returns:
        `dict`: What is seen at each place, in the order of the pass; places that it does not run are missing.
    """
    with torch.device("meta"):
        twin = type(model).from_config(dict(model.config)).to("meta").eval()
        given = arguments()
    seen: dict[int | str, tuple[Any, int]] = {}
    with FlopCounterMode(display=False) as counter:

        def see(key: int | str, output: Any) -> None:
            seen[key] = (output, counter.get_total_flops())

        with hooked(twin, places, see):
            twin(**given, return_dict=False)
    return {key: Sighting(output, done / counter.get_total_flops()) for key, (output, done) in seen.items()}
