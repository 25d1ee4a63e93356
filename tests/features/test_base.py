# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from hypothesis import given
from hypothesis import strategies as st

from diffuseseg_diffusers.features.base import relative_blocks
from diffuseseg_diffusers.heads.recipes import RECIPES


def test_the_default_blocks_of_u_nets_of_usual_depths():
    of_18 = RECIPES["default"].blocks
    assert relative_blocks(of_18, 18) == tuple(of_18)
    assert relative_blocks(of_18, 12) == (4, 5, 8, 10)
    assert relative_blocks(of_18, 8) == (2, 3, 5, 6, 7)


@given(st.lists(st.integers(0, 17), min_size=1, unique=True), st.integers(2, 18))
def test_blocks_at_the_same_depth_exist_and_are_a_block_away_at_most(of_18, total):
    found = relative_blocks(of_18, total)
    assert list(found) == sorted(set(found)) and found[0] >= 0
    for block in found:
        assert min(abs((b + 0.5) * total / 18 - (block + 0.5)) for b in of_18) <= 1
    assert max(found) <= total - 1
