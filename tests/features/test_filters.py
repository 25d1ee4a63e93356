# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch
from scipy import ndimage

from diffuseseg_diffusers.features.filters import SIGMAS, filter_bank, filter_channels


def plain_bank(channel: np.ndarray, sigmas) -> np.ndarray:
    """The filters of one channel `[H, W]` by scipy, in float64."""

    def at(sigma, *order):
        return ndimage.gaussian_filter(channel, sigma, order=order or 0)

    found = [channel]
    for s in sigmas:
        dx, dy, dxx, dxy, dyy = at(s, 0, 1), at(s, 1, 0), at(s, 0, 2), at(s, 1, 1), at(s, 2, 0)
        found += [at(s), at(s) - at(0.66 * s), s * np.hypot(dx, dy), s**2 * (dxx + dyy)]
        tensor = [ndimage.gaussian_filter(s**2 * product, s / 2) for product in (dx * dx, dx * dy, dy * dy)]
        for root, (xx, xy, yy) in ((False, [s**2 * d for d in (dxx, dxy, dyy)]), (True, tensor)):
            both = np.linalg.eigvalsh(np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -1))  # ascending
            both = np.sqrt(both.clip(0)) if root else both
            found += [both[..., 1], both[..., 0]]
    return np.stack(found)


@pytest.mark.parametrize("size", [(70, 45), (16, 24), (1, 9)])  # the widest filter reaches over 40 pixels
def test_the_bank_is_that_of_scipy(size):
    images = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = filter_bank(images)
    assert found.shape == (2, filter_channels(2, SIGMAS), *size) and found.dtype == torch.float32
    for image, own in zip(images.double().numpy(), found.numpy()):
        expected = np.concatenate([plain_bank(channel, SIGMAS) for channel in image])
        # Square roots of what is zero but for rounding are as large as the root of the rounding.
        np.testing.assert_allclose(own, expected, atol=1e-3)
        assert np.abs(own - expected).mean() < 1e-5


def test_grey_pictures_have_the_filters_of_one_channel_for_each():
    grey = torch.rand(2, 1, 20, 30) * 2 - 1
    found = filter_bank(grey.expand(-1, 3, -1, -1), (1.0, 3.5))
    assert torch.equal(found, filter_bank(grey, (1.0, 3.5)).repeat(1, 3, 1, 1))


def test_mirror_images_have_mirrored_filters():
    images = torch.rand(1, 2, 20, 30) * 2 - 1
    torch.testing.assert_close(filter_bank(images.flip(-1)).flip(-1), filter_bank(images), atol=1e-3, rtol=1e-3)
