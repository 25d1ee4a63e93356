# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
from datasets import load_dataset

from diffuseseg_diffusers.datasets.drawn_pictures import draw_picture, write_drawn_pictures


def test_pictures_are_a_function_of_seed_number_and_size():
    image = draw_picture(3)
    assert np.array_equal(image, draw_picture(3)) and image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert draw_picture(3, size=96).shape == (96, 96, 3)
    for other in (draw_picture(4), draw_picture(3, seed=1)):
        assert (other != image).mean() > 0.5


def test_two_of_five_are_grey_and_nearly_all_have_contrast():
    images = np.stack([draw_picture(i) for i in range(100)]).astype(int)
    grey = (np.ptp(images, axis=-1) <= 1).all((1, 2))
    assert 0.3 < grey.mean() < 0.55
    assert (images.std((1, 2, 3)) > 4).mean() > 0.9
    assert images.mean((1, 2, 3)).std() > 20


def test_they_are_written_as_a_dataset(tmp_path):
    write_drawn_pictures(tmp_path / "drawn", 3, seed=2)
    found = load_dataset(str(tmp_path / "drawn"), split="train")
    assert np.array_equal(np.asarray(found[2]["image"]), draw_picture(2, seed=2)) and len(found) == 3
    assert "apache-2.0" in (tmp_path / "drawn" / "README.md").read_text()
