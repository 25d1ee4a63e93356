# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""U-Nets trained on labelled pixels alone, in seconds: no files, no checkpoints, no teacher."""

import math
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np
import torch

from ..datasets.augmentation import IGNORED, augment
from ..jobs.errors import UserError
from ..jobs.hardware import training_dtype
from .objective import dice_loss, segmentation_loss
from .unets import UNetStudent


WARMUP = 0.05  # share of the budget over which the learning rate rises


def tune_unet(
    network: UNetStudent,
    pixels: torch.Tensor,
    masks: torch.Tensor,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    seed: int = 0,
    flip: bool = True,
    batch_size: int = 8,
    lr: float = 2e-3,
    on_step: Callable[[float, float], None] | None = None,
) -> UNetStudent:
    """Trains a U-Net in place on augmented views of labelled pictures, with cross-entropy, Dice and AdamW.

    Pictures larger than the network's `image_size` are shown in random crops of that size, each around a labelled
    pixel: half of the time any, else one of a class that is drawn first, so that rare classes are seen. The learning
    rate warms up and falls as a cosine to zero over the budget. The same seed and `steps` give the same bits; with
    `seconds` the number of steps depends on the machine.

    Args:
        network ([`UNetStudent`]): From [`plain_unet`], [`new_unet`] or [`unet_from_denoiser`].
        pixels (`torch.Tensor`): `[N, C, H, W]` float32 in [-1, 1], on any device.
        masks (`torch.Tensor`): `[N, H, W]` int64 class ids, `IGNORED` where there is no label.
        steps (`int`, *optional*), seconds (`float`, *optional*): The budget: one of the two.
        seed (`int`, defaults to 0): Of crops, augmentation and dropout.
        flip (`bool`, defaults to `True`): Whether to show mirrored views.
        batch_size (`int`, defaults to 8): Crops in a step.
        lr (`float`, defaults to 2e-3): Highest learning rate.
        on_step (callable, *optional*): Called after each step with the share of the budget that is used and the loss.

    Returns:
        The network, in evaluation mode.

    Raises:
        UserError: Not exactly one of `steps` and `seconds` is given, nothing is labelled, or the pictures are smaller
            than the network's images.

    Examples:
        >>> student = tune_unet(plain_unet(["background", "cell"], (120, 120), 3), pixels, masks, seconds=60)
        >>> student.segment("photo.jpg").masks[0]
    """
    if (steps is None) == (seconds is None):
        raise UserError(f"A U-Net is tuned for steps or for seconds, got {steps} and {seconds}; give one of them.")
    size, device = network.image_size, network.device
    if seconds is not None and not seconds > 0:
        raise UserError(f"The time for a U-Net is above 0 seconds, got {seconds}; give a longer one.")
    if pixels.shape[-2] < size[0] or pixels.shape[-1] < size[1]:
        raise UserError(
            f"The U-Net reads images of {size[0]} x {size[1]}, and the pictures have {pixels.shape[-2]} x "
            f"{pixels.shape[-1]} pixels; resize or pad them."
        )
    labelled = [places_by_class(mask.cpu()) for mask in masks]
    usable = [i for i, places in enumerate(labelled) if places]
    if not usable:
        raise UserError("There is no labelled pixel to tune a U-Net on; give pictures with labels.")
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    parameters = [p for p in network.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
    precision = training_dtype(device)
    network.model.train()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # for dropout
        began, step, share = perf_counter(), 0, 0.0
        while share < 1:
            rate = lr * min(1.0, (share + 1e-3) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = rate
            chosen = rng.choice(usable, batch_size)
            windows = [window_with_label(labelled[i], masks.shape[-2:], size, rng) for i in chosen]
            images = torch.stack([pixels[i][:, y, x] for i, (y, x) in zip(chosen, windows)])  # [B,C,h,w]
            targets = torch.stack([masks[i][y, x] for i, (y, x) in zip(chosen, windows)])  # [B,h,w]
            images, targets = augment(images.to(device) / 2 + 0.5, targets.to(device), generator, flip)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits = network.logits(images)  # [B,num_classes,h,w]
            loss = segmentation_loss(logits, targets) + dice_loss(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            step += 1
            share = step / steps if steps is not None else (perf_counter() - began) / seconds
            if on_step is not None:
                on_step(min(1.0, share), loss.item())
    network.model.eval()
    return network


def places_by_class(mask: torch.Tensor) -> list[torch.Tensor]:
    """Rows and columns `[n, 2]` int32 of the pixels of each class that a mask `[H, W]` shows."""
    return [torch.nonzero(mask == own).to(torch.int32) for own in mask.unique() if own != IGNORED]


def window_with_label(
    labelled: Sequence[torch.Tensor], picture: Sequence[int], size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a crop within the picture: around a random labelled pixel, or one of a random class."""
    numbers = np.array([len(places) for places in labelled])
    shares = numbers / numbers.sum() if rng.random() < 0.5 else np.full(len(numbers), 1 / len(numbers))
    own = labelled[rng.choice(len(numbers), p=shares)]
    place = own[rng.integers(len(own))].tolist()
    starts = [min(max(0, p - int(rng.integers(s))), n - s) for p, s, n in zip(place, size, picture)]
    return slice(starts[0], starts[0] + size[0]), slice(starts[1], starts[1] + size[1])
