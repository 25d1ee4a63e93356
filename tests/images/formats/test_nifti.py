# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""NIfTI files as scanners and programs write them, and masks as SimpleITK and nibabel read them."""

import numpy as np
import pytest

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.jobs.errors import UserError


nib = pytest.importorskip("nibabel")
VOXELS = np.random.default_rng(0).integers(0, 200, (9, 7, 4)).astype(np.uint8)  # x, y and z
PLACE = np.array([[0.5, 0, 0, 10], [0, 0.7, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])


def write(path, values, affine=PLACE, kind=nib.Nifti1Image, change=lambda header: None):
    image = kind(values, affine)
    change(image.header)
    image.to_filename(path)
    return path


def pixels(raster):
    """`[planes, C, H, W]`."""
    return np.stack([raster.read(plane, Window(0, 0, *raster.size)) for plane in range(raster.planes)])


def mask_of(path, folder):
    """The header and voxels of a mask that is written with a file's geometry."""
    with open_raster(path) as raster:
        values = pixels(raster)
        out = folder / f"mask{raster.mask_suffix}"
        raster.write_labels(out, lambda p, w: (values[p, 0][w.slices] > 100).astype(np.uint8), np.dtype(np.uint8), None)
    return nib.load(out)


def sheared():
    affine = PLACE.copy()
    affine[0, 1] = 0.2
    return affine


def two_forms(header):
    header.set_qform(np.diag([1.0, 1, 1, 1]) @ PLACE + np.eye(4, k=3) * 5, 1)
    header.set_sform(PLACE, 2)


FILES = {
    "plain": ({}, "NIfTI-1"),
    "NIfTI-2": ({"kind": nib.Nifti2Image}, "NIfTI-2: header of 540 bytes"),
    "sheared": ({"affine": sheared()}, "NIfTI-1: the sform is any affine"),
    "two forms": ({"change": two_forms}, "NIfTI-1: qform and sform may state different spaces"),
    "without forms": ({"affine": None}, "NIfTI-1: codes of 0 say nothing"),
    "micrometres": ({"change": lambda header: header.set_xyzt_units("micron")}, "NIfTI-1: xyzt_units"),
    "a time of one": ({"values": VOXELS[..., None]}, "NIfTI-1: dim[4] = 1"),
    "flat, at a height": ({"values": VOXELS[..., 0]}, "NIfTI-1: qoffset_z of a file of two dimensions"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_keeps_the_header_of_its_file(tmp_path, case, suffix):
    options, _ = FILES[case]
    path = write(tmp_path / f"a{suffix}", **{"values": VOXELS, **options})
    source, mask = nib.load(path), mask_of(path, tmp_path)
    assert type(mask) is type(source) and mask.header.get_xyzt_units() == source.header.get_xyzt_units()
    for form in ("qform", "sform"):
        matrix, code = getattr(source, f"get_{form}")(coded=True)
        kept, kept_code = getattr(mask, f"get_{form}")(coded=True)
        assert kept_code == code and (matrix is kept or np.allclose(kept, matrix, atol=1e-5)), form
    expected = np.asarray(source.dataobj).squeeze() > 100
    assert np.array_equal(np.asarray(mask.dataobj), expected) and mask.get_data_dtype() == np.uint8


def test_a_mask_is_read_by_simpleitk_where_its_image_is(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    path = write(tmp_path / "a.nii.gz", VOXELS)
    mask_of(path, tmp_path)
    one, other = (sitk.ReadImage(str(tmp_path / name)) for name in ("a.nii.gz", "mask.nii.gz"))
    assert np.allclose(one.GetOrigin(), other.GetOrigin()) and one.GetDirection() == other.GetDirection()
    assert np.array_equal(sitk.GetArrayFromImage(one) > 100, sitk.GetArrayFromImage(other))


def test_voxels_are_those_that_simpleitk_reads(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    path = write(tmp_path / "a.nii", VOXELS.astype(np.int16), change=lambda header: header.set_slope_inter(0.5, -10))
    raster, image = open_raster(path), sitk.ReadImage(str(path))
    assert np.allclose(pixels(raster)[:, 0], sitk.GetArrayFromImage(image)) and raster.dtype == np.float32
    assert raster.pixel_size == pytest.approx((700, 500)) and raster.plane_distance == pytest.approx(3000)
    colours = np.zeros((9, 7, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = VOXELS
    raster = open_raster(write(tmp_path / "rgb.nii", colours))
    assert raster.channels == ("red", "green", "blue") and np.array_equal(pixels(raster)[:, 1], VOXELS.T)


def test_times_are_refused_and_forms_that_differ_are_said(tmp_path):
    path = write(tmp_path / "t.nii", np.stack([VOXELS] * 2, -1))
    with pytest.raises(UserError, match="t.nii has four dimensions, 9 × 7 × 4 × 2; .* split it by time"):
        open_raster(path)
    path = write(tmp_path / "a.nii", VOXELS, change=two_forms)
    assert open_raster(path).notes == [f"{path} has a qform and a sform that differ; the sform is taken."]
    (tmp_path / "cut.nii").write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match="cut.nii cannot be read"):
        open_raster(tmp_path / "cut.nii")
