# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Planes of stacks and volumes as pictures of their own."""

import os

import numpy as np
import pytest

from diffuseseg_diffusers.datasets.columns import dataset_contents, read_image
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.images.formats import planes, tiff
from diffuseseg_diffusers.images.formats.base import ArrayRaster, Raster, Window
from diffuseseg_diffusers.images.formats.cells import needs_raster, open_cell
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.images.formats.planes import OnePlane, save_picture
from diffuseseg_diffusers.jobs.errors import UserError

from .pictures import dicom_series, ome_zarr, values, volume


tifffile = pytest.importorskip("tifffile")


def imagej(path):
    tifffile.imwrite(path, values(1, planes=5, dtype=np.uint16)[:, 0], imagej=True, metadata={"axes": "ZYX"})


def times(path):
    tifffile.imwrite(path, values(1, planes=6)[:, 0].reshape(2, 3, 70, 90), imagej=True, metadata={"axes": "TZYX"})


def nifti(path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values(5, 12, 9).T.astype(np.int16), np.eye(4)), path)


def nrrd(path):
    pytest.importorskip("SimpleITK").WriteImage(volume(), str(path))


STACKS = {
    "a.tif": (imagej, "z 3"),
    "times.tif": (times, "z 3, t 1"),
    "a.nii.gz": (nifti, "z 3"),
    "a.nrrd": (nrrd, "z 3"),
    "a.ome.zarr": (lambda path: ome_zarr(path, values(2, planes=4)), "z 3"),
    "dicom": (lambda path: dicom_series(path, volume()), "z 3"),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_plane_is_a_picture_with_the_values_of_the_stack(tmp_path, name):
    write, place = STACKS[name]
    write(tmp_path / name)
    with open_raster(tmp_path / name) as stack:
        window, count = Window(3, 2, 5, 6), stack.planes
        expected = stack.read(2, window)
        assert not np.array_equal(expected, stack.read(1, window))
    cell = {"path": str(tmp_path / name), "plane": 2, "planes": count}
    assert needs_raster(cell)
    with open_cell(cell, "row 0") as raster:
        assert raster.planes == 1 and raster.name == f"{tmp_path / name}, {place}"
        assert raster.read(0, window).dtype == expected.dtype and np.array_equal(raster.read(0, window), expected)
        whole = raster.read(0, Window(0, 0, *raster.size))
    image = np.asarray(read_image(cell, "row 0", InputChannels()).image)
    assert np.array_equal(image if image.ndim == 3 else image[..., None], whole.transpose(1, 2, 0))


def test_planes_are_named_from_1_by_slice_and_time():
    class Planes(ArrayRaster):
        def position(self, plane):
            t, z = divmod(plane, self.slices)
            return z, t

    def named(slices, times):
        raster = Planes(np.zeros((slices * times, 1, 2, 2), np.uint8))
        raster.slices = slices
        return [raster.plane_name(plane) for plane in range(raster.planes)]

    assert named(3, 1) == ["z 1", "z 2", "z 3"] and named(1, 2) == ["t 1", "t 2"] and named(1, 1) == ["z 1"]
    assert named(2, 2) == ["z 1, t 1", "z 2, t 1", "z 1, t 2", "z 2, t 2"]


def test_a_stack_with_another_number_of_planes_is_refused(tmp_path):
    imagej(tmp_path / "a.tif")
    path = str(tmp_path / "a.tif")
    with pytest.raises(UserError, match="a.tif had 4 planes and has 5 now; put back the stack that it was."):
        open_cell({"path": path, "plane": 0, "planes": 4}, "row 0")
    with pytest.raises(UserError, match="a.tif has 5 planes, and plane 6 is wanted"):
        open_cell({"path": path, "plane": 5}, "row 0")
    cell = {"path": path, "bytes": None}
    with pytest.raises(UserError, match="has 5 planes, and images of one are read here"):
        read_image(cell, "row 0", InputChannels())


def count(monkeypatch, path, planes_read=(0, 1, 2)):
    opened = []
    real = planes.open_raster
    monkeypatch.setattr(planes, "open_raster", lambda *a: opened.append(a[0]) or real(*a))

    def read():
        opened.clear()
        for plane in planes_read:
            with open_cell({"path": str(path), "plane": plane}, "row 0") as raster:
                raster.read(0, Window(0, 0, *raster.size))
        return len(opened)

    return read


@pytest.mark.parametrize("name", ["a.nii.gz", "dicom"])
def test_a_volume_is_decoded_once_for_all_its_planes_and_again_when_it_changes(tmp_path, monkeypatch, name):
    STACKS[name][0](tmp_path / name)
    read = count(monkeypatch, tmp_path / name)
    assert [read(), read()] == [1, 0]
    file = next((tmp_path / name).iterdir()) if name == "dicom" else tmp_path / name
    os.utime(file, ns=(1, 1))
    assert read() == 1
    monkeypatch.setattr(planes, "KEPT", 100)
    os.utime(file, ns=(2, 2))
    assert [read(), read()] == [3, 3]
    assert not planes._last


def test_a_plane_of_a_tiff_is_decoded_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "IN_MEMORY", 0)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values(1, planes=5)[:, 0], photometric="minisblack", metadata={"axes": "ZYX"}, compression=8)
    with tifffile.TiffFile(path) as file:
        at, length = file.pages[1].dataoffsets[0], file.pages[1].databytecounts[0]
    data = bytearray(path.read_bytes())
    data[at : at + length] = b"\xff" * length
    path.write_bytes(data)
    with open_cell({"path": str(path), "plane": 2}, "row 0") as raster:
        assert np.array_equal(raster.read(0, Window(0, 0, 70, 90)), values(1, planes=5)[2])
    with (
        open_cell({"path": str(path), "plane": 1}, "row 0") as raster,
        pytest.raises(UserError, match="cannot be read"),
    ):
        raster.read(0, Window(0, 0, 70, 90))


def test_records_tell_planes_of_one_file_apart(tmp_path):
    from datasets import Dataset

    imagej(tmp_path / "a.tif")
    cells = [{"path": str(tmp_path / "a.tif"), "plane": plane, "planes": 5} for plane in (0, 3)]
    first, second = dataset_contents(Dataset.from_dict({"image": cells}), "image").values()
    assert first.startswith("a.tif, plane 1 ") and second.startswith("a.tif, plane 4 ")


TYPES = ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]


@pytest.mark.parametrize("dtype", [*TYPES, "float16", ">u2"])
@pytest.mark.parametrize("channels", [("gray",), ("red", "green", "blue"), ("DAPI", "Cy5"), ("0", "1", "2", "3", "4")])
def test_a_plane_is_saved_in_its_own_type(tmp_path, dtype, channels):
    pixels = (np.random.default_rng(0).integers(0, 100, (3, len(channels), 7, 9)) * 1.27).astype(dtype)
    raster = OnePlane(ArrayRaster(pixels, "a", channels, (0.5, 0.25)), 1)
    save_picture(raster, tmp_path / "a.tif")
    with open_raster(tmp_path / "a.tif") as saved:
        read = saved.read(0, Window(0, 0, 7, 9))
        assert read.dtype == np.dtype(dtype).newbyteorder("=") and np.array_equal(read, pixels[1])
        assert saved.planes == 1 and not saved.notes
        if channels != ("DAPI", "Cy5") or dtype not in ("uint64", "int64", "float16"):  # OME has none of these
            assert saved.channels == channels
            if dtype not in ("uint64", "int64", "float16") or len(channels) in (1, 3):
                assert saved.pixel_size == pytest.approx((0.5, 0.25), rel=1e-3)


@pytest.mark.parametrize("channels", [("gray", "alpha"), ("red", "green", "blue", "alpha")])
def test_alpha_and_gaps_are_saved(tmp_path, channels):
    stack = ArrayRaster(values(len(channels), 7, 9, planes=2), "a", channels)
    stack.nodata = 7.0
    save_picture(OnePlane(stack, 1), tmp_path / "a.tif")
    with open_raster(tmp_path / "a.tif") as saved:
        assert saved.channels == channels and saved.nodata == 7 and saved.has_gaps
        assert np.array_equal(saved.read(0, Window(0, 0, 7, 9)), values(len(channels), 7, 9, planes=2)[1])


def test_gaps_are_those_of_the_plane():
    class Gaps(ArrayRaster):
        has_gaps = True

        def gaps(self, values, plane, window, level=0):
            return np.full(values.shape[1:], plane == 1)

    stack = Gaps(values(1, 4, 4, planes=2))
    window = Window(0, 0, 4, 4)
    found = [OnePlane(stack, p).gaps(stack.read(p, window), 0, window).all() for p in (0, 1)]
    assert found == [False, True] and OnePlane(stack, 0).has_gaps and isinstance(OnePlane(stack, 0), Raster)
