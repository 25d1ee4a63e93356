# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Other representations in the U-Net's seat: hidden states of a vision backbone of `transformers` as pixel features.

The baselines of Baranchuk et al. (ICLR 2022), section 4: the same head on the activations of MAE, SwAV and the like.
"""

import inspect
import os
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from .features import DecoderFeatures, FeatureInfo
from .hub_errors import explain_hub_error
from .image_processor import DiffuseSegImageProcessor, ImageInput, default_palette, mask_to_pil
from .pipeline_diffuseseg import DiffuseSegPipelineOutput, extract_views, predict_masks


DEFAULT_SIZE = 224  # of images, where neither image processor nor config say one


class BackboneExtractor:
    """Hidden states of a vision backbone in place of [`DecoderFeatureExtractor`]: no noise, and a single timestep, 0.

    Args:
        backbone (`PreTrainedModel`): A vision model with hidden states: a ViT of any kind, a ResNet, Swin, ConvNeXt.
        image_processor: Its image processor, which says how images are normalised.
        blocks (sequence of `int`, *optional*):
            Hidden states, counted as the model returns them, the first is 0; four spread evenly over the depth if not
            given.
        size (two `int`, *optional*): Height and width at which it sees images; its own if not given.

    Raises:
        ValueError: The backbone gives no hidden states with a place in the image, or not those that were asked for.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        image_processor,
        blocks: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
    ):
        if "pixel_values" not in inspect.signature(backbone.forward).parameters:
            raise ValueError(f"{type(backbone).__name__} takes no images; a backbone is a vision model.")
        self.backbone, self.timesteps, self.in_channels = backbone, (0,), 3
        self.mean, self.std = (
            torch.tensor(getattr(image_processor, name, None) or [0.5] * 3).view(3, 1, 1)
            for name in ("image_mean", "image_std")
        )
        self.size = size or own_size(backbone, image_processor)
        with torch.no_grad():
            states = self._states(torch.zeros(1, 3, *self.size, device=self.device))
        total = len(states)
        if blocks is None:
            blocks = sorted({round(total * part / 4) - 1 for part in (1, 2, 3, 4)} - {-1})
        for block in blocks:
            if not 0 <= block < total:
                raise ValueError(f"Hidden state {block} does not exist: this backbone has 0 to {total - 1}.")
        self.blocks = tuple(sorted(blocks))
        self._info = [FeatureInfo(b, 0, *states[b].shape[1:]) for b in self.blocks]

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def feature_info(self, *size: int) -> list[FeatureInfo]:
        """Describes the activations, as [`DecoderFeatureExtractor.feature_info`]; the size is the backbone's own."""
        return self._info

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, class_labels=None, generator=None) -> DecoderFeatures:
        """The hidden states of a batch of images, `[N, 3, H, W]` in [-1, 1]; the other arguments are not used."""
        states = self._states(images.to(self.device))
        return DecoderFeatures(activations=[states[b] for b in self.blocks], info=self._info)

    def _states(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states as `[N, channels, h, w]`, from images in [-1, 1]."""
        pixels = ((images / 2 + 0.5 - self.mean.to(images)) / self.std.to(images)).to(self.dtype)  # [N,3,H,W]
        accepted = inspect.signature(self.backbone.forward).parameters
        options = {}
        if "interpolate_pos_encoding" in accepted:
            options["interpolate_pos_encoding"] = True
        if "noise" in accepted and hasattr(self.backbone.config, "mask_ratio"):
            # MAE drops and shuffles patches by this noise; in ascending order and with none dropped, it does neither.
            self.backbone.config.mask_ratio = 0.0
            patch = self.backbone.config.patch_size
            patches = (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)
            options["noise"] = torch.arange(patches, device=pixels.device).float().expand(len(pixels), -1)
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            output = self.backbone(pixels, output_hidden_states=True, **options)
        finally:
            self.backbone.train(was_training)
        states = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None)
        if not states:
            raise ValueError(f"{type(self.backbone).__name__} gives no hidden states; it cannot be a backbone here.")
        return [self._in_space(state, pixels.shape[-2:]) for state in states]

    def _in_space(self, state: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        if state.ndim == 4:
            return state  # [N,c,h,w]
        patch = getattr(self.backbone.config, "patch_size", None)
        if state.ndim == 3 and isinstance(patch, int):
            height, width = (side // patch for side in size)
            others = state.shape[1] - height * width  # class and register tokens stand first
            if others >= 0:
                return state[:, others:].mT.unflatten(2, (height, width))  # [N,c,h,w]
        raise ValueError(
            f"The hidden states of {type(self.backbone).__name__} have the shape {list(state.shape)}, which has no "
            f"place in the image; a backbone needs maps [N, channels, height, width], or a token for each patch."
        )


def own_size(backbone: PreTrainedModel, image_processor) -> tuple[int, int]:
    """Height and width of the images that a backbone was trained on, as far as it says."""
    for size in (getattr(image_processor, "crop_size", None), getattr(image_processor, "size", None)):
        size = dict(size or {})
        if "height" in size:
            return size["height"], size["width"]
        if "shortest_edge" in size:
            return size["shortest_edge"], size["shortest_edge"]
    size = getattr(backbone.config, "image_size", DEFAULT_SIZE)
    return (size, size) if isinstance(size, int) else tuple(size)


class BackbonePipeline(DiffusionPipeline):
    """Segments images with a head on the hidden states of a vision backbone; the seat of [`DiffuseSegPipeline`].

    Args:
        backbone (`PreTrainedModel`): See [`BackboneExtractor`].
        image_processor: The backbone's.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Fitted by [`fit_segmentation_head`].
    """

    _optional_components = ["segmentation_head"]

    def __init__(self, backbone, image_processor, segmentation_head=None):
        super().__init__()
        self.register_modules(backbone=backbone, image_processor=image_processor, segmentation_head=segmentation_head)

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        # diffusers would not save a component that was None when the pipeline was made.
        if name == "segmentation_head" and value is not None and self.config.segmentation_head[0] is None:
            self.register_modules(segmentation_head=value)

    def feature_extractor(self, blocks: Sequence[int] | None = None) -> BackboneExtractor:
        """The extractor of these hidden states; of those that the head was fitted on, if there is one."""
        head = self.segmentation_head
        if head is not None:
            return BackboneExtractor(
                self.backbone, self.image_processor, head.config.blocks, tuple(head.config.image_size)
            )
        return BackboneExtractor(self.backbone, self.image_processor, blocks)

    @property
    def palette(self) -> list[list[int]]:
        """Colour of each class, `[red, green, blue]`, 0 to 255."""
        return self.segmentation_head.config.palette or default_palette(self.segmentation_head.config.num_classes)

    @property
    def label_names(self) -> list[str]:
        """Name of each class; "class 0", "class 1", … if the head does not know."""
        config = self.segmentation_head.config
        return list(config.label_names or [f"class {i}" for i in range(config.num_classes)])

    @torch.no_grad()
    def segment(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 8,
        mask_size: tuple[int, int] | None = None,
        output_type: str = "pil",
    ) -> DiffuseSegPipelineOutput:
        """Segments pictures of any size and mode, as [`DiffuseSegPipeline.segment`] does.

        Raises:
            ValueError: There is no head, or an image cannot be read.
        """
        if self.segmentation_head is None:
            raise ValueError("This pipeline has no segmentation head; fit one with `fit_segmentation_head`.")
        extractor, processor = self.feature_extractor(), DiffuseSegImageProcessor(3)
        loaded = processor.load(images)
        masks, uncertainty = [], []
        for start in range(0, len(loaded), batch_size):
            batch = loaded[start : start + batch_size]
            sizes = [tuple(mask_size)] * len(batch) if mask_size else processor.sizes(batch)
            views = extract_views(extractor, self.segmentation_head, processor.preprocess(batch, *extractor.size))
            batch_masks, batch_uncertainty = predict_masks(self.segmentation_head, *views, sizes)
            masks += [m.numpy() for m in batch_masks]
            uncertainty += [u.numpy() for u in batch_uncertainty]
        if output_type == "pil":
            masks = [mask_to_pil(m, self.palette) for m in masks]
        return DiffuseSegPipelineOutput(images=loaded, masks=masks, uncertainty=uncertainty)


def load_backbone(
    name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> BackbonePipeline:
    """A pipeline without a head, of a vision model of `transformers`.

    Args:
        name (`str`): Hub name or folder, such as `facebook/vit-mae-base`.
        device, dtype: Where and how it runs.

    Raises:
        ValueError: It cannot be loaded; says why.
    """
    try:
        backbone = AutoModel.from_pretrained(name, dtype=dtype)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = None if os.path.isdir(name) else explain_hub_error(error)
        raise ValueError(f"The backbone {name} cannot be loaded: {reason or error}") from error
    return BackbonePipeline(backbone.to(device), processor)
