# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Bilinear upsampling of several maps at once, strip by strip, as matrix products."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


NARROW = 32  # columns of a map, up to which a product with a matrix upsamples them faster than interpolation does


@dataclass
class Blend:
    """Source rows of an upsampled strip, and their weights `[rows, s]`."""

    used: slice
    rows: torch.Tensor


def blend_of(x: torch.Tensor, height: int, rows: slice) -> Blend:
    """For a map `[N, h, w, C]`, the height of its upsampling, and the rows of it that are wanted."""
    h = x.shape[1]
    # The first and the last source row, in whole numbers: to ask the device for them would be to wait for it.
    first, last = (max(0, ((2 * row + 1) * h - height) // (2 * height)) for row in (rows.start, rows.stop - 1))
    used = slice(first, min(last + 2, h))
    return Blend(used, _matrix(h, height, rows, used, x))


def columns_of(x: torch.Tensor, width: int) -> torch.Tensor | None:
    """For a map `[N, h, w, C]`, `[width, w]` of its columns, or `None` where interpolation is faster or not needed."""
    w = x.shape[2]
    return None if w == width or w > NARROW else _matrix(w, width, slice(0, width), slice(0, w), x)


def upsampled_rows(
    maps: Sequence[torch.Tensor], blends: Sequence[Blend], columns: Sequence[torch.Tensor | None], width: int
) -> torch.Tensor | None:
    """Rows of the sum of the bilinear upsamplings of maps `[N, h, w, C]`: `[N, rows, width, C]`, `None` without maps.

    Columns first, on the few source rows; blending the rows of all maps, and adding the maps, is then one product with
    a narrow matrix. Where that is slower, in float32 with more source rows than rows, it is one for each map. The
    blends and columns are those of [`blend_of`] and [`columns_of`] for each map.
    """
    if not maps:
        return None
    sources, n = [], len(maps[0])
    for x, blend, matrix in zip(maps, blends, columns):
        source = x[:, blend.used]  # [N,s,w,C]
        if matrix is not None:
            source = matrix @ source  # [N,s,W,C]
        elif x.shape[2] != width:
            up = {"size": (source.shape[1], width), "mode": "bilinear", "align_corners": False}
            source = F.interpolate(source.movedim(-1, 1), **up).movedim(1, -1)  # [N,s,W,C]
        sources.append(source.flatten(2))  # [N,s,W*C]
    rows = torch.cat([blend.rows for blend in blends], dim=1)  # [rows,S]
    if rows.dtype != torch.float32 or rows.shape[1] <= rows.shape[0]:
        total = torch.bmm(rows.expand(n, -1, -1), torch.cat(sources, dim=1))  # [N,rows,W*C]
    else:
        total = torch.bmm(blends[0].rows.expand(n, -1, -1), sources[0])
        for blend, source in zip(blends[1:], sources[1:]):
            total.baddbmm_(blend.rows.expand(n, -1, -1), source)
    return total.unflatten(2, (width, -1))


def bilinear(
    source: int, target: int, chosen: slice, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bilinear interpolation (`align_corners=False`) of the `chosen` of `target` positions along an axis.

    Returns:
        The two positions of `source` that each is between, int64, and the weight of the second, float32.
    """
    at = ((torch.arange(chosen.start, chosen.stop, device=device) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = at.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), at - low


def _matrix(source: int, target: int, chosen: slice, used: slice, like: torch.Tensor) -> torch.Tensor:
    """[`bilinear`] from the `used` of `source` as a matrix, of the dtype and on the device of a tensor."""
    above, below, fraction = bilinear(source, target, chosen, like.device)
    share = fraction.to(like.dtype)[:, None]  # [chosen,1]
    at = torch.arange(used.start, used.stop, device=like.device)
    return (at == above[:, None]) * (1 - share) + (at == below[:, None]) * share  # [chosen,used]
