# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Loads whatever segments images, from a folder or the Hub; runs no code of a repository."""

import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError

from ..jobs.errors import UserError
from ..jobs.files import JOINED, read_json
from ..jobs.hardware import default_dtype, find_device, find_dtype
from ..jobs.hub_errors import explain_hub_error
from ..jobs.install import missing_extra
from .auto import AutoDiffuseSegPipeline, is_pixel_index
from .averaged import AveragedSegmenter
from .composed import ComposedDiffuseSegPipeline
from .pixel import DiffuseSegPipeline
from .segmenter import Segmenter


logger = logging.get_logger(__name__)
ONNX = ".onnx"
INDEX, CONFIG = "model_index.json", "config.json"  # of a pipeline, and of a model of transformers


def load_pipeline(
    name: str,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    cache_dir: str | os.PathLike | None = None,
    base_model: str | None = None,
) -> Segmenter:
    """Loads a pipeline, with or without a head, or a student, ready to run.

    Args:
        name (`str`): Local folder or Hub name of a [`DiffuseSegPipeline`], any pipeline of diffusers whose denoiser is
            of a known family, a head on such a one, a [`BackbonePipeline`], or a student; or an ONNX file of one.
            Several of them, joined by ` + `, segment together, see [`AveragedSegmenter`].
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        device (`str` or `torch.device`, *optional*): See [`default_device`].
        dtype (`str` or `torch.dtype`, defaults to `"auto"`): See [`find_dtype`].
        cache_dir (`str` or path, *optional*): Folder in which downloads are kept.
        base_model (`str`, *optional*): Where the base of a head is, if not where the head says.

    Raises:
        UserError: There is no such model, in a folder or on the Hub, or it is of an unknown kind.
    """
    name = os.fspath(name)
    if JOINED in name and not os.path.exists(name):
        parts = name.split(JOINED)
        if len({os.path.realpath(part) if os.path.exists(part) else part for part in parts}) < len(parts):
            raise UserError(f"{name} names a model twice; give every model once.")
        return AveragedSegmenter(load_pipelines(parts, revision, device, dtype, cache_dir, base_model))
    if name.endswith(ONNX):
        if base_model is not None:
            raise UserError(f"{name} is no head on another pipeline; leave --base_model out.")
        try:
            onnx_student = _named("students.export:OnnxStudent")
        except ModuleNotFoundError as error:
            raise missing_extra("train", error.name) from error
        asked = [str(device)] if device is not None and find_device(device).type != "cpu" else []
        asked += [dtype] if isinstance(dtype, str) and dtype not in ("auto", "float32") else []
        tell = logger.warning if asked else logger.info
        tell("%s: float32 on cpu (ONNX Runtime%s)", name, f", not {' and '.join(asked)}" if asked else "")
        return onnx_student(name)
    _check_name(name)
    device = find_device(device)
    with _errors_explained(name):
        kind = _kind(name, revision, cache_dir)
        agreement = {}
        if dtype == "auto" and default_dtype(device) != torch.float32:
            agreement = _agreement(name, kind, revision, cache_dir)
        precision = find_dtype(dtype, device, name, agreement)
        where = {"revision": revision, "cache_dir": cache_dir}
        if kind == COMPOSED:
            where["base_model"] = base_model
        elif base_model is not None:
            raise UserError(f"{name} is no head on another pipeline; leave --base_model out.")
        load = LOADERS[kind]
        return (_named(load) if isinstance(load, str) else load)(name, device, precision, **where)


def load_pipelines(
    names: Sequence[str],
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str = "auto",
    cache_dir: str | os.PathLike | None = None,
    base_model: str | None = None,
) -> dict[str, Segmenter]:
    """Loads several models as [`load_pipeline`] does; `revision` and `base_model` are of the one that they can be of.

    Returns:
        `dict`: Each model by its name.

    Raises:
        UserError: A model cannot be loaded, or there are several that the revision or the base may be of.
    """
    parts = {name: [name] if os.path.exists(name) else name.split(JOINED) for name in names}
    every = list(dict.fromkeys(part for own in parts.values() for part in own))
    for part in every:
        if not part.endswith(ONNX):
            _check_name(part)
    on_hub = [part for part in every if not os.path.exists(part)]
    if revision is not None and len(on_hub) > 1:
        raise UserError(f"--revision can be of any of {', '.join(on_hub)}; download them, and give folders.")
    heads = []
    if base_model is not None:
        for part in every:
            with _errors_explained(part):
                if not part.endswith(ONNX) and _kind(part, revision, cache_dir) == COMPOSED:
                    heads.append(part)
        if len(heads) > 1:
            raise UserError(f"--base_model can be of any of {', '.join(heads)}; give one of them at a time.")
    found = {}
    for name, own in parts.items():
        base = base_model if set(own) & set(heads) or not heads else None  # with no such head, loading refuses it
        found[name] = load_pipeline(name, revision, device, dtype, cache_dir, base)
    return found


def _check_name(name: str) -> None:
    """Raises [`UserError`] if a name is of no folder, and none that the Hub could have."""
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        hint = f' Models that segment together are joined by "{JOINED}", with spaces.' if "+" in name else ""
        raise UserError(f"There is no folder {name}.{hint}")


@contextmanager
def _errors_explained(name: str) -> Iterator[None]:
    """Makes a sentence of what libraries raise where a model cannot be loaded."""
    try:
        yield
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise missing_extra("train", error.name) from error
    except Exception as error:
        reason = None if os.path.isdir(name) else explain_hub_error(error)
        if reason is not None:
            message = f"There is no folder {name}, and the pipeline {name} cannot be loaded: {reason}."
        # What the libraries say of broken files, and diffusers of classes that it does not have.
        elif isinstance(error, (OSError, ValueError, SafetensorError, AttributeError)):
            message = f"The pipeline {name} cannot be loaded: {error}"
        else:
            raise
        raise UserError(message) from error


def save_fitted(
    pipe: Any,
    folder: Path,
    name: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> None:
    """Saves a pipeline with its head; its U-Net as it was, not in the precision that it ran in.

    Args:
        pipe ([`HeadSegmenter`]): What [`load_pipeline`] gave, with a head by now.
        folder (`Path`): Where to.
        name (`str`), revision (`str`, *optional*), cache_dir (path, *optional*): As given to [`load_pipeline`].
    """
    original = pipe
    if isinstance(pipe, DiffuseSegPipeline):
        where = dict(revision=revision, cache_dir=cache_dir)
        original = DiffuseSegPipeline.from_pretrained(name, segmentation_head=None, **where)
        original.segmentation_head = pipe.segmentation_head
    original.save_pretrained(folder)
    trained = Path(name) / "training_state.json"
    if trained.is_file():  # how the U-Net was trained belongs to what it became
        shutil.copy(trained, folder)


def _load_pixel(name: str, device: torch.device, dtype: torch.dtype, **where: Any) -> DiffuseSegPipeline:
    """A [`DiffuseSegPipeline`]; of pickled weights alone it takes plain DDPMs, see [`DiffuseSegPipeline.download`]."""
    # The head computes in the dtype of the activations whatever its own is, so its weights keep all their digits.
    dtypes = {"unet": dtype, "default": torch.float32}
    pipe = DiffuseSegPipeline.from_pretrained(name, dtype=dtypes, trust_remote_code=False, **where)
    pipe.unet.to(memory_format=torch.channels_last)  # convolutions are up to a third faster
    return pipe.to(device)


def _load_backbone(name: str, device: torch.device, dtype: torch.dtype, **where: Any) -> Segmenter:
    from .backbone import BackbonePipeline  # transformers is of the extra `train`

    dtypes = {"backbone": dtype, "default": torch.float32}
    safe = {"trust_remote_code": False, "use_safetensors": True}
    return BackbonePipeline.from_pretrained(name, dtype=dtypes, **safe, **where).to(device)


def _load_composed(name: str, device: torch.device, dtype: torch.dtype, **where: Any) -> Segmenter:
    """Any other pipeline of diffusers; that its denoiser is not known is found out when it is loaded."""
    pipe: Any = AutoDiffuseSegPipeline.from_pretrained(name, dtype=dtype, **where)
    return pipe.to(device)


def _named(where: str) -> Any:
    """Imports `"module:name"` of the package; the rooms above this one are only needed for some models."""
    module, name = where.split(":")
    return getattr(importlib.import_module(f"..{module}", __package__), name)


# Which class loads what: by `_class_name` in the index of a pipeline or in the config of a model of diffusers, or by
# the end of the class in `architectures` of one of transformers. Of pipelines with a U-Net for pixels, nothing else is
# used; all others of diffusers are composed with a head.
COMPOSED = ComposedDiffuseSegPipeline.__name__
LOADERS: dict[str, Callable | str] = {
    COMPOSED: _load_composed,
    "DiffuseSegPipeline": _load_pixel,
    "DDPMPipeline": _load_pixel,
    "DDIMPipeline": _load_pixel,
    "BackbonePipeline": _load_backbone,
    "ForSemanticSegmentation": "students.student:load_student",
    "UNet2DModel": "students.unets:load_unet_student",
}


def _kind(name: str, revision: str | None, cache_dir: str | os.PathLike | None) -> str:
    """The key in `LOADERS` of what a folder or a repository holds.

    Raises:
        UserError: It is none of these.
    """
    index = _read(name, INDEX, revision, cache_dir)
    if index is not None and not isinstance(index, dict):
        raise UserError(f"The {INDEX} of {name} holds no object of components; repair or replace it.")
    if index is not None:
        given = index.get("_class_name")
        kind = given[-1] if isinstance(given, list) else given
        if kind is not None and kind not in LOADERS:
            kind = "DDPMPipeline" if is_pixel_index(index) else COMPOSED
    else:
        index = _read(name, CONFIG, revision, cache_dir) or {}
        given = next(iter(index.get("architectures") or []), index.get("_class_name"))
        kind = next((key for key in LOADERS if given and given.endswith(key)), None)
    if kind not in LOADERS:
        found = f"a {given}" if given else f"no pipeline: it has no {INDEX}"
        raise UserError(f"{name} holds {found}; what can be loaded is {', '.join(LOADERS)}.")
    return kind


# What says how well precisions agree; DDPMs have no head, and heads on other pipelines were not compared.
WITH_AGREEMENT = {
    "DiffuseSegPipeline": f"segmentation_head/{CONFIG}",
    "BackbonePipeline": f"segmentation_head/{CONFIG}",
    "ForSemanticSegmentation": CONFIG,
    "UNet2DModel": "student.json",
}


def _agreement(name: str, kind: str, revision: str | None, cache_dir: str | os.PathLike | None) -> dict[str, float]:
    """By precision, the share of the pixels on which masks are those in float32, if the model says it."""
    if kind not in WITH_AGREEMENT:
        return {}
    try:
        config = _read(name, WITH_AGREEMENT[kind], revision, cache_dir)
    except LocalEntryNotFoundError:  # without a network: a model without a head, perhaps
        return {}
    found = config.get("agreement") if isinstance(config, dict) else None
    found = found if isinstance(found, dict) else {}
    return {dtype: share for dtype, share in found.items() if isinstance(share, float) and 0 <= share <= 1}


def _read(name: str, file: str, revision: str | None, cache_dir: str | os.PathLike | None) -> dict | None:
    """A JSON file of a folder or a repository; `None` if it has no such file."""
    if os.path.isdir(name):
        return read_json(Path(name, file)) if Path(name, file).is_file() else None
    try:
        return read_json(hf_hub_download(name, file, revision=revision, cache_dir=cache_dir))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the Hub was not asked
            raise
        return None
