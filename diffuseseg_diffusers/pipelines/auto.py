# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One entry for every model that gives features: names and folders, and pipelines that are loaded already."""

import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from ..features.families import find_family
from ..features.pixel_unet import DecoderFeatureExtractor
from ..heads.ensemble import PixelClassifierEnsemble
from ..jobs.errors import UserError
from .composed import HEAD, ComposedDiffuseSegPipeline
from .pixel import DiffuseSegPipeline
from .segmenter import HeadSegmenter


WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision")  # arguments that say where files are


class AutoDiffuseSegPipeline:
    """Makes the pipeline with a segmentation head that suits a model; it is not made itself."""

    def __init__(self) -> None:
        raise TypeError(f"Use `{type(self).__name__}.from_pretrained` or `{type(self).__name__}.from_pipe`.")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        base_model: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> HeadSegmenter:
        """Loads any pipeline of diffusers whose denoiser is of a known family, or a head with the base that it names.

        Args:
            pretrained_model_name_or_path (`str` or path): Hub name or folder: of a pipeline of diffusers, of a
                [`DiffuseSegPipeline`], or of a head alone, as [`ComposedDiffuseSegPipeline.save_pretrained`] saves it.
            base_model (`str` or path, *optional*): Where the base of a head is, if not where the head says.
            **kwargs: As in [`DiffusionPipeline.from_pretrained`], for the base too, but for `revision`: a head says
                which of its base. Weights are read in the safetensors format alone, if not said otherwise.

        Returns:
            [`DiffuseSegPipeline`] of U-Nets on pixels, [`ComposedDiffuseSegPipeline`] of all others.

        Raises:
            UserError: The model is of no known family, or the base is not the one that the head was fitted on.
        """
        name, kwargs = os.fspath(pretrained_model_name_or_path), {"use_safetensors": True, **kwargs}
        where = {k: kwargs[k] for k in WHERE if k in kwargs}
        index = DiffusionPipeline.load_config(name, **where)
        kind = index.get("_class_name")
        if (kind[-1] if isinstance(kind, list) else kind) == ComposedDiffuseSegPipeline.__name__:
            head = PixelClassifierEnsemble.from_pretrained(name, subfolder=HEAD, **where)
            kwargs.pop("revision", None)
            pipe = cls._load_base(name, index.get("base") or {}, base_model, kwargs)
            pipe.segmentation_head = head.to(pipe.base._execution_device)
            return pipe
        if is_pixel_index(index):
            kwargs.pop("use_safetensors")
            return DiffuseSegPipeline.from_pretrained(name, trust_remote_code=False, **kwargs)
        return cls._compose(name, kwargs)

    @classmethod
    def from_pipe(
        cls, pipe: DiffusionPipeline, segmentation_head: PixelClassifierEnsemble | None = None
    ) -> HeadSegmenter:
        """A pipeline that is loaded already, with a head; its models are shared, not copied.

        Args:
            pipe (`DiffusionPipeline`): Of a known family.
            segmentation_head ([`PixelClassifierEnsemble`], *optional*): Fitted on it.

        Raises:
            UserError: The pipeline is of no known family, or the head was fitted on another one.
        """
        if isinstance(pipe, HeadSegmenter):
            if segmentation_head is not None:
                pipe.segmentation_head = segmentation_head
            return pipe
        if find_family(pipe.components) is DecoderFeatureExtractor and not is_consistency(
            type(pipe.scheduler).__name__
        ):
            return DiffuseSegPipeline(pipe.unet, pipe.scheduler, segmentation_head)
        name = pipe.config.get("_name_or_path")
        return ComposedDiffuseSegPipeline(pipe, segmentation_head, name or None)

    @classmethod
    def _compose(cls, name: str, kwargs: dict[str, Any]) -> ComposedDiffuseSegPipeline:
        revision = None
        if not os.path.isdir(name):
            asked = kwargs.get("revision")
            folder = Path(DiffusionPipeline.download(name, **kwargs))
            revision = folder.name if folder.parent.name == "snapshots" else asked
        pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=False, **kwargs)
        return ComposedDiffuseSegPipeline(pipe, None, os.path.abspath(name) if os.path.isdir(name) else name, revision)

    @classmethod
    def _load_base(
        cls, head: str, named: dict[str, Any], given: str | os.PathLike | None, kwargs: dict[str, Any]
    ) -> ComposedDiffuseSegPipeline:
        """The base of a head, from where it is given, or from where the head says."""
        name = os.fspath(given) if given is not None else named.get("model")
        if name is None:
            raise UserError(
                f"The head in {head} does not say where its base is, a {named['pipeline']}; give `base_model`."
            )
        if given is None and os.path.isabs(name) and not os.path.isdir(name):
            raise UserError(f"The base of the head in {head} is not in {name} any more; give `base_model`.")
        revision = {} if given is not None or named.get("revision") is None else {"revision": named["revision"]}
        return cls._compose(name, {**kwargs, **revision})


def is_pixel_index(index: dict[str, Any]) -> bool:
    """Whether the index of a pipeline is of a U-Net on pixels, which [`DiffuseSegPipeline`] samples itself."""

    def kind(component: str) -> str | None:
        return (index.get(component) or [None])[-1]

    latent = kind("vae") or kind("vqvae")
    return (
        kind("unet") in ("UNet2DModel", "DiffuseSegUNet2DModel")
        and not latent
        and not is_consistency(kind("scheduler") or "")
    )


def is_consistency(scheduler: str) -> bool:
    """Whether a scheduler of this name samples in a way of its own, which its pipeline knows."""
    return scheduler == "CMStochasticIterativeScheduler"
