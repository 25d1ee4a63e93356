# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Names for the one loader, [`AutoDiffuseSegPipeline.from_pretrained`], with the defaults of commands."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..jobs.errors import UserError
from ..jobs.files import JOINED
from ..jobs.hardware import find_device, short_name
from .auto import COMPOSED, ONNX, AutoDiffuseSegPipeline, check_name, errors_explained, find_kind
from .averaged import BASE, AveragedSegmenter
from .general import find_model, hub_name, own_parts
from .pixel import DiffuseSegPipeline
from .segmenter import Segmenter


def load_pipeline(
    name: str | os.PathLike,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    cache_dir: str | os.PathLike | None = None,
    base_model: str | None = None,
    lora: Sequence[str] = (),
) -> Segmenter:
    """[`AutoDiffuseSegPipeline.from_pretrained`] on the best device and in the precision that goes with it.

    Args:
        name (`str` or path): As there; or several, joined by ` + `, to segment together, see [`AveragedSegmenter`].
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        device (`str` or `torch.device`, *optional*): See [`default_device`].
        dtype (`str` or `torch.dtype`, defaults to `"auto"`): Precision of the model, see [`find_dtype`]; the head keeps
            float32.
        cache_dir (`str` or path, *optional*): Folder of downloads.
        base_model (`str`, *optional*), lora (sequence of `str`): As there.

    Raises:
        UserError: There is no such model, in a folder or on the Hub, or it is of an unknown kind.

    Examples:
        >>> pipe = load_pipeline("out/model")
        >>> pipe.segment("photo.jpg").masks[0].save("mask.png")
    """
    name = os.fspath(name)
    if JOINED in name and not os.path.exists(name):
        parts = name.split(JOINED)
        if len({os.path.realpath(part) if os.path.exists(part) else part for part in parts}) < len(parts):
            raise UserError(f"{name} names a model twice; give every model once.")
        options = dict(device=device, dtype=dtype, lora=lora)
        both = AveragedSegmenter(load_pipelines(parts, revision, base_model, cache_dir, **options))
        both.guided = both.first.guided
        return both
    if not name.endswith(ONNX):  # which say more if a device was named
        check_name(name)
        device = find_device(device)
    dtype = short_name(dtype) if isinstance(dtype, torch.dtype) else dtype
    where = {"revision": revision, "cache_dir": cache_dir}
    return AutoDiffuseSegPipeline.from_pretrained(name, base_model, device, dtype=dtype, lora=lora, **where)


def load_pipelines(
    names: Sequence[str],
    revision: str | None = None,
    base_model: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    **options: Any,
) -> dict[str, Segmenter]:
    """Loads several models, by name, as [`load_pipeline`] does.

    Raises:
        UserError: A model cannot be loaded, or there are several that the revision or the base may be of.
    """
    parts = {name: [name] if os.path.exists(name) else name.split(JOINED) for name in names}
    every = list(dict.fromkeys(part for own in parts.values() for part in own))
    for part in every:
        if not part.endswith(ONNX):
            check_name(part)
    on_hub = [part for part in every if hub_name(part)]
    if revision is not None and len(on_hub) > 1:
        raise UserError(f"--revision can be of any of {', '.join(on_hub)}; download them, and give folders.")
    heads = []
    if base_model is not None:
        for part in every:
            with errors_explained(part):
                if not part.endswith(ONNX) and find_kind(part, revision=revision, cache_dir=cache_dir) == COMPOSED:
                    heads.append(part)
        if len(heads) > 1:
            raise UserError(f"--base_model can be of any of {', '.join(heads)}; give one of them at a time.")
    found = {}
    for name, own in parts.items():
        base = base_model if set(own) & set(heads) or not heads else None  # with no such head, loading refuses it
        found[name] = load_pipeline(name, revision, base_model=base, cache_dir=cache_dir, **options)
    return found


def save_fitted(
    pipe: Any, folder: Path, name: str, revision: str | None = None, cache_dir: str | os.PathLike | None = None
) -> None:
    """Saves a pipeline of [`load_pipeline`] with its head, or several heads on it, and its U-Net in the precision in
    which it was found.

    The name, revision and cache are those that [`load_pipeline`] was given.
    """

    def found() -> DiffuseSegPipeline:
        where: dict[str, Any] = dict(segmentation_head=None, revision=revision, cache_dir=cache_dir)
        return DiffuseSegPipeline.from_pretrained(find_model(name), **where, **own_parts(name))

    original = pipe
    if isinstance(pipe, DiffuseSegPipeline):
        original = found()
        original.segmentation_head = pipe.segmentation_head
    original.save_pretrained(folder)
    if isinstance(pipe, AveragedSegmenter) and (folder / BASE).is_dir():
        found().save_pretrained(folder / BASE)
    trained = Path(find_model(name)) / "training_state.json"
    has_denoiser = isinstance(pipe, DiffuseSegPipeline) or (folder / BASE).is_dir()
    if (
        has_denoiser and trained.is_file() and not own_parts(name)
    ):  # how the U-Net was trained belongs to what it became
        shutil.copy(trained, folder)
