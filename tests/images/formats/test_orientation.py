# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Orientation of TIFF and EXIF."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffuseseg_diffusers.images.formats import tiff
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.cells import open_cell
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.images.formats.orientation import turned
from diffuseseg_diffusers.images.formats.pictures import PictureRaster

from .pictures import values


STORED = values(3, 10, 16).transpose(1, 2, 0)


def upright(orientation):
    """As Pillow turns it, `[H, W, C]`."""
    image, exif = Image.fromarray(STORED), Image.Exif()
    exif[274] = orientation
    image.info["exif"] = exif.tobytes()
    return np.asarray(ImageOps.exif_transpose(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tiled", [False, True])
def test_windows_of_a_tiff_are_those_of_the_upright_picture(tmp_path, monkeypatch, orientation, tiled):
    tifffile = pytest.importorskip("tifffile")
    monkeypatch.setattr(tiff, "IN_MEMORY", 0 if tiled else tiff.IN_MEMORY)
    expected = upright(orientation).transpose(2, 0, 1)
    options = {"tile": (16, 16), "resolution": (20000, 10000), "resolutionunit": 3} if tiled else {}
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STORED, photometric="rgb", extratags=[(274, "H", 1, orientation, True)], **options)
    data = path.read_bytes()
    rasters = [open_raster(path), open_cell({"bytes": data, "path": None}, "row 0")]
    rasters += [PictureRaster(path, "a"), PictureRaster(BytesIO(data), "a")]  # without tifffile
    for raster in rasters:
        height, width = raster.size
        assert (height, width) == expected.shape[1:] and raster.read(0, Window(0, 0, 1, 1)).shape == (3, 1, 1)
        assert np.array_equal(raster.read(0, Window(1, 2, height - 3, 4)), expected[:, 1 : height - 2, 2:6])
        assert raster.orientation == orientation
    if tiled:
        assert rasters[0].pixel_size == ((0.5, 1.0) if orientation > 4 else (1.0, 0.5))
    assert np.array_equal(turned(STORED.transpose(2, 0, 1), orientation), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pictures_know_how_they_were_turned(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(STORED).save(tmp_path / f"a.{suffix}", exif=exif)
    raster = PictureRaster(tmp_path / f"a.{suffix}", "a")
    assert raster.size == (16, 10) == raster.values.shape[1:] and raster.orientation == 6
