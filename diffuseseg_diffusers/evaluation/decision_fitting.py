# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Decisions for the highest mean IoU, from images without labels."""

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from tqdm.auto import tqdm

from ..heads.decisions import Decisions, expected_decisions
from ..jobs.errors import UserError
from ..jobs.seeds import mixed_seed
from ..pipelines.segmenter import Segmenter


IMAGES = 200  # are enough: 156 street scenes gave the mean IoU that the measured images themselves gave
PROBABILITIES = 2**26  # that are kept at most, in float32, of all images and classes together


def fit_decisions(
    model: Segmenter, images: Iterable[Any], number: int, batch_size: int = 8, show_progress: bool = True
) -> Decisions | None:
    """Weights of the expected-IoU decision rule for images like these.

    Needs no labels, only the model's probabilities, on images that it was not fitted on: on training images it is
    overconfident.

    Args:
        model ([`Segmenter`]): A pipeline with a head, a student, or several together.
        images (iterable): Images as [`~Segmenter.segment`] takes them.
        number (`int`): How many they are.
        batch_size (`int`, defaults to 8): Images that go through the model at once.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar.

    Returns:
        [`Decisions`], to be set as `model.decisions`, or `None` if the likeliest classes are the best.

    Raises:
        UserError: There are no images, or one cannot be read.

    Examples:
        >>> from PIL import Image
        >>> from diffuseseg_diffusers import AutoDiffuseSegPipeline, fit_decisions
        >>> pipe = AutoDiffuseSegPipeline.from_pretrained("out/model")
        >>> pipe.decisions = fit_decisions(pipe, [Image.open("photo.jpg"), Image.open("other.png")], number=2)
    """
    if number < 1:
        raise UserError("There are no images to expect anything of; give one at least.")
    model.check_can_segment()
    size, classes, parts = model.image_size, len(model.label_names), []
    step = max(1, -(-number * size[0] * size[1] * classes // PROBABILITIES))
    while math.gcd(step, size[1]) > 1:  # pixels of other columns in the next row
        step += 1
    with tqdm(total=number, desc="Expecting mean IoU", unit="image", disable=not show_progress) as bar:
        rest = iter(images)
        while some := list(islice(rest, batch_size)):
            noise = [torch.Generator().manual_seed(mixed_seed(0, len(parts) + i)) for i in range(len(some))]
            given = dict(generator=noise, output_type="pt", return_probabilities=True, return_images=False)
            found = model.segment(some, len(some), size, **given).probabilities
            parts += [p.flatten(1)[:, ::step].float().clone() for p in found]  # [C,P]; a slice would keep all
            bar.update(len(some))
    return expected_decisions(torch.cat(parts, dim=1))
