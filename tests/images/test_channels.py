# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers.images.channels import InputChannels, percentile_windows, to_rgb
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.jobs.errors import UserError


def test_channels_are_chosen_and_ordered_by_name_or_number():
    available = ("red", "green", "blue", "nir", "alpha")
    assert InputChannels().indices(available, "a.tif") == [0, 1, 2, 3]
    assert InputChannels(("nir", "red", "1")).indices(available, "a.tif") == [3, 0, 1]
    assert InputChannels((2, "alpha")).indices(available, "a.tif") == [2, 4]
    for wrong in ("swir", "9", 5):
        with pytest.raises(UserError, match=r"a.tif has no channel .*; it has 0 \(red\), 1 \(green\), .*4 \(alpha\)"):
            InputChannels((wrong,)).indices(available, "a.tif")


@pytest.mark.parametrize("dtype, top", [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_values_become_0_to_1_over_the_range_of_their_type(dtype, top):
    values = (np.linspace(0, 1, 12).reshape(1, 3, 4) * top).astype(dtype)
    assert InputChannels().encode(values, 1) == pytest.approx(values.astype(float) / top)


def test_windows_are_black_and_white_and_what_is_beyond_is_clipped():
    values = np.array([[[-1000, 0, 500, 4000]], [[0, 1, 2, 3]]], np.int16)
    found = InputChannels(windows=((0, 1000), (1, 3))).encode(values, 2)
    assert found[:, 0].tolist() == [[0, 0, 0.5, 1], [0, 0, 0.5, 1]]
    assert InputChannels(windows=((0, 4000),)).encode(values, 2)[1, 0, 3] == pytest.approx(3 / 4000)
    with pytest.raises(UserError, match="values of int16 from -1000 to 4000, which have no range of their own"):
        InputChannels().encode(values, 2, "a.nii")
    with pytest.raises(UserError, match="a low and a high value, got 3 and 3"):
        InputChannels(windows=((3, 3),))
    with pytest.raises(UserError, match="2 intensity windows were given for 3 channels"):
        InputChannels(names=("a", "b", "c"), windows=((0, 1), (0, 1)))


def test_numbers_of_channels_that_do_not_fit_are_refused():
    for count, takes in ((5, 3), (3, 5), (2, 1), (4, 3)):
        with pytest.raises(UserError, match=f"x has {count} channels, and the model takes {takes}"):
            InputChannels().encode(np.zeros((count, 2, 2), np.uint8), takes, "x")
    grey = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    assert np.array_equal(InputChannels().encode(grey, 3), np.repeat(grey / np.float32(255), 3, 0))
    rgb = np.random.default_rng(0).integers(0, 256, (3, 6, 6), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(rgb.transpose(1, 2, 0)).convert("L")) / 255
    assert InputChannels().encode(rgb, 1)[0] == pytest.approx(expected, abs=0.6 / 255)


def test_percentiles_of_samples_are_windows_and_constant_channels_are_refused():
    rng = np.random.default_rng(0)
    samples = [np.stack([rng.normal(100, 10, 500), rng.uniform(0, 1, 500)]) for _ in range(4)]
    windows = percentile_windows(samples, (0.5, 99.5))
    assert windows[0] == pytest.approx(tuple(np.percentile(np.concatenate([s[0] for s in samples]), [0.5, 99.5])))
    with pytest.raises(UserError, match="Channel 1 has the value 7 at both percentiles"):
        percentile_windows([np.stack([rng.normal(size=9), np.full(9, 7)])], (0, 100))


def test_a_config_holds_what_differs_from_all_channels_over_their_full_range():
    assert InputChannels().config is None and InputChannels.of(None) == InputChannels()
    chosen = InputChannels(("nir", 0), ((0.0, 1.0), (2.0, 3.5)))
    assert chosen.config == {"names": ["nir", 0], "windows": [[0, 1], [2, 3.5]]}
    assert InputChannels.of(chosen.config) == chosen


def test_pictures_of_any_number_of_channels_are_shown_in_colour():
    values = np.random.default_rng(0).random((5, 4, 6), dtype=np.float32)
    for count in range(1, 6):
        shown = to_rgb(values[:count])
        assert shown.shape == (4, 6, 3) and np.array_equal(shown[..., 0], (values[0] * 255).round())
    assert (to_rgb(values[:2])[..., 2] == 0).all() and (to_rgb(values[:1]).std(-1) == 0).all()


def test_the_processor_reads_arrays_of_any_type_and_number_of_channels():
    values = np.random.default_rng(0).integers(0, 4096, (9, 7, 5)).astype(np.uint16)
    processor = DiffuseSegImageProcessor(5, InputChannels(windows=((0, 4095),)))
    found = processor.preprocess(processor.load([values]), 9, 7)
    assert found[0].numpy() == pytest.approx(values.transpose(2, 0, 1) / 4095 * 2 - 1, abs=1e-5)
    deep = Image.fromarray(values[..., 0])
    windowed = DiffuseSegImageProcessor(1, InputChannels(windows=((0, 4095),)))
    assert windowed.load([deep])[0][0].numpy() == pytest.approx(values[..., 0] / 4095, abs=1e-6)
    shown = DiffuseSegImageProcessor.numpy_to_pil(np.random.default_rng(0).random((2, 4, 4, 5)))
    assert len(shown) == 2 and shown[0].mode == "RGB"
