# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A pipeline that segments images with a head on a frozen vision model of `transformers`."""

import os
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import AutoImageProcessor, AutoModel

from ..features.base import FeatureExtractor
from ..features.families import find_family
from ..jobs.errors import UserError
from ..jobs.hub_errors import explain_hub_error
from .saved_code import hub_options
from .segmenter import HeadPipeline


class BackbonePipeline(HeadPipeline, DiffusionPipeline):
    """Segments images with a head on the features of a frozen vision model; does not generate.

    Args:
        backbone (`PreTrainedModel`): A vision model, see [`VisionFeatureExtractor`].
        image_processor: The backbone's.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Fitted by [`fit_segmentation_head`].

    Examples:
        >>> pipe = BackbonePipeline.from_pretrained("facebook/dinov2-small")
        >>> pipe.segmentation_head = fit_segmentation_head(pipe, dataset)
        >>> pipe.save_pretrained("out/dinov2")
    """

    _optional_components = ["segmentation_head"]

    def __init__(self, backbone, image_processor, segmentation_head=None):
        super().__init__()
        self.register_modules(backbone=backbone, image_processor=image_processor, segmentation_head=segmentation_head)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> "BackbonePipeline":
        """Loads a saved pipeline, or a vision model of transformers without a head; runs no code of a repository.

        Args:
            pretrained_model_name_or_path (`str` or path): Folder or Hub name, such as `facebook/vit-mae-base`.
            **kwargs: As in [`DiffusionPipeline.from_pretrained`].

        Raises:
            UserError: The vision model cannot be loaded; says why.
        """
        name = os.fspath(pretrained_model_name_or_path)
        kwargs = {"use_safetensors": True, **kwargs, "trust_remote_code": False}
        where = hub_options(kwargs)
        try:
            is_pipeline = bool(cls.load_config(name, **where))
        except OSError:  # one model; or the next request says why the Hub does not answer
            is_pipeline = False
        if is_pipeline:
            return super().from_pretrained(name, **kwargs)
        where["revision"] = where.get("revision") or "main"
        dtype = kwargs.pop("dtype", torch.float32)
        dtype = dtype.get("backbone", dtype.get("default")) if isinstance(dtype, dict) else dtype
        try:
            backbone = AutoModel.from_pretrained(name, dtype=dtype, **{**kwargs, **where})
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **where)
        except (OSError, ValueError) as error:
            reason = None if os.path.isdir(name) else explain_hub_error(error)
            raise UserError(f"The backbone {name} cannot be loaded: {reason or error}") from error
        return cls(backbone, processor)

    @property
    def family(self) -> type[FeatureExtractor]:  # type: ignore[override]
        return find_family(self.components)


def load_backbone(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> BackbonePipeline:
    """[`BackbonePipeline.from_pretrained`] on a device."""
    return BackbonePipeline.from_pretrained(name, dtype=dtype, revision=revision, cache_dir=cache_dir).to(device)
