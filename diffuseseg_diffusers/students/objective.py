# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The losses of students on masks, and learning rates that fall with the depth of a layer."""

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from ..datasets.augmentation import IGNORED
from ..jobs.errors import UserError


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[N, C, h, w]` logits, upsampled to `[N, H, W]` class ids; `IGNORED` does not count."""
    upsampled = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    # A batch may hold no labelled pixel at all; the mean over none would not be a number.
    losses = F.cross_entropy(upsampled, masks, ignore_index=IGNORED, reduction="sum")
    return losses / (masks != IGNORED).sum().clamp(min=1)


def dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 minus the mean soft Dice of the classes that a batch shows; logits `[N, C, H, W]`, class ids `[N, H, W]`."""
    known = masks != IGNORED
    truth = F.one_hot(masks.where(known, 0), logits.shape[1]).permute(0, 3, 1, 2) * known[:, None]  # [N,C,H,W]
    found = logits.float().softmax(1) * known[:, None]
    both, total, shown = ((found * truth).sum((0, 2, 3)), (found + truth).sum((0, 2, 3)), truth.sum((0, 2, 3)) > 0)
    return 1 - (2 * both[shown] / total[shown]).mean() if shown.any() else logits.sum() * 0


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict]:
    """The parameters for an optimiser, each group with the `share` of the learning rate that it gets: `decay` times
    that of the stage behind it (an up-block, the middle, a down-block).

    Raises:
        UserError: `decay` is not 1, and the network is no `UNet2DModel`.
    """
    if decay == 1:
        return [{"params": list(model.parameters()), "share": 1.0}]
    if not isinstance(model, UNet2DModel):
        raise UserError("--layer_decay is for U-Nets of diffusers; leave it out for other networks.")
    down, up = ([f"{kind}.{i}." for i in range(len(getattr(model, kind)))] for kind in ("down_blocks", "up_blocks"))
    stages = [*down, "mid_block.", *up, "conv_"]  # all else, such as the embedding of timesteps, is as far as `conv_in`
    groups: dict[int, list] = {}
    for name, parameter in model.named_parameters():
        own = [i for i, stage in enumerate(stages) if name.startswith(stage) and not name.startswith("conv_in")]
        groups.setdefault(len(stages) - 1 - own[0] if own else len(stages), []).append(parameter)
    return [{"params": own, "share": decay**depth} for depth, own in sorted(groups.items())]
