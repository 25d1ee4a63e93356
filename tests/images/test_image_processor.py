# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import io
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.images.image_processor import (
    DiffuseSegImageProcessor,
    decode_image,
    default_palette,
    mask_to_pil,
    open_image,
    overlay,
    to_eight_bit,
)
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import draw
from ..http_server import served


@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_gives_the_same_pixels(channels, tmp_path):
    processor = DiffuseSegImageProcessor(channels)
    array = draw((12, 20), 0, channels)[0]
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array if channels == 3 else array[..., None]).movedim(-1, 0)
    kinds = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Image.fromarray(array),
        array,
        array.astype(np.float32) / 255,
        array[None] if channels == 3 else array[None, ..., None],
        tensor,
        tensor.float() / 255,
        tensor[None],
    ]
    loaded = processor.load(kinds)
    assert processor.sizes(loaded) == [(12, 20)] * len(kinds)
    pixels = processor.preprocess(loaded, 12, 20)
    assert pixels.shape == (len(kinds), channels, 12, 20) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    for x in pixels[1:]:
        torch.testing.assert_close(x, pixels[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(pixels[0], tensor.float() / 127.5 - 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_mode_are_taken(mode, channels):
    grey = Image.fromarray(draw((9, 7), 0)[0])
    if mode in ("I;16", "I"):
        values = np.asarray(grey).astype(np.uint16) * 257
        image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
    elif mode == "F":
        image = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    elif mode == "P":
        image = grey.convert("RGB").quantize(256)
    else:
        image = grey.convert("RGB").convert(mode) if mode != "LA" else grey.convert("LA")
    assert image.mode == mode
    processor = DiffuseSegImageProcessor(channels)
    pixels = processor.preprocess(processor.load(image), 9, 7)
    assert pixels.shape == (1, channels, 9, 7)
    if mode != "1":
        expected = torch.from_numpy(np.array(grey)) / 127.5 - 1
        assert (pixels[0].mean(0) - expected).abs().mean() < 0.05


def test_sixteen_bit_scans_keep_their_full_range():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(to_eight_bit(Image.fromarray(ramp))).ravel(), np.arange(256))


def test_twelve_bit_scans_in_sixteen_bits_are_warned_of(caplog):
    to_eight_bit(Image.fromarray(np.full((4, 4), 60000, np.uint16)))
    assert not caplog.text
    to_eight_bit(Image.fromarray(np.full((4, 4), 4095, np.uint16)))
    assert "uses only 0 to 4095 of 0 to 65535" in caplog.text


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
)
def test_images_of_mixed_sizes_become_one_batch(sizes, height, width):
    processor = DiffuseSegImageProcessor(1)
    arrays = [np.full(s, 10 * i, np.uint8) for i, s in enumerate(sizes)]
    mixed = [Image.fromarray(a) if i % 2 else a for i, a in enumerate(arrays)]
    loaded = processor.load(mixed)
    assert processor.sizes(loaded) == sizes
    pixels = processor.preprocess(loaded, height, width)
    for i, x in enumerate(pixels):
        torch.testing.assert_close(x, torch.full((1, height, width), 10 * i / 127.5 - 1), atol=1e-5, rtol=0)


def test_shrinking_is_antialiased_for_images_and_tensors():
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    processor = DiffuseSegImageProcessor(1)
    pixels = processor.preprocess(processor.load([Image.fromarray(stripes), stripes]), 8, 8)
    assert pixels.abs().max() < 0.2  # grey, not a moiré of black and white


def test_broken_missing_and_impossible_images_are_refused_in_a_sentence(tmp_path):
    Image.fromarray(draw((64, 64), 0)[0]).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no image")
    for name in ("half.png", "text.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as an image"):
            open_image(tmp_path / name)
    with pytest.raises(UserError, match="There is no file .*none.png"):
        open_image(tmp_path / "none.png")
    processor = DiffuseSegImageProcessor(3)
    for image, message in (
        (np.full((4, 4), 7.0), "lie in 0 to 1, found 7 to 7"),
        (torch.full((1, 4, 4), float("nan")), "lie in 0 to 1"),
        (np.zeros((4, 4, 7), np.uint8), "1, 3 or 4 channels"),
        (Image.fromarray(np.full((4, 4), 300.0, np.float32)), 'mode "F" must lie in 0 to 1'),
        (42, "path, PIL image, array or tensor, got int"),
    ):
        with pytest.raises(ValueError, match=message):
            processor.load(image)
    with pytest.raises(ValueError, match="has 3 channels, and the model takes 4"):
        DiffuseSegImageProcessor(4).load(np.zeros((4, 4, 3), np.uint8))


def test_images_are_turned_as_their_exif_data_say(tmp_path):
    image = Image.fromarray(draw((10, 20), 0)[0])
    exif = Image.Exif()
    exif[274] = 6  # rotate by 90° to view
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (10, 20)


def test_pil_masks_hold_class_ids_and_colours():
    mask = draw((12, 8), 0)[1]
    image = mask_to_pil(mask, [[0, 0, 0], [255, 0, 0], [0, 255, 0]])
    assert image.mode == "P" and np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB"))[mask == 1][0], [255, 0, 0])


def test_palettes_have_no_colour_twice():
    for n in (2, 8, 34, 256):
        colors = default_palette(n)
        assert len(colors) == n and len({tuple(c) for c in colors}) == n
        assert all(0 <= x <= 255 for c in colors for x in c)
    apart = np.linalg.norm(np.array(default_palette(34))[:, None] - np.array(default_palette(34)), axis=2)
    assert apart[apart > 0].min() > 55  # no two look alike


def test_overlays_colour_classes_and_leave_ignored_pixels():
    image = Image.fromarray(np.full((4, 4), 100, np.uint8))
    mask = np.zeros((4, 4), np.uint8)
    mask[2:] = 255
    result = np.asarray(overlay(image, mask, [[200, 0, 0]], alpha=0.5))
    assert result[0, 0].tolist() == [150, 50, 50] and result[3, 3].tolist() == [100, 100, 100]


def test_overlays_leave_a_black_first_class_unpainted_and_outline_the_others_within():
    """Was: black over half of the image, so that dark photographs could not be seen."""
    image = Image.fromarray(np.full((7, 7), 30, np.uint8))
    mask = np.zeros((7, 7), np.uint8)
    mask[1:6, 1:6] = 1
    result = np.asarray(overlay(image, mask, [[0, 0, 0], [230, 158, 0]], alpha=0.5))
    assert (result[mask == 0] == 30).all()
    inside = np.zeros((7, 7), bool)
    inside[2:5, 2:5] = True
    assert (result[inside] == [130, 94, 15]).all() and (result[(mask == 1) & ~inside] == [230, 158, 0]).all()
    painted = np.asarray(overlay(image, mask, [[0, 0, 90], [230, 158, 0]], alpha=0.5))
    assert painted[0, 0].tolist() == [15, 15, 60]


@pytest.mark.parametrize("suffix", ["tiff", "gif", "webp", "png"])
def test_of_several_pages_the_first_is_read_and_one_line_says_so(suffix, caplog, tmp_path):
    """Point 8 of what was found: the others were dropped without a word."""
    pages = [Image.fromarray(draw((16, 16), i, 3)[0]) for i in range(3)]
    path = tmp_path / f"scan.{suffix}"
    pages[0].save(path, save_all=True, append_images=pages[1:], **({"lossless": True} if suffix == "webp" else {}))
    for _ in range(2):  # the line comes once a file
        first = open_image(path)
    assert np.abs(np.asarray(first.convert("RGB"), int) - np.asarray(pages[0], int)).mean() < 8  # GIF has few colours
    assert [r.getMessage() for r in caplog.records] == [
        f"{path} has 3 pages; the first is read and the others are left out."
    ]
    decode_image(io.BytesIO(path.read_bytes()), f"The image in row {suffix}")
    assert f"The image in row {suffix} has 3 pages" in caplog.text
    pages[0].save(path)
    open_image(path)
    assert len(caplog.records) == 2


@pytest.mark.filterwarnings("ignore")
def test_whatever_is_wrong_with_the_pixels_is_one_error_for_users(tmp_path):
    """Pillow raises a dozen kinds of errors on broken files."""
    rng, refused = np.random.default_rng(0), 0
    image = Image.fromarray(draw((16, 16), 0, 3)[0])
    for suffix in ("png", "gif", "tiff", "jpeg", "bmp", "ppm", "webp"):
        whole = io.BytesIO()
        image.save(whole, suffix, **({"save_all": True, "append_images": [image.rotate(9)]} if suffix == "gif" else {}))
        for _ in range(60):
            data = bytearray(whole.getvalue())
            for place in rng.integers(0, min(len(data), 300), 4):
                data[place] = rng.integers(256)
            try:
                decode_image(io.BytesIO(data), "row 7")
            except UserError as error:
                refused += 1
                assert re.match("row 7 (cannot be read as an image|has more than)", str(error))
                assert "BytesIO" not in str(error)
    assert refused > 50
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    Image.fromarray(draw((64, 64), 0)[0]).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "half.png") as half, pytest.raises(UserError, match="cannot be read as an image"):
        DiffuseSegImageProcessor(3).load(half)  # opened, and not read before


@pytest.fixture
def server(tmp_path):
    """The address of the test's own folder."""
    with served(tmp_path) as address:
        yield address


def test_addresses_are_taken_as_load_image_does_and_keep_their_mode(server, tmp_path):
    image = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    image.save(tmp_path / "scan.png")
    assert open_image(f"{server}/scan.png").mode == image.mode
    processor = DiffuseSegImageProcessor(1)
    fetched, read = processor.load([f"{server}/scan.png", tmp_path / "scan.png"])
    assert np.array_equal(np.asarray(fetched), np.arange(256).reshape(16, 16)) and fetched == read
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(draw((10, 20), 0)[0]).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(f"{server}/turned.jpg").size == (10, 20)


def test_an_address_that_gives_no_image_is_one_error_for_users(server, tmp_path):
    (tmp_path / "page.html").write_text("<html></html>")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    for address in (f"{server}/page.html", f"{server}/none.png", f"{server}/half.png", "http://127.0.0.1:9/x.png"):
        with pytest.raises(UserError, match=f"{address} cannot be fetched as an image .*; check the address"):
            DiffuseSegImageProcessor(3).load(address)
    with pytest.raises(UserError, match="There is no file ftp://x/y.png"):
        open_image("ftp://x/y.png")


@pytest.mark.parametrize("classes", [2, 3, 5, 40])
def test_ids_beyond_the_palette_survive_a_file(tmp_path, classes):
    """Pillow saves as many bits as the palette needs: 255 of two classes would be 1, of five 15."""
    mask = np.array([[0, 1, 255], [1, 255, 0]], np.uint8)
    mask_to_pil(mask, default_palette(classes)).save(tmp_path / "mask.png")
    assert (np.asarray(Image.open(tmp_path / "mask.png")) == mask).all()
