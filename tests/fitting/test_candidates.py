# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest

from diffuseseg_diffusers.fitting.best import affordable, timed_recipe
from diffuseseg_diffusers.fitting.candidates import crops_of
from diffuseseg_diffusers.fitting.pieces import View


def test_crops_of_whole_pictures_show_half_of_them_and_those_of_tiles_are_small():
    assert crops_of((160, 160), tiled=True) == ((64, 64), 16)
    assert crops_of((40, 48), tiled=True) == ((40, 48), 16)
    assert crops_of((128, 100), tiled=False) == ((64, 64), 16)
    assert crops_of((512, 256), tiled=False) == ((256, 128), 2)


@pytest.mark.parametrize(
    ("number", "timely", "side", "kept", "said"),
    [
        (40, 100, 160, 40, ""),
        (100, 100, 160, 48, "48 of 100 labelled pieces as more teach them little"),
        (100, 20, 160, 20, "20 of 100 labelled pieces in the time; raise --max_minutes"),
        (100, 2, 160, 4, "4 of 100 labelled pieces in the time"),
        (100, 100, 1024, 4, "4 of 100 labelled pieces as"),
    ],
)
def test_heads_learn_from_as_many_pieces_as_are_worth_it(number, timely, side, kept, said):
    lines: list[str] = []
    chosen = affordable(number, (160, 160), View(1.0, (side, side)), timely, lines.append)
    assert len(chosen) == kept and chosen == sorted(set(chosen)) and (not said) == (not lines)
    assert said in "".join(lines)


def test_augmented_views_are_read_as_time_and_size_allow():
    lines: list[str] = []
    assert timed_recipe(5, (120, 120), 200, lines.append).augmented_images == 72 and not lines
    assert timed_recipe(48, (160, 160), 10, lines.append).augmented_images == 0 and not lines
    assert timed_recipe(5, (120, 120), 1, lines.append).num_views(5) == 1  # of each at least
    assert lines == ["5 of 65 augmented views are read in the time; raise --max_minutes for more."]
