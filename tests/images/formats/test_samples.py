# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A file in every form that TIFF has for it gives the picture that a viewer shows, and a mask its numbers."""

from io import BytesIO

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.cells import needs_raster, open_cell
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.images.formats.orientation import turned
from diffuseseg_diffusers.images.image_processor import open_image
from diffuseseg_diffusers.jobs.errors import UserError


tifffile = pytest.importorskip("tifffile")

GREY = np.random.default_rng(0).integers(0, 256, (12, 17)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (12, 17, 3)).astype(np.uint8)
BLACK_AND_WHITE = GREY > 127
IDS = (GREY // 64).astype(np.uint8)
SHUFFLED = np.random.default_rng(2).permutation(256).astype(np.uint8)  # grey of each index
INDICES = np.argsort(SHUFFLED).astype(np.uint8)
COLOURS = np.random.default_rng(3).integers(0, 256, (256, 3)).astype(np.uint8)


def ramp(colours):
    """`[N, 3]` uint8 as the tag ColorMap holds it."""
    return colours.T.astype(np.uint16) * 257


def tiff(pixels, **options):
    data = BytesIO()
    tifffile.imwrite(data, pixels, **options)
    return data.getvalue()


def pillow(mode, pixels=COLOUR, **options):
    data = BytesIO()
    Image.fromarray(pixels).convert(mode).save(data, "tiff", **options)
    return data.getvalue()


# What is stored, what is shown `[H, W]` or `[H, W, C]`, and where the rule stands.
SHOWN = {
    "MinIsWhite 8": (tiff(255 - GREY, photometric="miniswhite"), GREY, "TIFF 6.0, PhotometricInterpretation 0"),
    "MinIsWhite 16": (tiff(65535 - GREY * np.uint16(257), photometric="miniswhite"), GREY * np.uint16(257), "TIFF 6.0"),
    "MinIsWhite 1": (tiff(~BLACK_AND_WHITE, photometric="miniswhite"), BLACK_AND_WHITE, "TIFF 6.0"),
    "MinIsWhite of a fax": (
        pillow("1", BLACK_AND_WHITE * np.uint8(255), compression="group4", tiffinfo={262: 0}),
        BLACK_AND_WHITE,
        "ITU-T T.6; Pillow",
    ),
    "2 bits": (tiff(GREY >> 6, photometric="minisblack", bitspersample=2), (GREY >> 6) * 85, "TIFF 6.0, BitsPerSample"),
    "4 bits": (tiff(GREY >> 4, photometric="minisblack", bitspersample=4), (GREY >> 4) * 17, "TIFF 6.0, BitsPerSample"),
    "palette of greys": (tiff(INDICES[GREY], photometric="palette", colormap=ramp(np.stack([SHUFFLED] * 3, 1))), GREY)
    + ("TIFF 6.0, ColorMap",),
    "palette": (tiff(GREY, photometric="palette", colormap=ramp(COLOURS)), COLOURS[GREY], "TIFF 6.0, ColorMap"),
    "palette of bytes": (tiff(GREY, photometric="palette", colormap=COLOURS.T.astype(np.uint16)), COLOURS[GREY])
    + ("libtiff, checkcmap",),
    "palette, LZW": (tiff(GREY, photometric="palette", colormap=ramp(COLOURS), compression="lzw"), COLOURS[GREY], "5"),
    "CMYK": (pillow("CMYK"), COLOUR, "TIFF 6.0, Separated; Pillow"),
    "CMYK of 16 bits": (
        tiff(np.dstack([65535 - COLOUR * np.uint16(257), np.zeros((12, 17), np.uint16)]), photometric="separated"),
        COLOUR * np.uint16(257),
        "TIFF 6.0, Separated",
    ),
    "Lab": (pillow("LAB"), np.asarray(Image.fromarray(COLOUR).convert("LAB").convert("RGB")), "TIFF 6.0, CIELab"),
    "YCbCr": (pillow("YCbCr"), np.asarray(Image.fromarray(COLOUR).convert("YCbCr").convert("RGB")), "TIFF 6.0; Pillow"),
    "RGB by planes": (
        tiff(COLOUR.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        COLOUR,
        "TIFF 6.0, PlanarConfiguration",
    ),
    "grey and alpha": (
        tiff(np.dstack([GREY, GREY]), photometric="minisblack", extrasamples=["unassalpha"]),
        np.dstack([GREY, GREY]),
        "TIFF 6.0, ExtraSamples",
    ),
    "zstd": (tiff(COLOUR, photometric="rgb", compression="zstd", predictor=True), COLOUR, "libtiff"),
    "LZW": (pillow("RGB", compression="tiff_lzw"), COLOUR, "TIFF 6.0, Compression 5"),
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_tiff_gives_what_a_viewer_shows_from_a_file_and_from_parquet(tmp_path, case):
    data, shown, _ = SHOWN[case]
    (tmp_path / "a.tif").write_bytes(data)
    cell = {"path": None, "bytes": data}
    assert needs_raster(cell)
    for raster in (open_raster(tmp_path / "a.tif"), open_cell(cell, "row 0")):
        read = raster.read(0, Window(2, 3, 8, 9)).transpose(1, 2, 0)
        assert read.dtype == raster.dtype == shown.dtype and len(raster.channels) == read.shape[2]
        assert np.array_equal(read, np.atleast_3d(shown)[2:10, 3:12])
        expected = {1: ("gray",), 2: ("gray", "alpha"), 3: ("red", "green", "blue")}
        assert raster.channels == expected[read.shape[2]]


@pytest.mark.parametrize("case", ["MinIsWhite 8", "MinIsWhite 16", "MinIsWhite 1", "4 bits", "palette", "CMYK"])
def test_pillow_alone_shows_the_same(tmp_path, case):
    data, shown, _ = SHOWN[case]
    (tmp_path / "a.tif").write_bytes(data)
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(image.convert("RGB") if image.mode in ("P", "CMYK") else image), shown)


# What is stored, and the class ids in it.
NUMBERS = {
    "palette": (tiff(IDS, photometric="palette", colormap=ramp(COLOURS)), IDS, "indices are ids; Pascal VOC"),
    "2 bits": (tiff(IDS, photometric="minisblack", bitspersample=2), IDS, "the values of the samples"),
    "MinIsWhite": (tiff(255 - IDS, photometric="miniswhite"), IDS, "the values that are shown"),
    "1 bit": (tiff(BLACK_AND_WHITE, photometric="minisblack"), BLACK_AND_WHITE, "the values of the samples"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_mask_gives_its_numbers_and_not_its_colours(tmp_path, case):
    data, ids, _ = NUMBERS[case]
    (tmp_path / "a.tif").write_bytes(data)
    assert np.array_equal(open_raster(tmp_path / "a.tif").read_ids(0, Window(0, 0, 12, 17))[0], ids)


def test_what_has_no_known_meaning_is_refused_or_said(tmp_path):
    for name, pixels, options, message in (
        ("float", GREY / np.float32(255), {"photometric": "miniswhite"}, "MinIsWhite with values of float32, of which"),
        ("raw", GREY, {"photometric": "cfa"}, "holds values of a sensor"),
        ("lab16", COLOUR.astype(np.uint16), {"photometric": "cielab"}, "LAB colours of uint16; save it as RGB"),
    ):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, **options)
        with pytest.raises(UserError, match=message):
            open_raster(tmp_path / f"{name}.tif").read(0, Window(0, 0, 12, 17))
    tifffile.imwrite(tmp_path / "twelve.tif", GREY * np.uint16(16), photometric="minisblack", bitspersample=12)
    assert "has 12 bits, and 65,535 is taken for white; 4,095 is" in open_raster(tmp_path / "twelve.tif").notes[0]
    tifffile.imwrite(
        tmp_path / "inks.tif", np.dstack([COLOUR, GREY]), photometric="separated", extratags=[(332, "H", 1, 2, True)]
    )
    assert "holds other inks than cyan, magenta" in open_raster(tmp_path / "inks.tif").notes[0]
    tifffile.imwrite(tmp_path / "booleans.tif", BLACK_AND_WHITE)
    assert "says that 0 is white (MinIsWhite), as tifffile writes" in open_raster(tmp_path / "booleans.tif").notes[0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_form_a_picture_is_stored_in_it_is_the_same_picture(tmp_path, data):
    """Sample format × interpretation × layout × orientation × compression; the window is any."""
    draw, name = data.draw, tmp_path / "a.tif"
    depth = draw(st.sampled_from(["uint8", "uint16"]))
    kind = draw(st.sampled_from(["minisblack", "miniswhite", "palette", "rgb", "separated"]))
    top, orientation = np.iinfo(depth).max, draw(st.integers(1, 8))
    shown = (GREY if kind in ("minisblack", "miniswhite", "palette") else COLOUR).astype(depth) * (top // 255)
    stored, options = shown, {}
    if kind == "miniswhite":
        stored = top - shown
    elif kind == "palette":
        depth, stored, shown = "uint8", INDICES[GREY], GREY
        options["colormap"] = ramp(np.stack([SHUFFLED] * 3, 1))
    elif kind == "separated":
        stored = np.dstack([top - shown, np.zeros(GREY.shape, depth)])
    if stored.ndim == 3 and draw(st.booleans()):
        stored, options["planarconfig"] = stored.transpose(2, 0, 1).copy(), "separate"
    if draw(st.booleans()):
        options["tile"] = (16, 16)
    options["compression"] = draw(st.sampled_from([None, "zlib", "lzw", "zstd"]))
    options["byteorder"] = draw(st.sampled_from("<>"))
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(name, stored, photometric=kind, extratags=[tag], metadata=None, **options)
    expected = turned(np.atleast_3d(shown).transpose(2, 0, 1), orientation)
    raster = open_raster(name)
    assert raster.size == expected.shape[1:] and raster.dtype == depth
    rows, columns = (sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in raster.size)
    window = Window(rows[0], columns[0], max(1, rows[1] - rows[0]), max(1, columns[1] - columns[0]))
    assert np.array_equal(raster.read(0, window), expected[(slice(None), *window.slices)])
    raster.close()


def test_jpeg_2000_of_aperio_holds_ycbcr(tmp_path):
    """Compression 33003, by OpenSlide's documentation of Aperio's format; the tags say RGB."""
    smooth = np.asarray(Image.fromarray(COLOUR[:4, :4]).resize((64, 64), Image.Resampling.BICUBIC))
    stored = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    options = {"compression": 33003, "compressionargs": {"reversible": True, "mct": False}, "tile": (64, 64)}
    tifffile.imwrite(tmp_path / "a.svs", stored, photometric="rgb", **options)
    read = open_raster(tmp_path / "a.svs").read(0, Window(0, 0, 64, 64)).transpose(1, 2, 0)
    assert np.abs(read.astype(int) - smooth).max() <= 3
