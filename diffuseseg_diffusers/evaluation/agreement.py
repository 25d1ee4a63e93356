# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Agreement of a model's masks with those in float32."""

from collections.abc import Callable, Iterable, Mapping

import torch

from ..images.image_processor import ImageInput
from ..jobs.hardware import AGREEMENT, short_name
from ..pipelines.segmenter import Segmenter


IMAGES = 8  # are enough to tell


def measure_agreement(
    pipe: Segmenter, exact: Callable[[], Segmenter], images: Iterable[ImageInput]
) -> dict[str, float]:
    """Compares the masks of a model with those of the same model in float32.

    Args:
        pipe ([`Segmenter`]): The model.
        exact (`Callable`): Makes the one in float32, where there is something to compare.
        images (iterable of images): What to segment, one at a time, at the size at which the model sees them.

    Returns:
        `dict`: By precision, the share of the pixels whose class is that in float32; empty if it is float32 already.
    """
    weights = [weight for network in pipe.networks().values() for weight in network.parameters()]
    reduced = next((short_name(w.dtype) for w in weights if w.is_floating_point() and w.itemsize < 4), None)
    if reduced is None:
        return {}
    models, same, pixels = (pipe, exact()), 0, 0
    for i, image in enumerate(images):
        how: dict = {"mask_size": pipe.image_size, "output_type": "pt"}
        # The same noise for both, if the head was fitted with fresh noise.
        found, expected = (m.segment(image, generator=torch.Generator().manual_seed(i), **how).masks[0] for m in models)
        same, pixels = same + int((found == expected).sum()), pixels + found.numel()
    return {reduced: same / pixels}


def agreement_line(agreement: Mapping[str, float]) -> str:
    """The result of [`measure_agreement`] in a sentence for each precision."""
    lines = []
    for dtype, share in agreement.items():
        less = f", less than {AGREEMENT:.1%}: `--dtype auto` will take float32 for it" if share < AGREEMENT else ""
        less = less if dtype == "bfloat16" else ""  # no other one is ever taken by itself
        lines.append(f"Masks in {dtype} agree with float32 on {share:.3%} of the pixels{less}.")
    return "\n".join(lines)
