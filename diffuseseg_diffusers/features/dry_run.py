# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Shape and FLOP inference on the meta device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Place:
    """Where a tap is: the output of a module, or what goes into it."""

    module: str
    of_input: bool = False


@dataclass(frozen=True)
class Sighting:
    """Output of a tap in a dry run.

    Args:
        output: Tensors of the meta device, which have shapes and no content.
        order (`int`): How many taps were reached before.
        share (`float`): Fraction of forward FLOPs before the tap.
    """

    output: Any
    order: int
    share: float


@torch.no_grad()
def dry_run(
    model: torch.nn.Module, places: Mapping[int | str, Place], arguments: Callable[[], dict[str, Any]]
) -> dict[int | str, Sighting]:
    """Runs a model of the same config on the meta device; allocates nothing.

    Args:
        model (`ModelMixin`): Of diffusers; it is not touched.
        places (mapping): By any key.
        arguments (`Callable`): Makes the arguments of the pass; called with the meta device as the default.

    Returns:
        `dict`: What is seen at each place; a place that the pass does not run is missing.
    """
    with torch.device("meta"):
        twin = type(model).from_config(dict(model.config)).to("meta").eval()
        given = arguments()
    seen: dict[int | str, tuple[Any, int]] = {}

    def watch(key: int | str, output: Any) -> None:
        seen[key] = (output, counter.get_total_flops())

    for key, place in places.items():
        module = twin.get_submodule(place.module)
        if place.of_input:
            module.register_forward_pre_hook(
                lambda m, args, kwargs, key=key: watch(key, args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True,
            )
        else:
            module.register_forward_hook(lambda m, args, output, key=key: watch(key, output))
    with FlopCounterMode(display=False) as counter:
        twin(**given, return_dict=False)
    total = counter.get_total_flops()
    return {key: Sighting(output, order, done / total) for order, (key, (output, done)) in enumerate(seen.items())}
