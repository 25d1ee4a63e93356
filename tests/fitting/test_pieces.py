# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
from datasets import Dataset

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.datasets.crops import pictures_of
from diffuseseg_diffusers.fitting.pieces import TILE, TIMESTEPS, in_pieces, piece_size, views_of


def pictures(*sizes: tuple[int, int]) -> LabeledImages:
    import PIL.Image

    rng = np.random.default_rng(0)
    rows = [
        {
            "image": PIL.Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)),
            "mask": PIL.Image.fromarray((np.indices((h, w)).sum(0) // 8 % 2).astype(np.uint8)),
        }
        for h, w in sizes
    ]
    return LabeledImages(Dataset.from_list(rows), label_names=["a", "b"])


def test_small_pictures_are_read_whole():
    pieces = in_pieces(pictures((120, 96), (120, 96)))
    assert len(pieces) == 2 and piece_size(pieces) == (120, 96) and pictures_of(pieces).tolist() == [0, 1]


def test_all_of_large_pictures_is_in_some_tile():
    pieces = in_pieces(pictures((300, 520), (300, 520)))
    assert piece_size(pieces) == (TILE, TILE) and pictures_of(pieces).tolist() == [0] * 8 + [1] * 8
    assert sum(int((pieces[i].mask != 255).sum()) for i in range(8)) >= 300 * 520


def test_sizes_are_multiples_within_what_models_read():
    found = views_of((120, 120), 8)
    assert found[0].scale == 1 and found[0].size == (120, 120)
    assert {v.size: v.scale for v in found} == {(120, 120): 1, (64, 64): 0.5333, (240, 240): 2, (32, 32): 0.2667}
    assert {v.size for v in views_of((256, 256), 8)} == {(256, 256), (128, 128), (64, 64)}


def test_a_model_of_one_size_is_read_at_that_and_at_parts_of_it():
    found = views_of((512, 512), 8, (64, 64))
    assert {v.size for v in found} == {(64, 64), (32, 32), (128, 128)}
    assert found[0].scale == 64 / 512


def test_the_usual_timesteps_come_first_and_the_others_are_tried_at_the_usual_scale():
    found = views_of((120, 120), 8, timesteps=(100,))
    assert found[0].timesteps == (100,)
    assert {v.timesteps for v in found if v.scale == 1} == set(TIMESTEPS)
    assert {v.timesteps for v in found if v.scale != 1} == {(100,)}
    assert len(set(found)) == len(found)
