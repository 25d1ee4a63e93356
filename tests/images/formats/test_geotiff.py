# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Maps: where they lie, what they show, and where nothing was measured."""

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.geotiff import GeoRaster
from diffuseseg_diffusers.images.formats.opening import is_raster, open_raster

from .pictures import stripes, values


rasterio = pytest.importorskip("rasterio")
from rasterio.control import GroundControlPoint  # noqa: E402
from rasterio.rpc import RPC  # noqa: E402
from rasterio.transform import Affine  # noqa: E402


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PLACE = Affine(0.5, 0, 400000, 0, -0.5, 5000000)
WORLD = "0.5\n0\n0\n-0.5\n400000.25\n4999999.75\n"  # ESRI: the centre of the first pixel
GREY = values(1, 20, 30)
_OFFSETS = {f"{name}_{kind}": 2.0 for name in ("height", "lat", "line", "long", "samp") for kind in ("off", "scale")}
_TERMS = {f"{name}_{kind}_coeff": [0.5] * 20 for name in ("line", "samp") for kind in ("num", "den")}
RPCS = RPC(**_OFFSETS, **_TERMS, err_bias=0.5, err_rand=0.5)


def write(path, pixels=GREY, mask=None, colours=None, gcps=None, rpcs=None, **options):
    options = {"driver": "GTiff", "crs": "EPSG:32633", "transform": PLACE} | options
    options |= {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    if gcps:
        options |= {"gcps": gcps, "transform": None}
    with rasterio.open(path, "w", **options) as file:
        if rpcs:
            file.rpcs = rpcs
        if colours is not None:
            file.write_colormap(1, {i: tuple(map(int, colour)) for i, colour in enumerate(colours)})
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)


def picture(path, world=None):
    Image.fromarray(GREY[0]).save(path)
    if world:
        path.with_suffix(world).write_text(WORLD)


POINTS = [GroundControlPoint(r, c, 400000 + c, 5000000 - r) for r, c in ((0, 0), (0, 29), (19, 0), (19, 29))]
# How a place is given, and where the rule stands.
PLACES = {
    "a transform alone.tif": (lambda path: write(path, crs=None), "GeoTIFF 1.1, ModelPixelScale"),
    "world.tif": (lambda path: picture(path, ".tfw"), "ESRI world file"),
    "world.wld.tif": (lambda path: picture(path, ".wld"), "GDAL, GTiff driver"),
    "world.png": (lambda path: picture(path, ".pgw"), "ESRI world file"),
    "world.jpg": (lambda path: picture(path, ".jgw"), "ESRI world file"),
    "capital.JPG": (lambda path: picture(path, ".JGW"), "ESRI world file"),
    "points.tif": (lambda path: write(path, gcps=POINTS), "GeoTIFF 1.1, ModelTiepoint"),
    "tile.jp2": (lambda path: write(path, driver="JP2OpenJPEG", REVERSIBLE="YES", QUALITY="100"), "GMLJP2, GeoJP2"),
    "rpcs.tif": (lambda path: write(path, crs=None, transform=None, rpcs=RPCS), "RPCs in GeoTIFF"),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_mask_lies_where_its_map_does(tmp_path, name):
    path = tmp_path / name
    PLACES[name][0](path)
    assert is_raster(path)
    with open_raster(path) as raster:
        assert isinstance(raster, GeoRaster) and raster.size == (20, 30)
        raster.write_labels(tmp_path / "mask.tif", stripes, np.dtype(np.uint8), [[0, 0, 0], [255, 0, 0], [0, 255, 0]])
    with rasterio.open(path) as one, rasterio.open(tmp_path / "mask.tif") as other:
        assert one.transform == other.transform and one.crs == other.crs
        points = [[(p.row, p.col, p.x, p.y) for p in file.gcps[0]] for file in (one, other)]
        assert points[0] == points[1] and len(points[0]) == (4 if "points" in name else 0)
        assert one.rpcs == other.rpcs and (one.rpcs is not None) == ("rpcs" in name)
        if "world" in name or "capital" in name:
            assert other.transform == PLACE


COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint8)
RGB = np.full((3, 20, 30), [[[200]], [[40]], [[90]]], np.uint8)
# What is stored, what is shown, and where the rule stands.
SHOWN = {
    "colour map": ({"colours": COLOURS}, COLOURS[GREY[0]].transpose(2, 0, 1), "GDAL, colour interpretation: palette"),
    "MinIsWhite": ({"photometric": "MINISWHITE"}, 255 - GREY, "TIFF 6.0; GDAL keeps what is stored"),
    "4 bits": ({"pixels": GREY >> 4, "NBITS": 4}, (GREY >> 4) * 17, "GDAL, NBITS"),
    "YCbCr": ({"pixels": RGB, "photometric": "YCBCR", "compress": "JPEG", "JPEG_QUALITY": 100}, RGB, "GDAL gives RGB"),
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_map_gives_what_a_viewer_shows(tmp_path, case):
    how, shown, _ = SHOWN[case]
    write(tmp_path / "a.tif", **how)
    raster = open_raster(tmp_path / "a.tif")
    read = raster.read(0, Window(2, 3, 10, 20))
    near = 3 if case == "YCbCr" else 0  # JPEG
    assert np.abs(read.astype(int) - shown[:, 2:12, 3:23]).max() <= near and len(raster.channels) == len(shown)
    if case in ("colour map", "4 bits"):
        assert np.array_equal(raster.read_ids(0, Window(0, 0, 20, 30)), how.get("pixels", GREY))


VALID = np.zeros((20, 30), bool)
VALID[:, 10:] = True
BLANK = np.where(VALID, GREY, 0).astype(np.uint8)
# What says that there is nothing.
GAPS = {
    "a mask band": {"pixels": BLANK, "mask": VALID},
    "alpha": {"pixels": np.stack([*RGB, VALID * np.uint8(255)]), "photometric": "RGB", "ALPHA": "YES"},
    "nodata": {"pixels": np.where(VALID, GREY | 1, 0).astype(np.uint8), "nodata": 0},
    "NaN that is named": {"pixels": np.where(VALID, GREY / 255, np.nan).astype(np.float32), "nodata": np.nan},
    "NaN": {"pixels": np.where(VALID, GREY / 255, np.nan).astype(np.float32)},
    "nodata in a colour map": {
        "pixels": np.where(VALID, GREY | 1, 0).astype(np.uint8),
        "nodata": 0,
        "colours": COLOURS,
    },
}


@pytest.mark.parametrize("case", GAPS)
def test_where_nothing_was_measured_is_known(tmp_path, case):
    write(tmp_path / "a.tif", **GAPS[case])
    raster, window = open_raster(tmp_path / "a.tif"), Window(5, 5, 10, 20)
    gaps = raster.gaps(raster.read(0, window), 0, window)
    assert raster.has_gaps and np.array_equal(gaps, ~VALID[5:15, 5:25])
    inside = Window(0, 15, 5, 5)
    assert raster.gaps(raster.read(0, inside), 0, inside) is None
