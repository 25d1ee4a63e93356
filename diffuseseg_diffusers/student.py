# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A small segmentation network of `transformers`, and what it takes to teach it with images and masks.

DatasetGAN (Zhang et al., CVPR 2021) and DatasetDDPM of Baranchuk et al. (ICLR 2022), section 4.2, train a network on
generated pairs; it then segments in one fast pass what takes the diffusion model several slow ones.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerConfig,
)

from .augmentation import IGNORED
from .hub_errors import explain_hub_error
from .image_processor import DiffuseSegImageProcessor, ImageInput
from .pipeline_diffuseseg import DiffuseSegPipelineOutput


logger = logging.get_logger(__name__)

DEFAULT_STUDENT = "nvidia/mit-b0"  # SegFormer-B0's encoder


def make_student(name: str, label_names: Sequence[str], from_scratch: bool = False) -> PreTrainedModel:
    """A semantic-segmentation model of `transformers` for these classes.

    Args:
        name (`str`): Hub name or folder of a model, or a JSON file with its config (`model_type` and the rest).
        label_names (sequence of `str`): Names of the classes.
        from_scratch (`bool`, defaults to `False`): Fresh weights, though there are pretrained ones.

    Raises:
        ValueError: There is no such model, it is of another kind, or made for another number of classes.
    """
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {n: i for i, n in enumerate(label_names)}}
    if name.endswith(".json"):
        given = json.loads(Path(name).read_text(encoding="utf-8"))
        number = given.get("num_labels") or len(given.get("id2label") or label_names)
        if number != len(label_names):
            raise ValueError(f"{name} is for {number} classes, but the dataset has {len(label_names)}.")
        if "model_type" not in given:
            raise ValueError(f"{name} must hold the config of a transformers model, with its model_type.")
        given = {k: v for k, v in given.items() if k not in ("num_labels", "id2label", "label2id")}
        try:
            config = AutoConfig.for_model(given.pop("model_type"), **given, **labels)
        except Exception as error:  # each kind of config checks in its own way
            raise ValueError(f"transformers does not take the config {name}: {error}") from error
        return _from_config(config, name)
    if from_scratch and name == DEFAULT_STUDENT:
        return _from_config(SegformerConfig(**labels), name)  # its defaults are B0, and the Hub need not be asked
    try:
        if from_scratch:
            return _from_config(AutoConfig.from_pretrained(name, **labels), name)
        return AutoModelForSemanticSegmentation.from_pretrained(name, **labels, ignore_mismatched_sizes=True)
    except OSError as error:
        reason = explain_hub_error(error)
        if name != DEFAULT_STUDENT or os.path.isdir(name):
            raise ValueError(f"{name} cannot be loaded: {reason or error}.") from error
        logger.warning(f"{name} cannot be loaded: {reason or error}. The same network is trained from scratch.")
        return make_student(name, label_names, from_scratch=True)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(f"{name} is no model that `AutoModelForSemanticSegmentation` knows.") from error


def _from_config(config, name: str) -> PreTrainedModel:
    try:
        return AutoModelForSemanticSegmentation.from_config(config)
    except ValueError as error:
        raise ValueError(f"{name} is no model that `AutoModelForSemanticSegmentation` knows.") from error


def make_processor(name: str, size: tuple[int, int] | None = None):
    """The image processor of a student; SegFormer's for the default and where it has none.

    Args:
        name (`str`): Hub name or folder of the student.
        size (two `int`, *optional*): Height and width of images; the processor's own if not given.
    """
    try:
        processor = None if name == DEFAULT_STUDENT else AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError):
        processor = None
    if processor is None:
        from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

        processor = SegformerImageProcessorPil()
    if size is not None:
        processor.size = {"height": size[0], "width": size[1]}
    processor.do_reduce_labels = False
    return processor


class StudentSegmenter:
    """A student in the seat of [`DiffuseSegPipeline`]: `segment` gives masks at the size of each picture.

    Args:
        model (`PreTrainedModel`): The student; it computes in its own dtype.
        processor: Its image processor, which says at what size and how normalised it takes images.
    """

    def __init__(self, model: PreTrainedModel, processor):
        self.model, self.processor = model, processor
        self.size = (processor.size["height"], processor.size["width"])
        self.images = DiffuseSegImageProcessor(3)

    @property
    def label_names(self) -> list[str]:
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` in [0, 1] as the model takes it."""
        given = (self.processor.image_mean, self.processor.image_std)
        mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in given)
        return (pixels - mean) / std

    @torch.no_grad()
    def segment(
        self, images: ImageInput | Sequence[ImageInput], batch_size: int = 8, output_type: str = "np"
    ) -> DiffuseSegPipelineOutput:
        """Masks of pictures of any size, as [`DiffuseSegPipeline.segment`] gives them; without uncertainty."""
        loaded = self.images.load(images)
        masks = []
        self.model.eval()
        for start in range(0, len(loaded), batch_size):
            batch = loaded[start : start + batch_size]
            pixels = self.images.preprocess(batch, *self.size).to(self.model.device) / 2 + 0.5  # [N,3,H,W]
            pixels = self.normalize(pixels).to(self.model.dtype, memory_format=torch.channels_last)
            logits = self.model(pixels).logits.float()  # [N,C,h,w]
            sizes = self.images.sizes(batch)
            found: list = [None] * len(batch)
            for size in dict.fromkeys(sizes):  # images of one size go together
                same = [i for i, s in enumerate(sizes) if s == size]
                upsampled = F.interpolate(logits[same], size=size, mode="bilinear", align_corners=False)
                ids = upsampled.max(dim=1).indices.to(torch.uint8).cpu().numpy()  # [n,H,W]
                for i, mask in zip(same, ids):
                    found[i] = mask
            masks += found
        return DiffuseSegPipelineOutput(images=loaded, masks=masks)


class _Exported(torch.nn.Module):
    """Pictures at the student's size to class ids, in one graph: normalisation, network, upsampling."""

    def __init__(self, segmenter: StudentSegmenter):
        super().__init__()
        self.model = segmenter.model
        self.register_buffer("mean", torch.tensor(segmenter.processor.image_mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(segmenter.processor.image_std).view(3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.model((pixels - self.mean) / self.std).logits
        logits = F.interpolate(logits, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        return logits.max(dim=1).indices.to(torch.uint8)


def export_onnx(segmenter: StudentSegmenter, path: str | os.PathLike) -> None:
    """Writes a student as an ONNX file: `pixels`, `[N, 3, H, W]` float32 in [0, 1], to `masks`, `[N, H, W]` uint8.

    The number of pictures is free; height and width are those of the student's image processor. Needs the extra `onnx`.

    Args:
        segmenter ([`StudentSegmenter`]): The student.
        path (`str` or path): File to write; whole or not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.rand(2, 3, *segmenter.size)
    partial = path.with_name(path.name + ".partial")
    try:
        torch.onnx.export(
            _Exported(segmenter).cpu().eval(),
            (pixels,),
            partial,
            input_names=["pixels"],
            output_names=["masks"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
            external_data=False,
            verbose=False,
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[N, C, h, w]` logits, upsampled to `[N, H, W]` class ids; `IGNORED` does not count."""
    upsampled = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    # A batch may hold no labelled pixel at all; the mean over none would not be a number.
    losses = F.cross_entropy(upsampled, masks, ignore_index=IGNORED, reduction="sum")
    return losses / (masks != IGNORED).sum().clamp(min=1)


def epoch_order(num_main: int, num_real: int, real_fraction: float, count: int, seed: int) -> np.ndarray:
    """Which images an epoch shows: indices below `num_main` are of the main dataset, those from there on real ones.

    Args:
        num_main (`int`), num_real (`int`): Sizes of the two.
        real_fraction (`float`): Share of the epoch that is real.
        count (`int`): Images in an epoch; a dataset is gone through as a whole before any of it comes again.
        seed (`int`): Another one for every epoch.

    Returns:
        `np.ndarray`: `[count]`.
    """
    rng = np.random.default_rng(seed)
    real = round(real_fraction * count) if num_real else 0

    def draw(size: int, of: int) -> np.ndarray:
        whole = [rng.permutation(of) for _ in range(-(-size // of))] if size else []
        return np.concatenate(whole)[:size] if whole else np.empty(0, int)

    order = np.concatenate([draw(count - real, num_main), num_main + draw(real, num_real)])
    return rng.permutation(order).astype(int)
