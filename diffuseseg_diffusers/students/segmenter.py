# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students as segmenters: the contract of the pipelines, in one fast pass and without uncertainty."""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from transformers import AutoModelForSemanticSegmentation, BaseImageProcessor, PreTrainedModel

from ..data.image_processor import default_palette
from ..runs.errors import UserError
from ..segmenter import SegmentedBatch, Segmenter
from .networks import loading_errors, make_processor


class StudentSegmenter(Segmenter):
    """A drop-in replacement for [`DiffuseSegPipeline`] in segmenting: a small network of `transformers`.

    Args:
        model (`PreTrainedModel`): The student; it computes in its own dtype, on its own device.
        processor (`BaseImageProcessor`): Says at what size and how normalised it takes images.
        palette (sequence of `[red, green, blue]`, *optional*):
            Colours of the classes, 0 to 255; [`default_palette`] if not given.

    Raises:
        UserError: The processor resizes images to no fixed height and width.
    """

    def __init__(
        self, model: PreTrainedModel, processor: BaseImageProcessor, palette: Sequence[Sequence[int]] | None = None
    ):
        size = dict(processor.size)
        if not {"height", "width"} <= size.keys():
            raise UserError(
                f"The student's image processor resizes to {size}, but a height and a width are needed; set its size."
            )
        self.model, self.processor = model, processor
        self._size = (size["height"], size["width"])
        self._palette = [list(color) for color in palette] if palette is not None else None

    @property
    def image_size(self) -> tuple[int, int]:
        return self._size

    @property
    def in_channels(self) -> int:
        return 3

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.model.device

    @property
    def label_names(self) -> list[str]:
        return [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @property
    def palette(self) -> list[list[int]]:
        return self._palette or default_palette(self.model.config.num_labels)

    def normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, 3, H, W]` in [0, 1] as the model takes it."""
        given = (self.processor.image_mean, self.processor.image_std)
        mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in given)
        return (pixels - mean) / std

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves model and image processor as `transformers` does."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @torch.no_grad()
    def segment_batch(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        class_labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_probabilities: bool = False,
    ) -> SegmentedBatch:
        self.model.eval()
        pixels = self.normalize(pixels.to(self.device) / 2 + 0.5)  # [N,3,H,W]
        logits = self.model(pixels.to(self.model.dtype, memory_format=torch.channels_last)).logits.float()  # [N,C,h,w]
        masks: list = [None] * len(sizes)
        probabilities: list = [None] * len(sizes)
        for size in dict.fromkeys(sizes):  # images of one size go together
            same = [i for i, s in enumerate(sizes) if s == size]
            upsampled = F.interpolate(logits[same], size=size, mode="bilinear", align_corners=False)  # [n,C,H,W]
            ids = upsampled.max(dim=1).indices.to(torch.uint8).cpu()  # [n,H,W]
            shares = upsampled.softmax(dim=1).cpu() if return_probabilities else ids
            for i, mask, share in zip(same, ids, shares):
                masks[i], probabilities[i] = mask, share
        return SegmentedBatch(masks, probabilities=probabilities if return_probabilities else None)


def load_student(
    name: str | os.PathLike,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> StudentSegmenter:
    """Loads a student that `diffuseseg train-student` left, or another model of its kind; runs no code of a repository.

    Args:
        name (`str` or path): Local folder or Hub name.
        device (`torch.device` or `str`, defaults to `"cpu"`), dtype (`torch.dtype`, defaults to `torch.float32`):
            Where and in which precision it runs.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        cache_dir (`str` or path, *optional*): Folder in which downloads are kept.

    Raises:
        UserError: It cannot be loaded; says why.
    """
    name = os.fspath(name)
    where = {"revision": revision or "main", "cache_dir": cache_dir}
    with loading_errors(name):
        model = AutoModelForSemanticSegmentation.from_pretrained(
            name, dtype=dtype, trust_remote_code=False, use_safetensors=True, **where
        )
    return StudentSegmenter(model.to(device).eval(), make_processor(name, revision=revision, cache_dir=cache_dir))
