# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which reader an image gets."""

import numpy as np
import pytest

from diffuseseg_diffusers.images.formats import opening
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import lost_here, open_raster
from diffuseseg_diffusers.images.formats.pictures import PictureRaster
from diffuseseg_diffusers.jobs.errors import UserError

from .pictures import values


def test_without_imagecodecs_pillow_reads_what_it_can_and_says_so(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    pixels = values(3).transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="lzw")
    tifffile.imwrite(tmp_path / "pages.tif", [pixels, pixels], photometric="rgb", compression="lzw")
    tifffile.imwrite(tmp_path / "plain.tif", pixels, photometric="rgb", compression="zlib")
    inner = tifffile.tifffile
    monkeypatch.setattr(inner, "imagecodecs", __import__("tifffile._imagecodecs", fromlist=["x"]))
    monkeypatch.setattr(inner.TIFF, "DECOMPRESSORS", type(inner.TIFF.DECOMPRESSORS)(encode=False), raising=False)
    find = opening.importlib.util.find_spec
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: name != "imagecodecs" and find(name))
    raster = open_raster(tmp_path / "a.tif")
    assert isinstance(raster, PictureRaster)
    assert np.array_equal(raster.read(0, Window(0, 0, 70, 90)), pixels.transpose(2, 0, 1))
    assert "a.tif is read by Pillow" in raster.notes[0] and "imagecodecs is not installed; run `pip" in raster.notes[0]
    with pytest.raises(UserError, match="imagecodecs is not installed; run `pip install"):
        open_raster(tmp_path / "pages.tif")
    assert open_raster(tmp_path / "plain.tif").notes == []


def test_what_is_lost_without_an_optional_package_is_said(tmp_path, monkeypatch):
    (tmp_path / "map.pgw").write_text("1\n0\n0\n-1\n0\n0\n")
    assert lost_here(tmp_path / "map.png") is None
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)  # nothing is installed
    assert "loses its place on the map, which the extra `geo` keeps" in lost_here(tmp_path / "map.png")
    assert "is read by Pillow, its first page alone" in lost_here(tmp_path / "a.tif")
    assert lost_here(tmp_path / "b.png") is lost_here("https://host/a.tif") is None
