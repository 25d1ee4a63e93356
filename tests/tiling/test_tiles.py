# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.heads.decisions import image_uncertainty
from diffuseseg_diffusers.heads.guided import joint_bilateral
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.images.formats.base import ArrayRaster, Window
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tiling.tiles import (
    Tiling,
    block_side,
    choose_tiling,
    histogram_score,
    segment_block,
    segment_tiled,
    segment_whole,
    uncertainty_histogram,
)

from ..conftest import draw, make_pipeline
from ..pixelwise import PixelwiseSegmenter


def picture(height, width, channels=1, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([(8, 8), (16, 8), (16, 16)]),
    st.sampled_from([0, 0.1, 0.25, 0.5, 0.7]),
    st.sampled_from(["gaussian", "crop"]),
    st.integers(8, 40),
)
def test_tiles_say_what_a_model_of_single_pixels_says_of_the_whole(height, width, size, overlap, blend, side):
    pixels, pipe = picture(height, width), PixelwiseSegmenter(size)
    raster, tiling = ArrayRaster(pixels), Tiling(size, overlap=overlap, blend=blend)
    expected = pipe.segment_batch(
        torch.from_numpy(pixels[None] / 127.5 - 1).float(), [(height, width)], None, None, True
    )
    found = segment_tiled(pipe, raster, tiling, return_probabilities=True)
    assert found.probabilities == pytest.approx(expected.probabilities[0].numpy(), abs=1e-5)
    assert found.uncertainty == pytest.approx(expected.uncertainty[0].numpy(), abs=1e-4)
    top = expected.probabilities[0].topk(2, dim=0).values
    clear = (top[0] - top[1] > 1e-4).numpy()
    assert np.array_equal(found.labels[clear], expected.masks[0].numpy()[clear])
    # Blocks of any size add up to the same bytes.
    for block in tiling.blocks(height, width, side):
        own = segment_block(pipe, raster, 0, block, tiling, InputChannels(), return_probabilities=True)
        assert np.array_equal(own.labels, found.labels[block.slices])


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 200),
    st.integers(1, 32),
    st.sampled_from([0, 0.25, 0.5, 0.75]),
    st.sampled_from(["gaussian", "crop"]),
)
def test_tiles_cover_every_pixel_and_none_leaves_the_picture(length, size, overlap, blend):
    tiling = Tiling((size, size), overlap=overlap, blend=blend)
    starts = tiling.starts(length, 0)
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == max(0, length - size)
    assert all(b - a <= tiling.stride[0] for a, b in zip(starts, starts[1:]))
    assert (tiling.sums(length, 0) > 0).all()
    covered = np.zeros((length, length), int)
    for block in tiling.blocks(length, length, 40):
        covered[block.slices] += 1
    assert (covered == 1).all()


def test_a_pixel_far_from_a_tiles_border_is_the_same_wherever_tiles_begin():
    pipe = make_pipeline(head=True)
    pixels = np.concatenate([draw((40, 48), seed)[0] for seed in (1, 2)], 1)[None]
    tiling = Tiling((16, 16), overlap=0.5, blend="crop")
    one = segment_tiled(pipe, ArrayRaster(pixels), tiling, return_probabilities=True)
    other = segment_tiled(pipe, ArrayRaster(pixels[:, 8:, 8:]), tiling, return_probabilities=True)  # a stride further
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert other.probabilities[inner] == pytest.approx(one.probabilities[:, 8:, 8:][inner], abs=1e-5)


def test_tiles_without_overlap_are_the_images_one_by_one():
    pipe = make_pipeline(head=True)
    images = [draw((16, 16), seed)[0] for seed in range(6)]
    mosaic = np.concatenate([np.concatenate(images[i : i + 3], 1) for i in (0, 3)])[None]
    found = segment_tiled(pipe, ArrayRaster(mosaic), Tiling((16, 16), overlap=0), return_probabilities=True)
    alone = pipe.segment(images, output_type="np", return_probabilities=True)
    for i, probabilities in enumerate(alone.probabilities):
        place = (slice(None), slice(i // 3 * 16, i // 3 * 16 + 16), slice(i % 3 * 16, i % 3 * 16 + 16))
        assert found.probabilities[place] == pytest.approx(probabilities, abs=1e-5)


def test_a_scale_shows_larger_tiles_at_the_models_size():
    pipe = PixelwiseSegmenter((16, 16))
    block = np.kron(np.random.default_rng(0).integers(0, 3, (12, 15)), np.ones((8, 8), int))
    pixels = np.array([20, 128, 235], np.uint8)[block][None]  # things of 8 × 8 pixels
    tiling = Tiling((16, 16), scale=0.25)
    assert tiling.tile == (64, 64) and tiling.stride == (48, 48)
    found = segment_tiled(pipe, ArrayRaster(pixels), tiling)
    assert found.labels.shape == (96, 120) and all(call[1:] == (1, 16, 16) for call in pipe.calls)
    middles = (slice(2, None, 8), slice(2, None, 8))
    assert (found.labels[middles] == block[middles]).mean() > 0.95


def test_pyramids_are_read_where_they_have_what_the_model_sees():
    pixels = picture(128, 128, seed=3)

    class Pyramid(ArrayRaster):
        levels = (1.0, 2.0, 4.0)
        read_at: list[int] = []

        def read(self, plane, window, level=0):
            self.read_at.append(level)
            down = int(self.levels[level])
            return self.values[plane][:, ::down, ::down][(slice(None), *window.slices)]

    raster = Pyramid(pixels)
    for scale, level in ((1.0, 0), (0.5, 1), (0.3, 1), (0.25, 2), (0.1, 2), (2.0, 0)):
        raster.read_at.clear()
        found = segment_tiled(PixelwiseSegmenter((16, 16)), raster, Tiling((16, 16), scale=scale))
        assert set(raster.read_at) == {level} and found.labels.shape == (128, 128)


def test_what_was_not_measured_is_ignored_and_costs_no_pass():
    pixels = picture(64, 64).clip(1)
    pixels[:, :, :40] = 0
    raster, pipe = ArrayRaster(pixels), PixelwiseSegmenter((16, 16))
    raster.nodata = 0
    found = segment_tiled(pipe, raster, Tiling((16, 16), overlap=0))
    assert (found.labels[:, :40] == 255).all() and (found.labels[:, 40:] < 3).all()
    assert sum(call[0] for call in pipe.calls) == 4 * 2  # of 16 tiles
    assert (segment_whole(pipe, raster, 0, InputChannels()).labels[:, :40] == 255).all()


def test_large_pictures_are_tiled_by_themselves_at_the_scale_of_fitting():
    unknown = PixelwiseSegmenter((16, 16))  # what was fitted before that was recorded stays as it was
    assert choose_tiling(unknown, ArrayRaster(picture(500, 500))) is None
    pipe = PixelwiseSegmenter((16, 16), fitted={"tiles": False, "scale": 1.0})
    assert choose_tiling(pipe, ArrayRaster(picture(63, 200))) is None
    assert choose_tiling(pipe, ArrayRaster(picture(64, 64))) == Tiling((16, 16))
    assert choose_tiling(pipe, ArrayRaster(picture(64, 64)), tile=False) is None
    assert choose_tiling(pipe, ArrayRaster(picture(5, 5)), tile=True).tile == (16, 16)
    shrunk = PixelwiseSegmenter((16, 16), fitted={"tiles": False, "scale": 0.25})
    assert choose_tiling(shrunk, ArrayRaster(picture(250, 250))) is None
    assert choose_tiling(shrunk, ArrayRaster(picture(256, 256))).tile == (64, 64)
    tiled = PixelwiseSegmenter((16, 16), fitted={"tiles": True, "scale": 1.0, "pixel_size": 0.5})
    assert choose_tiling(tiled, ArrayRaster(picture(9, 9), pixel_size=(0.25, 0.25))).tile == (32, 32)
    assert choose_tiling(tiled, ArrayRaster(picture(9, 9), pixel_size=(1, 1)), pixel_size=1).tile == (16, 16)
    with pytest.raises(UserError, match="does not say how large its pixels are, and 0.5 µm are wanted"):
        choose_tiling(tiled, ArrayRaster(picture(9, 9)))
    assert choose_tiling(tiled, ArrayRaster(picture(9, 9)), scale=2).tile == (8, 8)


def test_numbers_out_of_range_are_refused():
    for wrong, message in (
        ({"overlap": 0.8}, "lies in 0 to 0.75, got 0.8"),
        ({"scale": 1000.0}, "at a scale of 1/64 to 64"),
        ({"blend": "mean"}, "blended by gaussian or crop, got 'mean'"),
    ):
        with pytest.raises(UserError, match=message):
            Tiling((16, 16), **wrong)
    assert block_side(8, 3, 1, 1.0) == 2048 and 256 <= block_side(200, 3, 1, 1.0) < 1024
    with pytest.raises(UserError, match="A tile of An image has 800 × 800 pixels at a scale of 0.02"):
        segment_tiled(PixelwiseSegmenter((16, 16)), ArrayRaster(picture(9, 9)), Tiling((16, 16), 0.02), max_memory=0.02)
    with pytest.raises(UserError, match="Blocks of 8 classes need 0.011 GiB at least, got --max_memory 0.01"):
        block_side(8, 3, 1, 0.01)


def test_the_score_of_a_histogram_is_that_of_the_image():
    rng = np.random.default_rng(0)
    uncertainty = (rng.beta(1, 5, (200, 300)) * 2).astype(np.float32)
    labels = np.zeros((200, 300), np.uint8)
    labels[:50] = 255
    score = histogram_score(uncertainty_histogram(uncertainty, labels, 255))
    assert score == pytest.approx(image_uncertainty(torch.from_numpy(uncertainty[50:])).item(), abs=1e-3)
    assert histogram_score(np.zeros(4096, np.int64)) is None


def test_windows_are_parts_of_planes():
    assert Window(1, 2, 3, 4).slices == (slice(1, 4), slice(2, 6))


def test_channels_that_are_chosen_are_read_alike_of_tiles_and_of_the_whole():
    """Was: of channels 1, 1, 1 tiles read 0, 1 and 2."""
    raster, pipe = ArrayRaster(picture(16, 16, 3)), PixelwiseSegmenter(channels=3)
    for names in (("1", "1", "1"), ("0", "0", "2"), ("2", "1", "0"), ("0", "1", "2")):
        channels = InputChannels(names)
        tiles = segment_tiled(pipe, raster, Tiling((16, 16)), 0, channels, return_probabilities=True)
        whole = segment_whole(pipe, raster, 0, channels, return_probabilities=True)
        assert tiles.probabilities == pytest.approx(whole.probabilities, abs=1e-5), names


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_guide_of_a_tile_is_the_picture_at_its_own_resolution(scale):
    pixels, pipe = picture(16, 16), PixelwiseSegmenter((16, 16) if scale == 1 else (8, 8))
    raster, tiling = ArrayRaster(pixels), Tiling(pipe.image_size, scale)
    plain = segment_tiled(pipe, raster, tiling, return_probabilities=True).probabilities
    pipe.guided = (1.0, 0.2)
    expected = joint_bilateral(torch.from_numpy(plain), torch.from_numpy(pixels / 255).float(), 1.0, 0.2)
    for found in (
        segment_tiled(pipe, raster, tiling, return_probabilities=True),
        segment_whole(pipe, raster, 0, InputChannels(), return_probabilities=True),
    ):
        assert found.probabilities == pytest.approx(expected.numpy(), abs=1e-5)
        assert np.array_equal(found.labels, found.probabilities.argmax(0))
