# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.fitting.best import affordable, say_sizes, share_of_labels, timed_recipe
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


def test_what_pads_a_tile_is_not_taken_for_a_missing_label():
    known = np.zeros((160, 160), bool)
    assert share_of_labels(known, tile=True) == share_of_labels(known, tile=False) == 0
    known[:32] = True
    assert share_of_labels(known, tile=True) == 1 and share_of_labels(known, tile=False) == 0.2
    known[:32] = np.arange(160) % 8 == 0  # strokes
    assert share_of_labels(known, tile=True) < 0.2


def test_pictures_that_are_distorted_are_told():
    def dataset(*sides: int) -> LabeledImages:
        rows = [{name: Image.new("L", (side, 48)) for name in ("image", "mask")} for side in sides]
        return LabeledImages(Dataset.from_list(rows), num_classes=2)

    lines: list[str] = []
    say_sizes(dataset(48, 50, 60), (48, 50), lines.append)
    assert not lines
    say_sizes(dataset(48, 50, 200), (48, 50), lines.append)
    assert lines[0].startswith("1 of 3 pictures have other sizes than most; all are read at 50 × 48 pixels")
