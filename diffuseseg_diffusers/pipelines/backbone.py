# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A pipeline that segments images with a head on a frozen vision model of `transformers`."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import AutoImageProcessor, AutoModel

from ..features.base import Block, FeatureExtractor
from ..features.families import find_family
from ..jobs.errors import UserError
from ..jobs.hub_errors import explain_hub_error
from .segmenter import HeadPipeline


class BackbonePipeline(HeadPipeline, DiffusionPipeline):
    """Segments images with a head on the features of a frozen model of any known family; it generates none.

    Args:
        backbone (`PreTrainedModel`): A vision model, see [`VisionFeatureExtractor`].
        image_processor: The backbone's.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Fitted by [`fit_segmentation_head`].
    """

    _optional_components = ["segmentation_head"]

    def __init__(self, backbone, image_processor, segmentation_head=None):
        super().__init__()
        self.register_modules(backbone=backbone, image_processor=image_processor, segmentation_head=segmentation_head)

    def feature_extractor(
        self, blocks: Sequence[Block] | None = None, timesteps: Sequence[int] | None = None, **choice: Any
    ) -> FeatureExtractor:
        family = find_family(self.components)
        return family.of(self, blocks=blocks, timesteps=timesteps, device=self._execution_device, **choice)


def load_backbone(
    name: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    cache_dir: str | None = None,
) -> BackbonePipeline:
    """A pipeline without a head, of a vision model of `transformers`; runs no code of the repository.

    Args:
        name (`str`): Hub name or folder, such as `facebook/vit-mae-base`.
        device, dtype: Where and in which precision it runs.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        cache_dir (`str`, *optional*): Where downloads are kept.

    Raises:
        UserError: It cannot be loaded; says why.
    """
    where = dict(revision=revision or "main", cache_dir=cache_dir, trust_remote_code=False)
    try:
        backbone = AutoModel.from_pretrained(name, dtype=dtype, use_safetensors=True, **where)
        processor = AutoImageProcessor.from_pretrained(name, **where)
    except (OSError, ValueError) as error:
        reason = None if os.path.isdir(name) else explain_hub_error(error)
        raise UserError(f"The backbone {name} cannot be loaded: {reason or error}") from error
    return BackbonePipeline(backbone.to(device), processor)
