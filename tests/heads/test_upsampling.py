# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diffuseseg_diffusers.heads.upsampling import blend_of, columns_of, upsampled_rows


side = st.integers(1, 50)


@given(sizes=st.lists(st.tuples(side, side), min_size=1, max_size=3), size=st.tuples(side, side), start=side, stop=side)
def test_rows_are_those_of_the_sum_of_all_upsamplings(sizes, size, start, stop):
    maps = [torch.rand(2, h, w, 3, generator=torch.Generator().manual_seed(i)) for i, (h, w) in enumerate(sizes)]
    rows = slice(min(start, stop, size[0]) - 1, min(max(start, stop), size[0]))
    columns = [columns_of(m, size[1]) for m in maps]
    found = upsampled_rows(maps, [blend_of(m, size[0], rows) for m in maps], columns, size[1])
    whole = sum(F.interpolate(m.movedim(-1, 1), size=size, mode="bilinear", align_corners=False) for m in maps)
    torch.testing.assert_close(found, whole.movedim(1, -1)[:, rows], atol=1e-5, rtol=1e-5)


def test_without_maps_there_is_nothing():
    assert upsampled_rows([], [], [], 8) is None
