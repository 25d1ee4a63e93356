# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import torch
import torch.nn.functional as F

from diffuseseg_diffusers.datasets.augmentation import IGNORED
from diffuseseg_diffusers.students.objective import segmentation_loss


def test_the_loss_is_cross_entropy_and_ignored_pixels_do_not_count():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    upsampled = F.interpolate(logits, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(upsampled, masks))
    masks[0] = IGNORED
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(upsampled[1:], masks[1:]))
    assert segmentation_loss(logits, torch.full_like(masks, IGNORED)) == 0
