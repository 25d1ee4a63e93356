# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Cells of image columns."""

import numpy as np
import pytest
from datasets import Array2D, Array3D, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.datasets.columns import decode_cell
from diffuseseg_diffusers.datasets.crops import Pictures
from diffuseseg_diffusers.datasets.unlabeled import decode_pixels
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.cells import needs_raster, open_cell
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.labeling.pictures import Picture

from .pictures import values
from .test_geotiff import PLACE, write


@pytest.mark.parametrize("shape", [(7, 9), (1, 7, 9), (3, 7, 9), (7, 9, 3), (7, 9, 1), (4, 7, 9)])
def test_arrays_of_datasets_are_images(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    kind = (Array2D if len(shape) == 2 else Array3D)(shape, "uint8")
    cell = Dataset.from_dict({"image": [pixels]}, Features({"image": kind}))[0]["image"]
    assert needs_raster(cell)
    raster = open_cell(cell, "row 0")
    expected = pixels[None] if len(shape) == 2 else pixels if shape[1:] == (7, 9) else pixels.transpose(2, 0, 1)
    assert raster.size == (7, 9) and np.array_equal(raster.read(0, Window(0, 0, 7, 9)), expected)


@pytest.mark.parametrize("shape", [(5, 7, 9), (3, 7, 4), (2, 3, 7, 9), (0, 4)])
def test_arrays_whose_channels_are_unknown_are_refused(shape):
    with pytest.raises(UserError, match="row 0 holds an array"):
        open_cell(np.zeros(shape, np.uint8), "row 0")


def test_a_map_in_a_cell_is_read_as_the_file_is(tmp_path):
    pixels = values(1, 20, 30) | 1
    pixels[:, :, :10] = 0
    write(tmp_path / "a.tif", pixels, nodata=0)
    raster = open_cell({"path": "a.tif", "bytes": (tmp_path / "a.tif").read_bytes()}, "row 0")
    window = Window(0, 0, 20, 30)
    read = raster.read(0, window)
    assert raster.name == "a.tif (row 0)" and raster.transform == PLACE and np.array_equal(read, pixels)
    assert np.array_equal(raster.gaps(read, 0, window), pixels[0] == 0)
    raster.close()


@pytest.mark.parametrize("dtype, mode", [("uint8", "L"), ("bool", "1"), ("uint16", "I;16"), ("float32", "F")])
def test_a_tiff_of_a_picture_is_an_image_like_any_other(tmp_path, dtype, mode):
    tifffile = pytest.importorskip("tifffile")
    pixels = (values(1)[0] > 100).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack")
    for cell in (str(tmp_path / "a.tif"), {"path": None, "bytes": (tmp_path / "a.tif").read_bytes()}):
        image = decode_cell(cell, "row 0")[0]
        assert image.mode == mode and np.array_equal(np.asarray(image), pixels)
    tifffile.imwrite(tmp_path / "b.tif", [pixels, pixels], photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(UserError, match="b.tif has 2 planes of 1 channels of .*, and one plane of 8 bits"):
        decode_cell(str(tmp_path / "b.tif"), "row 0")


SHADES = np.random.default_rng(5).permutation(256).astype(np.uint8)
UPRIGHT = np.random.default_rng(6).integers(0, 256, (24, 16)).astype(np.uint8)
FORMS = {
    "MinIsWhite": (255 - UPRIGHT, {"photometric": "miniswhite"}),
    "palette": (np.argsort(SHADES).astype(np.uint8)[UPRIGHT], {"photometric": "palette"}),
    "lying": (np.rot90(UPRIGHT), {"photometric": "minisblack", "extratags": [(274, "H", 1, 6, True)]}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoded", [False, True])
def test_fitting_training_segmenting_and_labelling_see_the_same_picture(tmp_path, form, encoded):
    stored, options = FORMS[form]
    if form == "palette":
        options = options | {"colormap": np.stack([SHADES] * 3).astype(np.uint16) * 257}
    path, ids = tmp_path / "a.tif", (UPRIGHT > 127).astype(np.uint8)
    pytest.importorskip("tifffile").imwrite(path, stored, **options)
    Image.fromarray(ids).save(tmp_path / "ids.png")
    cell = {"path": None, "bytes": path.read_bytes()} if encoded else {"path": str(path), "bytes": None}
    columns = {"image": [cell], "mask": [{"path": str(tmp_path / "ids.png"), "bytes": None}]}
    dataset = Dataset.from_dict(columns, Features({name: ImageFeature(decode=False) for name in columns}))
    window = Window(0, 0, 24, 16)
    seen = {
        "fit": np.asarray(LabeledImages(dataset, num_classes=2)[0].image),
        "train-ddpm": decode_pixels(cell, "row 0", (24, 16), 1, "crop")[0].numpy(),
        "segment": open_cell(cell, "row 0").read(0, window)[0],
        "crops": Pictures(dataset, "image")[0].read(0, window)[0],
        "distillation": np.asarray(decode_cell(cell, "row 0")[0]),
        "labelling": np.asarray(Picture("a.tif", path, (24, 16), tmp_path).shown(InputChannels())[0]),
        "Python": np.asarray(DiffuseSegImageProcessor(1).load(path)[0]),
    }
    assert {place: np.array_equal(pixels, UPRIGHT) for place, pixels in seen.items()} == dict.fromkeys(seen, True)
