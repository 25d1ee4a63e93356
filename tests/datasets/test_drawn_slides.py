# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest

from diffuseseg_diffusers.datasets.drawn_slides import draw_slide, write_slide
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import open_raster


def test_windows_of_a_slide_agree_where_they_overlap():
    image, mask = draw_slide(Window(100, 200, 300, 260))
    assert image.shape == (3, 300, 260) and set(np.unique(mask)) == {0, 1, 2}
    for top, left in ((0, 0), (37, 91), (140, 10)):
        part, own = draw_slide(Window(100 + top, 200 + left, 150, 120))
        assert np.array_equal(part, image[:, top : top + 150, left : left + 120])
        assert np.array_equal(own, mask[top : top + 150, left : left + 120])
    assert (draw_slide(Window(100, 200, 300, 260), seed=1)[1] != mask).any()
    shares = [(draw_slide(Window(0, 0, 1000, 1000))[1] == c).mean() for c in range(3)]
    assert min(shares) > 0.03
    many, _ = draw_slide(Window(0, 0, 64, 64), channels=5)
    assert many.shape == (5, 64, 64) and many.std(axis=(1, 2)).min() > 3


def test_a_slide_on_disk_is_the_slide_that_is_drawn(tmp_path):
    pytest.importorskip("tifffile")
    write_slide(tmp_path / "slide.tif", tmp_path / "mask.tif", 700, 530)
    image, mask = draw_slide(Window(0, 0, 700, 530))
    for name, expected in (("slide", image), ("mask", mask[None])):
        with open_raster(tmp_path / f"{name}.tif") as raster:
            assert raster.size == (700, 530)
            assert np.array_equal(raster.read(0, Window(0, 0, 700, 530)), expected)
