# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Weights of which only a variant is there, such as `diffusion_pytorch_model.fp16.safetensors`."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import HfApi


logger = logging.get_logger(__name__)
# Folder, stem, variant: `unet/`, `diffusion_pytorch_model`, `.fp16`; shards put the variant before or after the number.
FILE = re.compile(r"(.*?)((?:diffusion_pytorch_)?model)(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?\.safetensors")


def load_variant(load: Callable, name: str, variant: str | None = None, **kwargs: Any) -> Any:
    """Calls `load(name, variant=variant, **kwargs)`; with the only variant where weights without one are missing.

    Raises what `load`, a `from_pretrained` or `download`, raises, if there is not exactly one variant to load instead.
    """
    local = os.path.isdir(name)
    given = variant or (only_variant(name, kwargs) if local else None)
    found = given
    try:
        loaded = load(name, **({} if given is None else {"variant": given}), **kwargs)
    except (OSError, ValueError) as error:
        if local or variant is not None or not re.search("no file named|safetensors", str(error)):
            raise
        found = only_variant(name, kwargs)
        if found is None:
            raise
        loaded = load(name, variant=found, **kwargs)
    if found != variant:
        logger.warning("%s: loading the variant %s; weights without a variant are missing.", name, found)
    return loaded


def only_variant(name: str | os.PathLike, kwargs: dict[str, Any]) -> str | None:
    """The variant in which all folders without other weights have theirs, if there is exactly one.

    Of `kwargs`, those of `from_pretrained`, `subfolder`, `revision` and `token` are read.
    """
    variants: dict[str, set] = {}
    for file in _files(name, kwargs):
        if found := FILE.fullmatch(file):
            variants.setdefault(found[1], set()).add(found[3] or found[4])
    only: set[str] = set().union(*(own for own in variants.values() if None not in own))
    return only.pop() if len(only) == 1 else None


def _files(name: str | os.PathLike, kwargs: dict[str, Any]) -> list[str]:
    """Files of a folder or a repository, in its subfolder if one is named; none if the Hub does not answer."""
    under = f"{kwargs['subfolder']}/" if kwargs.get("subfolder") else ""
    if os.path.isdir(name):
        found = [path for pattern in ("*", "*/*") for path in Path(name).glob(f"{pattern}.safetensors")]
        files = [path.relative_to(name).as_posix() for path in found]
    else:
        try:
            files = HfApi(token=kwargs.get("token")).list_repo_files(str(name), revision=kwargs.get("revision"))
        except Exception:  # the reason why it was not loaded is the error to show
            return []
    return [file for file in files if file.startswith(under)]
