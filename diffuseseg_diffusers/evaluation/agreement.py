# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Agreement of a model's masks with those in float32."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..images.image_processor import ImageInput
from ..jobs.hardware import AGREEMENT, default_dtype, short_name
from ..pipelines.segmenter import Segmenter


IMAGES = 8  # are enough to tell


def measure_agreement(
    pipe: Segmenter, exact: Callable[[], Segmenter], images: Iterable[ImageInput]
) -> dict[str, float]:
    """Compares the masks of a model with those of `exact`, the same in float32, made where there is something to
    compare. Images are segmented one at a time, at the size at which the model sees them.

    Returns:
        `dict`: By precision, the share of the pixels whose class is that in float32; empty if it is float32 already.
    """
    weights = [weight for network in pipe.networks().values() for weight in network.parameters()]
    reduced = next((short_name(w.dtype) for w in weights if w.is_floating_point() and w.itemsize < 4), None)
    if reduced is None:
        return {}
    models, same, pixels = (pipe, exact()), 0, 0
    how: dict = {"mask_size": pipe.image_size, "output_type": "pt", "return_images": False}
    for i, image in enumerate(images):
        # The same noise for both, if the head was fitted with fresh noise.
        found, expected = (m.segment(image, generator=torch.Generator().manual_seed(i), **how).masks[0] for m in models)
        same, pixels = same + int((found == expected).sum()), pixels + found.numel()
    return {reduced: same / pixels}


def record_agreement(
    pipe: Any, load: Callable[[torch.dtype], Any], images: Iterable[ImageInput], device: torch.device
) -> dict[str, float]:
    """Compares a new head's masks in float32 with those in the precision that `auto` would take; prints the result and
    keeps it in the head's config.

    Args:
        pipe ([`HeadSegmenter`]): The model with its head, on `device`.
        load (`Callable`): Loads the model without a head in a precision.
        images (iterable of images): As in [`measure_agreement`].

    Returns:
        `dict`: As [`measure_agreement`]; empty if there is nothing to compare, or no memory for a second model.
    """
    usual, own = default_dtype(device), pipe.head_extractor().dtype
    if own == usual == torch.float32:
        return {}

    def other(dtype: torch.dtype) -> Any:
        model = load(dtype)
        model.segmentation_head = pipe.segmentation_head
        return model

    try:
        if own != torch.float32:
            agreement = measure_agreement(pipe, lambda: other(torch.float32), images)
        else:  # in which `auto` would use it here
            agreement = measure_agreement(other(usual), lambda: pipe, images)
    except torch.cuda.OutOfMemoryError:  # not worth the head that was fitted
        print("Masks were not compared with those in float32: there is no memory for a second copy of the model.")
        return {}
    print(agreement_line(agreement))
    pipe.segmentation_head.register_to_config(agreement=agreement)
    return agreement


def agreement_line(agreement: Mapping[str, float]) -> str:
    """The result of [`measure_agreement`] in a sentence for each precision."""
    lines = []
    for dtype, share in agreement.items():
        lowers = dtype == "bfloat16" and share < AGREEMENT  # no other one is ever taken by itself
        less = f", less than {AGREEMENT:.1%}: `--dtype auto` will take float32 for it" if lowers else ""
        lines.append(f"Masks in {dtype} agree with float32 on {share:.3%} of the pixels{less}.")
    return "\n".join(lines)
