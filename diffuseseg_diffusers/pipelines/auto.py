# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The one loader: everything that segments, from a folder, a file or the Hub; runs no code of a repository."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import SafetensorError

from ..features.families import find_family
from ..features.pixel_unet import DecoderFeatureExtractor
from ..heads.ensemble import PixelClassifierEnsemble
from ..jobs.errors import UserError
from ..jobs.files import read_json
from ..jobs.hardware import default_dtype, find_device, find_dtype
from ..jobs.hub_errors import explain_hub_error
from ..jobs.install import missing_extra
from .composed import HEAD, INDEX, ComposedDiffuseSegPipeline
from .general import comes_with_package, find_model, own_parts
from .pixel import DiffuseSegPipeline
from .saved_code import hub_options
from .segmenter import HeadSegmenter, Segmenter
from .variants import load_variant


logger = logging.get_logger(__name__)
ONNX, CONFIG = ".onnx", "config.json"
CONSISTENCY = "CMStochasticIterativeScheduler"  # needs the sampling loop of its own pipeline

# Which class loads what, imported when needed: by `_class_name` in the index of a pipeline or in the config of a model
# of diffusers, or by the end of the class in `architectures` of one of transformers. All pipelines of diffusers that
# are not listed are composed with a head.
COMPOSED, PIXEL, BACKBONE = "ComposedDiffuseSegPipeline", "DiffuseSegPipeline", "BackbonePipeline"
AVERAGED = "AveragedSegmenter"
KINDS = {
    COMPOSED: "pipelines.composed:ComposedDiffuseSegPipeline",
    PIXEL: "pipelines.pixel:DiffuseSegPipeline",
    "DDPMPipeline": "pipelines.pixel:DiffuseSegPipeline",
    "DDIMPipeline": "pipelines.pixel:DiffuseSegPipeline",
    BACKBONE: "pipelines.backbone:BackbonePipeline",
    AVERAGED: "pipelines.averaged:AveragedSegmenter",
    "ForSemanticSegmentation": "students.student:StudentSegmenter",
    "UNet2DModel": "students.unets:UNetStudent",
    "PlainUNet": "students.unets:UNetStudent",
    ONNX: "students.export:OnnxStudent",
}
# Where the share of pixels is recorded on which masks in lower precision agree with those in float32.
AGREEMENT = {PIXEL: f"{HEAD}/{CONFIG}", BACKBONE: f"{HEAD}/{CONFIG}", "ForSemanticSegmentation": CONFIG}
AGREEMENT |= {"UNet2DModel": "student.json", "PlainUNet": "student.json", AVERAGED: INDEX}


class AutoDiffuseSegPipeline:
    """Factory for everything that segments; cannot be instantiated."""

    def __init__(self) -> None:
        raise TypeError(f"Use `{type(self).__name__}.from_pretrained` or `{type(self).__name__}.from_pipe`.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        base_model: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a pipeline, a head with its base, a vision backbone, a student, an ONNX file or several of them.

        Args:
            pretrained_model_name_or_path (`str` or path): Folder or Hub name of a pipeline of diffusers whose denoiser
                is of a known family, of a head as [`ComposedDiffuseSegPipeline.save_pretrained`] saves it, of a vision
                model of transformers, with or without a head, of a student, or of what [`AveragedSegmenter`] saved;
                the path of an ONNX file; or `"general"`, the denoiser that comes with the package, or `"untrained"`,
                the same without training.
            base_model (`str` or path, *optional*): Where the base of a head is, if not where the head says.
            device (`str` or `torch.device`, *optional*): Where to; the CPU if not given. ONNX files run on the CPU.
            **kwargs: As in [`DiffusionPipeline.from_pretrained`]. A `torch.dtype` as `dtype` converts head and model; a
                name, `"auto"`, `"bfloat16"`, …, is the precision of the model, and the head keeps float32. Weights that
                are there as a variant alone, such as `fp16`, are loaded with a warning. `lora` lists LoRAs to load onto
                a pipeline of diffusers: `PATH_OR_NAME` or `PATH_OR_NAME=SCALE`.

        Returns:
            [`Segmenter`]: [`DiffuseSegPipeline`] for U-Nets on pixels, [`ComposedDiffuseSegPipeline`] for all other
            pipelines of diffusers, [`BackbonePipeline`], [`StudentSegmenter`], [`UNetStudent`], [`OnnxStudent`] or
            [`AveragedSegmenter`].

        Raises:
            UserError: There is no such model, it is of an unknown kind, or the base is not the one that the head was
                fitted on.

        Examples:
            >>> pipe = AutoDiffuseSegPipeline.from_pretrained("out/model", device="cuda", dtype="auto")
            >>> mask = pipe.segment("photo.jpg").masks[0]  # a palette image of class ids
        """
        name, own = find_model(pretrained_model_name_or_path), own_parts(pretrained_model_name_or_path)
        kwargs.pop("trust_remote_code", None)
        kind = ONNX
        if not name.endswith(ONNX):
            check_name(name)
            with errors_explained(name):
                kind = find_kind(name, **hub_options(kwargs))
        if kind == COMPOSED:
            kwargs["base_model"] = None if base_model is None else find_model(base_model)
        elif base_model is not None:
            raise UserError(f"{name} is not a head on another pipeline; leave --base_model out.")
        elif kwargs.pop("lora", None):
            raise UserError(f"{name} takes no LoRA; leave --lora out.")
        with errors_explained(name):
            return _load(name, kind, device, kwargs | own)

    @classmethod
    def from_pipe(
        cls, pipe: DiffusionPipeline, segmentation_head: PixelClassifierEnsemble | None = None
    ) -> HeadSegmenter:
        """A pipeline in memory, of a known family, with a head; its models are shared, not copied.

        Raises:
            UserError: The pipeline is of no known family, or the head was fitted on another one.

        Examples:
            >>> pipe = AutoDiffuseSegPipeline.from_pipe(StableDiffusionPipeline.from_pretrained("user/model"))
        """
        if isinstance(pipe, HeadSegmenter):
            if segmentation_head is not None:
                pipe.segmentation_head = segmentation_head
            return pipe
        is_pixel = find_family(pipe.components) is DecoderFeatureExtractor
        if is_pixel and type(pipe.scheduler).__name__ != CONSISTENCY:
            return DiffuseSegPipeline(pipe.unet, pipe.scheduler, segmentation_head)
        name = pipe.config.get("_name_or_path")
        return ComposedDiffuseSegPipeline(pipe, segmentation_head, name or None)


def _load(name: str, kind: str, device: str | torch.device | None, kwargs: dict[str, Any]) -> Segmenter:
    """The model of a known kind, on a device, in the precision of that name."""
    module, _, class_name = KINDS[kind].rpartition(":")
    segmenter = getattr(importlib.import_module(f"..{module}", __package__), class_name)
    asked = kwargs.get("dtype")
    if kind == ONNX:
        wanted = [str(device)] if device is not None and find_device(device).type != "cpu" else []
        wanted += [str(asked)] if asked not in (None, "auto", "float32", torch.float32) else []
        tell = logger.warning if wanted else logger.info
        student = segmenter(name)
        unlike = f", not {' and '.join(wanted)}" if wanted else ""
        tell("%s: %s on cpu (ONNX Runtime%s)", name, student.precision, unlike)
        return student
    place = find_device(device) if device is not None else torch.device("cpu")
    if isinstance(asked, str):
        measured = asked == "auto" and default_dtype(place) != torch.float32
        share = _agreement(name, kind, kwargs) if measured else {}
        precision = find_dtype(asked, place, name, share)
        part = {COMPOSED: HEAD, BACKBONE: "backbone"}.get(kind, "unet")
        parts = {part: torch.float32, "default": precision} if kind == COMPOSED else {part: precision}
        is_pipeline = issubclass(segmenter, HeadSegmenter)
        kwargs["dtype"] = {"default": torch.float32, **parts} if is_pipeline else precision
    if segmenter is DiffuseSegPipeline:  # said in every call, so that no change of a default runs code; others do so
        kwargs["trust_remote_code"] = False
    if kind != COMPOSED:  # which looks for variants of head and base
        loaded = load_variant(segmenter.from_pretrained, name, **kwargs)
    else:
        loaded = segmenter.from_pretrained(name, **kwargs)
    if "unet" in kwargs and asked is not None:  # diffusers converts only what it loads
        loaded.unet.type(precision if isinstance(asked, str) else asked)  # of which `to` would warn
    if isinstance(loaded, DiffuseSegPipeline):
        loaded.unet.to(memory_format=torch.channels_last)  # convolutions are up to a third faster
    return loaded if device is None else loaded.to(place)


def check_name(name: str) -> None:
    """Raises [`UserError`] if a name is no folder, of no model of the package, and none that the Hub could have."""
    if comes_with_package(name):
        return
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        hint = ' Models that segment together are joined by " + ", with spaces.' if "+" in name else ""
        raise UserError(f"There is no folder {name}.{hint}")


@contextmanager
def errors_explained(name: str) -> Iterator[None]:
    """Turns what libraries raise where a model cannot be loaded into a [`UserError`] of one sentence."""
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


def find_kind(name: str, **where: Any) -> str:
    """The key in `KINDS` of what a folder or a repository holds; raises [`UserError`] for others.

    `where` is `revision`, `cache_dir`, … as in `hf_hub_download`.
    """
    name = find_model(name)
    index = _read(name, INDEX, where)
    if index is not None and not isinstance(index, dict):
        raise UserError(f"The {INDEX} of {name} holds no object of components; repair or replace it.")
    if index is not None:
        given = index.get("_class_name")
        kind = given[-1] if isinstance(given, list) else given
        if kind is not None and kind not in KINDS:
            kind = PIXEL if is_pixel_index(index) else COMPOSED
    else:
        index = _read(name, CONFIG, where) or {}
        given = next(iter(index.get("architectures") or []), index.get("_class_name"))
        kind = next((key for key in KINDS if given and given.endswith(key)), None)
        if kind is None and given and "model_type" in index and _read(name, "preprocessor_config.json", where):
            kind = BACKBONE
    if kind not in KINDS:
        found = f"a {given}" if given else f"no pipeline: it has no {INDEX}"
        raise UserError(f"{name} holds {found}; what can be loaded is {', '.join(KINDS)}.")
    return kind


def is_pixel_index(index: dict[str, Any]) -> bool:
    """Whether the index of a pipeline is of a U-Net on pixels, which [`DiffuseSegPipeline`] samples itself."""
    names = ("unet", "vae", "vqvae", "scheduler")
    unet, vae, vqvae, scheduler = ((index.get(name) or [None])[-1] for name in names)
    pixels = unet in ("UNet2DModel", "DiffuseSegUNet2DModel") and not (vae or vqvae)
    return pixels and scheduler != CONSISTENCY


def _agreement(name: str, kind: str, kwargs: dict[str, Any]) -> dict[str, float]:
    """By precision, the share of pixels on which masks are those in float32, if the model records it."""
    if kind not in AGREEMENT:  # DDPMs have no head; heads on other pipelines were not compared
        return {}
    try:
        config = _read(name, AGREEMENT[kind], hub_options(kwargs))
    except LocalEntryNotFoundError:  # without a network: a model without a head, perhaps
        return {}
    found = config.get("agreement") if isinstance(config, dict) else None
    found = found if isinstance(found, dict) else {}
    return {dtype: share for dtype, share in found.items() if isinstance(share, float) and 0 <= share <= 1}


def _read(name: str, file: str, where: dict[str, Any]) -> dict | None:
    """A JSON file of a folder or a repository; `None` if it has no such file."""
    if os.path.isdir(name):
        return read_json(Path(name, file)) if Path(name, file).is_file() else None
    try:
        return read_json(hf_hub_download(name, file, **where))
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):  # the Hub was not asked
            raise
        return None
