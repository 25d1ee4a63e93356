# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Each format as the libraries of its field write it, and masks as they read them."""

import locale

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import find_rasters, is_raster, open_raster
from diffuseseg_diffusers.images.image_processor import limit_pixels
from diffuseseg_diffusers.images.lengths import micrometres
from diffuseseg_diffusers.jobs.errors import UserError

from .pictures import dicom_series, geotiff, ome_tiff, ome_zarr, stripes, values, volume


PALETTE = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]


def whole(raster, plane=0, level=0):
    down = raster.levels[level]
    return raster.read(plane, Window(0, 0, round(raster.height / down), round(raster.width / down)), level)


def written(raster, path):
    raster.write_labels(path, stripes, np.dtype(np.uint8), PALETTE)
    mask = open_raster(path)
    assert (mask.planes, mask.size) == (raster.planes, raster.size)
    for plane in range(mask.planes):
        window = Window(0, 0, *mask.size)
        assert np.array_equal(mask.read_ids(plane, window)[0], stripes(plane, window))
    return mask


def test_an_ome_tiff_keeps_names_pixel_size_position_and_pyramid(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = values(3)
    raster = open_raster(ome_tiff(tmp_path / "a.ome.tif", pixels, ["DAPI", "GFP", "RFP"]))
    assert raster.channels == ("DAPI", "GFP", "RFP") and raster.pixel_size == (0.25, 0.5) and raster.levels == (1, 2)
    assert np.array_equal(raster.read(0, Window(5, 8, 30, 40)), pixels[:, 5:35, 8:48])
    assert np.array_equal(whole(raster, level=1), pixels[:, ::2, ::2])
    assert [raster.level_for(s) for s in (1, 0.6, 0.5, 0.1, 2)] == [0, 0, 1, 1, 0]
    mask = written(raster, tmp_path / f"mask{raster.mask_suffix}")
    assert mask.pixel_size == raster.pixel_size and mask.levels == raster.levels
    assert np.array_equal(whole(mask, level=1)[0], stripes(0, Window(0, 0, *mask.size))[::2, ::2])
    with tifffile.TiffFile(tmp_path / "mask.ome.tif") as file:
        assert 'PositionX="1.5"' in file.ome_metadata and 'PositionY="-2.5"' in file.ome_metadata
    again = tmp_path / "again"
    again.mkdir()
    raster.write_labels(again / "mask.ome.tif", stripes, np.dtype(np.uint8), PALETTE)
    assert (again / "mask.ome.tif").read_bytes() == (tmp_path / "mask.ome.tif").read_bytes()


def test_pages_are_planes_and_axes_that_are_not_known_are_asked_for(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = values(5)
    frames = [Image.fromarray(page) for page in pixels]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    raster = open_raster(tmp_path / "pages.tif")
    assert raster.planes == 5 and np.array_equal(whole(raster, 3)[0], pixels[3])
    written(raster, tmp_path / "mask.tif")
    tifffile.imwrite(tmp_path / "unknown.tif", pixels, photometric="minisblack")
    with pytest.raises(UserError, match="what Q is the file does not say: pass --axes CYX for channels, or --axes ZYX"):
        open_raster(tmp_path / "unknown.tif")
    assert len(open_raster(tmp_path / "unknown.tif", axes="CYX").channels) == 5
    assert open_raster(tmp_path / "unknown.tif", axes="zyx").planes == 5
    with pytest.raises(UserError, match="has the axes QYX, which CY does not name"):
        open_raster(tmp_path / "unknown.tif", axes="CY")


def test_what_follows_red_green_and_blue_is_kept_unless_it_is_alpha(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pixels = values(4).transpose(1, 2, 0)
    for extra, names in (
        ("unspecified", ("red", "green", "blue", "3")),
        ("unassalpha", ("red", "green", "blue", "alpha")),
    ):
        tifffile.imwrite(tmp_path / f"{extra}.tif", pixels, photometric="rgb", extrasamples=[extra])
        assert open_raster(tmp_path / f"{extra}.tif").channels == names
    tifffile.imwrite(tmp_path / "cm.tif", pixels, photometric="rgb", resolution=(20000, 10000), resolutionunit=3)
    raster = open_raster(tmp_path / "cm.tif")
    assert raster.pixel_size == (1.0, 0.5)
    assert written(raster, tmp_path / "mask.tif").pixel_size == (1.0, 0.5)
    tifffile.imwrite(tmp_path / "inch.tif", pixels, photometric="rgb", resolution=(300, 300), resolutionunit=2)
    assert open_raster(tmp_path / "inch.tif").pixel_size is None  # what printers mean


def test_a_geotiff_keeps_its_place_on_the_earth_oblique_too(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    pixels = values(4, dtype=np.uint16) * 100 + 1
    raster = open_raster(geotiff(tmp_path / "a.tif", pixels, nodata=0, overviews=[2]))
    assert raster.channels == ("band0", "band1", "band2", "band3") and raster.nodata == 0
    assert raster.pixel_size == pytest.approx((1e7, 1e7)) and raster.levels == (1, 2)
    assert np.array_equal(raster.read(0, Window(3, 4, 20, 30)), pixels[:, 3:23, 4:34])
    assert whole(raster, level=1).shape == (4, 35, 45)
    written(raster, tmp_path / "mask.tif")
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "mask.tif") as other:
        for row, column in ((0, 0), (69, 89), (10.5, 20.25)):
            assert one.transform * (column, row) == other.transform * (column, row)
        assert one.crs == other.crs and other.nodata == 255 and other.colormap(1)[1][:3] == (255, 0, 0)


@pytest.mark.parametrize("form", [2, 3])
def test_an_ome_zarr_keeps_scale_and_translation(tmp_path, form):
    zarr = pytest.importorskip("zarr")
    pixels = values(3, planes=2)
    raster = open_raster(ome_zarr(tmp_path / "a.ome.zarr", pixels, form))
    assert raster.planes == 2 and raster.volumetric and raster.channels == ("stain0", "stain1", "stain2")
    assert raster.pixel_size == (0.3, 0.4) and raster.levels == (1, 2)
    assert np.array_equal(raster.read(1, Window(3, 4, 20, 30)), pixels[1, :, 3:23, 4:34])
    written(raster, tmp_path / "mask.ome.zarr")
    group = zarr.open_group(str(tmp_path / "mask.ome.zarr"), mode="r")
    attributes = group.attrs["ome"] if form == 3 else group.attrs
    scales = attributes["multiscales"][0]
    assert [axis["name"] for axis in scales["axes"]] == ["z", "y", "x"] and "image-label" in attributes
    transforms = {t["type"]: t[t["type"]] for t in scales["datasets"][0]["coordinateTransformations"]}
    assert transforms == {"scale": [2.0, 0.3, 0.4], "translation": [5, 7, 9]}


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_volume_keeps_world_coordinates(tmp_path, suffix):
    sitk = pytest.importorskip("SimpleITK")
    image = volume()
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    raster = open_raster(tmp_path / f"a{suffix}")
    assert (raster.planes, raster.size, raster.mask_suffix) == (5, (20, 24), suffix)
    assert raster.pixel_size == pytest.approx((800, 700)) and raster.volumetric
    assert np.array_equal(whole(raster, 2)[0], sitk.GetArrayFromImage(image)[2])
    written(raster, tmp_path / f"mask{suffix}")
    one, other = (sitk.ReadImage(str(tmp_path / f"{name}{suffix}")) for name in ("a", "mask"))
    for place in ((0, 0, 0), (23, 19, 4), (5, 7, 2)):
        assert one.TransformIndexToPhysicalPoint(place) == other.TransformIndexToPhysicalPoint(place)
    along = open_raster(tmp_path / f"a{suffix}", slice_axis="x")
    assert along.planes == 24 and along.size == (5, 20) and along.pixel_size == pytest.approx((2500, 800))
    along.write_labels(tmp_path / f"x{suffix}", stripes, np.dtype(np.uint8), None)
    turned = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"x{suffix}")))
    assert np.array_equal(turned[:, :, 7], stripes(7, Window(0, 0, 5, 20)))


def test_a_dicom_series_is_ordered_by_place_and_its_mask_lies_where_it_does(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = volume()
    folder = dicom_series(tmp_path / "series", image)
    before = locale.setlocale(locale.LC_ALL)
    raster = open_raster(folder)
    assert locale.setlocale(locale.LC_ALL) == before  # which GDCM changes
    assert (raster.planes, raster.size) == (5, (20, 24)) and raster.mask_is_folder
    assert np.array_equal(whole(raster, 2)[0], sitk.GetArrayFromImage(image)[2])  # rescaled as the files say
    written(raster, tmp_path / "mask")
    images = []
    for name in ("series", "mask"):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / name)))
        images.append(reader.Execute())
    header = sitk.ReadImage(str(next((tmp_path / "mask").glob("*.dcm"))))
    locale.setlocale(locale.LC_ALL, before)
    for place in ((0, 0, 0), (23, 19, 4), (5, 7, 2)):
        points = [image.TransformIndexToPhysicalPoint(place) for image in images]
        assert points[0] == pytest.approx(points[1], abs=1e-6)
    assert header.GetMetaData("0010|0010").strip() == "Doe^Jane"  # the same patient


def test_slices_that_are_missing_or_unevenly_spaced_are_named(tmp_path):
    pytest.importorskip("SimpleITK")
    dicom_series(tmp_path / "gap", volume(), names=list("abcde"), skip=[2])
    with pytest.raises(UserError, match="b.dcm and d.dcm lie 5 mm, between others 2.5 mm: a slice is missing"):
        open_raster(tmp_path / "gap")
    dicom_series(tmp_path / "mixed", volume(), names=list("abcde"), moved={4: 4.4})
    with pytest.raises(UserError, match="the spacing is mixed"):
        open_raster(tmp_path / "mixed")


def test_truncated_files_and_chunks_are_one_sentence(tmp_path):
    path = ome_tiff(tmp_path / "a.ome.tif", values(3, 200, 200), pyramid=False)
    data = path.read_bytes()
    for length, name in ((len(data) * 2 // 3, "cut.ome.tif"), (100, "head.tif"), (3, "none.tif")):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(UserError, match=f"{name} cannot be read"):
            whole(open_raster(tmp_path / name))
    folder = ome_zarr(tmp_path / "z.ome.zarr", values(3, planes=2))
    chunk = sorted(p for p in (folder / "full").rglob("*") if p.is_file() and not p.name.startswith("."))[0]
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(UserError, match=r"z.ome.zarr cannot be read"):
        whole(open_raster(folder))
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(UserError, match="empty.zarr cannot be read|is no OME-Zarr"):
        open_raster(tmp_path / "empty.zarr")
    pytest.importorskip("SimpleITK")
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="bad.nii.gz cannot be read"):
        open_raster(tmp_path / "bad.nii.gz")


def test_pictures_that_pillow_opens_are_read_when_they_are_needed(tmp_path):
    pixels = values(3).transpose(1, 2, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    raster = open_raster(tmp_path / "a.png")
    assert "values" not in raster.__dict__ and raster.size == (70, 90) and raster.channels == ("red", "green", "blue")
    assert np.array_equal(raster.read(0, Window(3, 4, 20, 30)), pixels.transpose(2, 0, 1)[:, 3:23, 4:34])
    raster.write_labels(tmp_path / "mask.png", stripes, np.dtype(np.uint8), PALETTE)
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), stripes(0, Window(0, 0, 70, 90)))
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(tmp_path / "deep.png")
    deep = open_raster(tmp_path / "deep.png")
    assert deep.dtype == np.uint16 and deep.read(0, Window(0, 0, 1, 1))[0, 0, 0] == 40000


def test_a_bomb_of_a_picture_is_refused_with_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # put back afterwards
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    limit_pixels(5000)
    with pytest.raises(UserError, match="a.png has more than 5,000 pixels, the limit .* --max_pixels"):
        open_raster(tmp_path / "a.png").read(0, Window(0, 0, 1, 1))
    limit_pixels(20_000)
    assert open_raster(tmp_path / "a.png").read(0, Window(0, 0, 1, 1)).shape == (1, 1, 1)


def test_a_folder_is_searched_for_every_format_and_parts_of_pictures_are_none(tmp_path):
    ome_zarr(tmp_path / "z.ome.zarr", values(3, planes=2))
    dicom_series(tmp_path / "series", volume())
    ome_tiff(tmp_path / "a.ome.tif", values(3))
    (tmp_path / ".hidden").mkdir()
    for name in ("b.png", ".c.png", ".hidden/d.png"):
        Image.new("L", (4, 4)).save(tmp_path / name)
    found = [path.name for path in find_rasters(tmp_path)]
    assert found == ["a.ome.tif", "b.png", "series", "z.ome.zarr"]
    assert not is_raster("https://host/a.tif") and is_raster(tmp_path / "series") and not is_raster(tmp_path)


def test_lengths_are_read_with_their_unit():
    given = {"0.5": 0.5, "0.5um": 0.5, "2 mm": 2000, "10m": 1e7, "1e-1 µm": 0.1}
    assert {text: micrometres(text) for text in given} == pytest.approx(given)
    for wrong in ("", "m", "3 parsec", "1..2"):
        with pytest.raises(ValueError):
            micrometres(wrong)


def test_a_single_dicom_file_comes_back_as_one(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    folder = dicom_series(tmp_path / "series", volume())
    one = sorted(folder.iterdir())[0].rename(tmp_path / "one.dcm")
    raster = open_raster(one)
    assert (raster.planes, raster.size, raster.mask_suffix) == (1, (20, 24), ".dcm")
    before = locale.setlocale(locale.LC_ALL)
    written(raster, tmp_path / "mask.dcm")
    images = [sitk.ReadImage(str(tmp_path / name)) for name in ("one.dcm", "mask.dcm")]
    locale.setlocale(locale.LC_ALL, before)
    points = [image.TransformIndexToPhysicalPoint((5, 7, 0)) for image in images]
    assert points[0] == pytest.approx(points[1], abs=1e-4)


def test_the_largest_picture_of_a_file_is_the_picture_and_a_note_says_so(tmp_path):
    """Slides keep a label and a preview, in some files in front of the slide (Leica SCN: the macro image)."""
    tifffile = pytest.importorskip("tifffile")
    label, slide = values(3, 10, 12).transpose(1, 2, 0), values(3, 40, 50).transpose(1, 2, 0)
    with tifffile.TiffWriter(tmp_path / "slide.tif") as file:
        for picture in (label, slide, label):
            file.write(picture, photometric="rgb", metadata=None)
    raster = open_raster(tmp_path / "slide.tif")
    assert np.array_equal(whole(raster), slide.transpose(2, 0, 1))
    assert "the largest, 50 × 40, is read" in raster.notes[0]
    assert open_raster(ome_tiff(tmp_path / "a.ome.tif", values(3))).notes == []


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_what_was_read_of_a_volume_outlives_it(tmp_path, suffix):
    sitk = pytest.importorskip("SimpleITK")
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(tmp_path / f"a{suffix}"))
    raster = open_raster(tmp_path / f"a{suffix}")
    read = raster.read(0, Window(0, 0, 64, 64))
    assert not np.shares_memory(read, raster._values)
    del raster
    assert np.array_equal(read.transpose(1, 2, 0), values)
