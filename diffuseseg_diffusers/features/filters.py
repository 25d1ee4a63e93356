# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A bank of filters at full resolution, as pixel classifiers with random forests read them.

The filters are those of ilastik (Berg et al., Nature Methods 2019). Derivatives are normalised by their scale
(Lindeberg, 1998) and eigenvalues of the structure tensor enter as square roots, so that all filters grow in proportion
to contrast, and none is lost in half precision.
"""

from collections.abc import Sequence

import torch

from ..jobs.errors import UserError


SIGMAS = (0.7, 1.0, 1.6, 3.5, 5.0, 10.0)  # pixels, as in ilastik
TRUNCATE = 4.0  # standard deviations at which Gaussians end, as in `scipy.ndimage`
FINER, WIDER = 0.66, 0.5  # of a scale: the second Gaussian of a difference, and the window of a structure tensor
PER_SIGMA = 8
MOST_SIGMAS, LEAST_SIGMA, LARGEST_SIGMA = 32, 0.1, 64.0  # pixels: a head of a stranger must not exhaust memory


def check_sigmas(sigmas: Sequence[float] | None) -> None:
    """Raises [`UserError`] for scales that [`filter_bank`] is not for."""
    given = list(sigmas or ())
    if len(given) > MOST_SIGMAS or not all(LEAST_SIGMA <= sigma <= LARGEST_SIGMA for sigma in given):
        raise UserError(
            f"Filters have up to {MOST_SIGMAS} scales of {LEAST_SIGMA:g} to {LARGEST_SIGMA:g} pixels, got "
            f"{len(given)}: {given!r:.60}."
        )


def filter_channels(in_channels: int, sigmas: Sequence[float] | None) -> int:
    """Number of outputs of [`filter_bank`] for images of so many channels."""
    return in_channels * (1 + PER_SIGMA * len(sigmas)) if sigmas else 0


def filter_bank(images: torch.Tensor, sigmas: Sequence[float] = SIGMAS) -> torch.Tensor:
    """Filters each channel of images at several scales; borders are reflected, the pixels at the edge doubled.

    Args:
        images (`torch.Tensor`): `[N, C, H, W]` in [-1, 1]. If all channels are equal, one is computed.
        sigmas (sequence of `float`): Scales, standard deviations of Gaussians in pixels.

    Returns:
        `[N, F, H, W]` float32, `F` as [`filter_channels`] says. Of each channel the picture itself, and at each scale σ
        the Gaussian `G`, `G(σ) - G(0.66 σ)`, `σ |∇G|`, `σ² ΔG`, the eigenvalues of `σ²` times the Hessian of `G`, the
        larger one first, and the square roots of those of the structure tensor `σ² ∇G ∇Gᵀ` in a window of `σ / 2`.
        Reflected images have reflected filters.
    """
    n, c, height, width = images.shape
    images = images.float()
    if c > 1 and bool((images == images[:, :1]).all()):  # grey pictures, read by a model of colours
        return filter_bank(images[:, :1], sigmas).repeat(1, c, 1, 1)
    x = images.flatten(0, 1)  # [N*C,H,W]
    found = x.new_empty(n * c, 1 + PER_SIGMA * len(sigmas), height, width)
    found[:, 0] = x
    for i, sigma in enumerate(sigmas):
        gaussian, first, second = derivatives = _gaussians(sigma, 2).to(x)
        across = _correlate(x, derivatives, 2)  # [3,N*C,H,W], along the rows
        smooth, dy, dyy = _correlate(across[0], derivatives, 1)
        dx, dxy = _correlate(across[1], torch.stack([gaussian, first]), 1)
        (dxx,) = _correlate(across[2], gaussian[None], 1)
        finer = _gaussians(FINER * sigma, 0).to(x)
        (fine,) = _correlate(_correlate(x, finer, 2)[0], finer, 1)
        products = torch.stack([dx * dx, dx * dy, dy * dy]) * sigma**2
        window = _gaussians(WIDER * sigma, 0).to(x)
        products = _correlate(_correlate(products.flatten(0, 1), window, 2)[0], window, 1)[0]
        larger, smaller = _eigenvalues(*products.unflatten(0, (3, -1)))
        start = 1 + PER_SIGMA * i
        found[:, start] = smooth
        found[:, start + 1] = smooth - fine
        found[:, start + 2] = (dx * dx + dy * dy).sqrt_() * sigma
        found[:, start + 3] = (dxx + dyy) * sigma**2
        found[:, start + 4], found[:, start + 5] = (e * sigma**2 for e in _eigenvalues(dxx, dxy, dyy))
        found[:, start + 6], found[:, start + 7] = (e.clamp_(min=0).sqrt_() for e in (larger, smaller))
    return found.view(n, -1, height, width)


def _eigenvalues(xx: torch.Tensor, xy: torch.Tensor, yy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The larger and the smaller eigenvalue of symmetric matrices of two rows."""
    mean, radius = (xx + yy) / 2, torch.hypot((xx - yy) / 2, xy)
    return mean + radius, mean - radius


def _gaussians(sigma: float, order: int) -> torch.Tensor:
    """A sampled Gaussian and its derivatives up to an order, for correlation: `[order + 1, 2 r + 1]` float64."""
    radius = int(TRUNCATE * sigma + 0.5)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    gaussian = torch.exp(-(at**2) / (2 * sigma**2))
    gaussian /= gaussian.sum()
    return torch.stack([gaussian, gaussian * at / sigma**2, gaussian * (at**2 / sigma**4 - 1 / sigma**2)][: order + 1])


def _correlate(x: torch.Tensor, kernels: torch.Tensor, axis: int) -> torch.Tensor:
    """Correlates `[B, H, W]` along an axis with kernels `[K, 2 r + 1]`: `[K, B, H, W]`, the border reflected.

    The axis is cut into overlapping pieces, and each is multiplied with one banded matrix for all kernels: a matrix
    product is much faster than a convolution of one channel.
    """
    x, length = x.movedim(axis, -1), x.shape[axis]
    count, taps = kernels.shape
    step = min(length, max(16, taps))  # of a piece, in outputs
    pieces = -(-length // step)
    at = torch.arange(-(taps // 2), pieces * step + taps // 2, device=x.device) % (2 * length)
    at = torch.minimum(at, 2 * length - 1 - at)
    windows = x.index_select(-1, at).unfold(-1, step + taps - 1, step)  # [B,R,pieces,step+taps-1]
    banded = x.new_zeros(count, step, step + taps - 1)
    for j in range(step):
        banded[:, j, j : j + taps] = kernels
    y = windows @ banded.flatten(0, 1).T  # [B,R,pieces,K*step]
    y = y.unflatten(-1, (count, step)).movedim(-2, 0).flatten(-2)[..., :length]  # [K,B,R,length]
    return y.movedim(-1, axis + 1)
