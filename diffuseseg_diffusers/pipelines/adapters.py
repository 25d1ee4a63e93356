# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Loads LoRAs onto a pipeline by name and scale, as the command line gives them."""

import os
import re
from collections.abc import Sequence
from typing import Any

from ..jobs.errors import UserError
from ..jobs.hub_errors import explain_hub_error
from ..jobs.install import missing_extra


def load_adapters(pipe: Any, given: Sequence[str], **where: Any) -> None:
    """Loads LoRAs and makes all of them active.

    Each is `PATH_OR_NAME` or `PATH_OR_NAME=SCALE`: a folder, a file or a name on the Hub. `where` is `cache_dir`,
    `token`, … as in `load_lora_weights`. Raises [`UserError`] if the pipeline takes no LoRA, or one cannot be loaded.
    """
    if given and not hasattr(pipe, "load_lora_weights"):
        raise UserError(f"A {type(pipe).__name__} takes no LoRA; leave --lora out.")
    names, scales = [], []
    for one in given:
        source, scale = split_scale(one)
        name = re.sub(r"\W+", "_", os.path.basename(os.path.splitext(source)[0])).strip("_") or "lora"
        name = name if name not in names else f"{name}_{len(names)}"
        folder, options = source, {**where, "use_safetensors": True}
        if os.path.isfile(source):
            folder, options["weight_name"] = os.path.split(source)
        try:
            pipe.load_lora_weights(folder or ".", adapter_name=name, **options)
        except ImportError as error:
            raise missing_extra("lora", error.name) from error
        except Exception as error:
            if isinstance(error, ValueError) and "PEFT backend" in str(error):
                raise missing_extra("lora", "peft") from error
            reason = None if os.path.exists(source) else explain_hub_error(error)
            raise UserError(f"The LoRA {source} cannot be loaded: {reason or f'{error!s:.200}'}") from error
        names.append(name)
        scales.append(scale)
    if names:
        pipe.set_adapters(names, scales)


def split_scale(text: str) -> tuple[str, float]:
    """Path or name of a LoRA as typed, and its scale, 1 if none is given: `user/style=0.8`."""
    source, separator, scale = text.rpartition("=")
    if separator and source and re.fullmatch(r"-?\d*\.?\d+", scale):
        return source, float(scale)
    return text, 1.0
