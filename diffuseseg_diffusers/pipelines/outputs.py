# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What pipelines and students return."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput

from ..heads.ensemble import PixelClassifierEnsemble
from ..jobs.errors import UserError


@dataclass
class DiffuseSegPipelineOutput(BaseOutput):
    """Generated images with their masks.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            PIL images of mode "L" or "RGB", arrays `[N, H, W, C]`, or tensors `[N, C, H, W]`, float32 in [0, 1].
        masks (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`, *optional*):
            Class ids: PIL palette images of mode "P", or uint8 arrays or tensors `[N, H, W]`. `None` without a head.
        uncertainty (`np.ndarray` or `torch.Tensor`, *optional*):
            `[N, H, W]` float32 in nats, as in [`SegmentationOutput`]; arrays go with PIL images. `None` without a head.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    masks: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None
    uncertainty: np.ndarray | torch.Tensor | None = None


@dataclass
class SegmentationOutput(BaseOutput):
    """Segmented images. They may differ in size, so every field is a list with one element per image.

    Args:
        images (`list` of `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            PIL images of mode "L" or "RGB", arrays `[H, W, C]`, or tensors `[C, H, W]`, float32 in [0, 1]; `None` with
            `return_images=False`.
        masks (`list` of `PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            Class ids: PIL palette images of mode "P", or uint8 arrays or tensors `[H, W]`.
        uncertainty (`list` of `np.ndarray` or `torch.Tensor`, *optional*):
            `[H, W]` float32 in nats: Jensen-Shannon divergence of the ensemble's members, or the entropy of a student's
            probabilities; arrays go with PIL images. [`image_uncertainty`] reduces it to a score per image.
        probabilities (`list` of `np.ndarray` or `torch.Tensor`, *optional*):
            `[num_classes, H, W]` float32 if requested; arrays go with PIL images.
    """

    images: list | None
    masks: list
    uncertainty: list | None = None
    probabilities: list | None = None


@dataclass
class SegmentedBatch:
    """What a model finds in a batch, on the CPU, a tensor for each image, whose sizes may differ.

    Args:
        masks (`list[torch.Tensor]`): `[H, W]` uint8 class ids.
        uncertainty (`list[torch.Tensor]`, *optional*): `[H, W]` float32 in nats.
        probabilities (`list[torch.Tensor]`, *optional*): `[num_classes, H, W]` float32.
    """

    masks: list[torch.Tensor]
    uncertainty: list[torch.Tensor] | None = None
    probabilities: list[torch.Tensor] | None = None


def predict_masks(
    head: PixelClassifierEnsemble,
    activations: Sequence[torch.Tensor],
    mirrored: Sequence[torch.Tensor] | None,
    sizes: Sequence[tuple[int, int]],
    return_probabilities: bool = False,
) -> SegmentedBatch:
    """[`PixelClassifierEnsemble.predict`] for a batch of images whose masks differ in size, `(height, width)` each."""
    names = ["labels", "uncertainty", *(["probabilities"] if return_probabilities else [])]
    found: dict[str, list] = {name: [None] * len(sizes) for name in names}
    for size in dict.fromkeys(sizes):  # images of one size go together
        same = [i for i, s in enumerate(sizes) if s == size]
        index = same if len(same) < len(sizes) else slice(None)  # all of them without a copy
        chosen, other = (None if v is None else [a[index] for a in v] for v in (activations, mirrored))
        output = head.predict(chosen, size, return_probabilities, mirrored=other)
        for name in names:
            for i, tensor in zip(same, output[name].cpu()):
                found[name][i] = tensor
    return SegmentedBatch(found["labels"], found["uncertainty"], found.get("probabilities"))


def check_output_type(output_type: str) -> None:
    """Raises [`UserError`] unless it is `"pil"`, `"np"` or `"pt"`."""
    if output_type not in ("pil", "np", "pt"):
        raise UserError(f'`output_type` is "pil", "np" or "pt", got {output_type!r}.')


def together(batches: list, output_type: str) -> list | None:
    """The tensors of all batches in one list, as arrays unless tensors were asked for; `None` if there are none."""
    if any(batch is None for batch in batches):
        return None
    tensors = [tensor for batch in batches for tensor in batch]
    return tensors if output_type == "pt" else [tensor.numpy() for tensor in tensors]
