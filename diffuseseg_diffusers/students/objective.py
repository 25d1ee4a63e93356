# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The loss of students on masks, and learning rates that fall with the depth of a layer."""

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


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict]:
    """The parameters for an optimiser, each group with the `share` of the learning rate that it gets.

    Args:
        model (`torch.nn.Module`): A `UNet2DModel`, or any network if `decay` is 1.
        decay (`float`): Share of a stage (an up-block, the middle, a down-block) of the rate of the stage behind it.

    Raises:
        UserError: The network has no stages.
    """
    if decay == 1:
        return [{"params": list(model.parameters()), "share": 1.0}]
    if not isinstance(model, UNet2DModel):
        raise UserError("--layer_decay is for U-Nets of diffusers; leave it out for other networks.")
    up, down = len(model.up_blocks), len(model.down_blocks)
    groups: dict[int, list] = {}
    for name, parameter in model.named_parameters():
        kind, _, rest = name.partition(".")
        if kind == "up_blocks":
            depth = up - int(rest.split(".")[0])
        elif kind == "mid_block":
            depth = up + 1
        elif kind == "down_blocks":
            depth = up + 1 + down - int(rest.split(".")[0])
        else:
            depth = 0 if kind.startswith("conv_") and kind != "conv_in" else up + down + 2
        groups.setdefault(depth, []).append(parameter)
    return [{"params": own, "share": decay**depth} for depth, own in sorted(groups.items())]
