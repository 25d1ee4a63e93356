# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Masks on other grids than their images: what both headers say is what is read."""

import numpy as np
import pytest

from diffuseseg_diffusers.datasets.crops import LabeledTiles
from diffuseseg_diffusers.datasets.find_labeled import load_labeled_images
from diffuseseg_diffusers.images.formats.aligned import aligned, without_label
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.jobs.errors import UserError


TRUE = np.zeros((12, 10, 4), np.uint8)  # of voxels x, y and z
TRUE[2:7, 3:9, 1:3] = 1
TRUE[8:11, 1:3, 0] = 2
SCAN = np.array([[0.7, 0, 0, -20], [0, 0.8, 0, 30], [0, 0, 3, 5], [0, 0, 0, 1.0]])
NIFTI = "NIfTI-1: sform and qform give voxel centres in mm, right, anterior, superior"


def nifti(path, values, affine):
    nib = pytest.importorskip("nibabel")
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def flipped(axis):
    affine = SCAN.copy()
    affine[:3, 3] += affine[:3, axis] * (TRUE.shape[axis] - 1)
    affine[:3, axis] *= -1
    return np.flip(TRUE, axis), affine


def permuted(order):
    affine = SCAN.copy()
    affine[:, :3] = SCAN[:, order]
    return TRUE.transpose(order), affine


def cropped():
    affine = SCAN.copy()
    affine[:3, 3] += SCAN[:3, :3] @ [1, 1, 0]
    return TRUE[1:11, 1:9], affine


def finer():
    affine = SCAN.copy()
    affine[:3, 0] /= 2
    affine[:3, 3] -= affine[:3, 0] / 2
    return TRUE.repeat(2, 0), affine


def rounded():
    return TRUE, SCAN + np.array([[0, 0, 0, 0.003]] * 3 + [[0] * 4])


GRIDS = {
    "the same": ((TRUE, SCAN), 1.0, NIFTI),
    "rounded headers": (rounded(), 1.0, "DICOM PS3.5: decimal strings hold 16 characters"),
    "x flipped": (flipped(0), 1.0, NIFTI),
    "y flipped": (flipped(1), 1.0, NIFTI),
    "z flipped": (flipped(2), 1.0, NIFTI),
    "x and y swapped": (permuted([1, 0, 2]), 1.0, NIFTI),
    "z first": (permuted([2, 0, 1]), 1.0, NIFTI),
    "cropped": (cropped(), 10 * 8 / 120, "3D Slicer: a segmentation is exported with its own extent"),
    "half the voxel size": (finer(), 1.0, NIFTI),
}


def on_grid(mask, image):
    """Ids of a mask on the grid of its image, `[planes, H, W]`."""
    read = aligned(mask, image.grid, image.name)
    window = Window(0, 0, *image.size)
    ids = (read.read(plane, window)[0] for plane in range(read.planes))
    return np.stack([without_label(read, one, plane, window, 255) for plane, one in enumerate(ids)])


@pytest.mark.parametrize("case", GRIDS)
@pytest.mark.parametrize("form", ["nifti", "nrrd"])
def test_a_mask_of_a_scan_is_read_where_it_lies(tmp_path, case, form):
    """The image is written by SimpleITK, the mask by nibabel, whose axes run the other way."""
    sitk = pytest.importorskip("SimpleITK")
    (values, affine), covered, _ = GRIDS[case]
    image = sitk.GetImageFromArray(TRUE.T)
    image.SetSpacing((0.7, 0.8, 3))
    image.SetOrigin((20, -30, 5))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"image.{'nii.gz' if form == 'nifti' else 'nrrd'}"))
    with open_raster(next(tmp_path.iterdir())) as picture, open_raster(nifti(tmp_path / "m.nii", values, affine)) as m:
        ids = on_grid(m, picture)
        expected = TRUE.T
        assert np.array_equal(ids[ids != 255], expected[ids != 255]) and (ids != 255).mean() == pytest.approx(covered)


def test_a_mask_of_a_dicom_series_is_learnt_where_it_lies(tmp_path):
    """A series of rows from the top, and a NIfTI of rows from the bottom, as nibabel users make them."""
    pytest.importorskip("pydicom")
    from .test_dicom import COLUMNS, ROWS, series

    truth = np.zeros((4, ROWS, COLUMNS), np.uint8)
    truth[1:3, :2, 3:] = 1
    (tmp_path / "images" / "case1").mkdir(parents=True)
    (tmp_path / "masks").mkdir()
    series(tmp_path / "images" / "case1")
    affine = np.array([[-0.5, 0, 0, -5], [0, 0.7, 0, -6 - 0.7 * (ROWS - 1)], [0, 0, 2.5, 0], [0, 0, 0, 1]])
    nifti(tmp_path / "masks" / "case1.nii.gz", truth[:, ::-1].T, affine)
    tiles = LabeledTiles(load_labeled_images(tmp_path, num_classes=2), (ROWS, COLUMNS))
    for tile in (tiles[i] for i in range(len(tiles))):
        assert np.array_equal(tile.mask, truth[int(tile.image[0, 0, 0])]), tile.name  # the value is the slice


def maps(path, values, transform, crs="EPSG:32633"):
    rasterio = pytest.importorskip("rasterio")
    options = dict(driver="GTiff", height=values.shape[0], width=values.shape[1], count=1, dtype="uint8")
    with rasterio.open(path, "w", **options, transform=rasterio.Affine(*transform), crs=crs) as file:
        file.write(values[None])
    return path


MAP = (1, 0, 400000, 0, -1, 5000000)
PLANE = TRUE[..., 1] + TRUE[..., 0]
MAPS = {
    "south up": (PLANE[::-1], (1, 0, 400000, 0, 1, 5000000 - 12), 1.0, "GDAL: a geotransform may run north"),
    "shifted": (PLANE[3:], (1, 0, 400000, 0, -1, 5000000 - 3), 0.75, "GDAL: the geotransform places the corner"),
    "half the pixel size": (PLANE.repeat(2, 0).repeat(2, 1), (0.5, 0, 400000, 0, -0.5, 5000000), 1.0, "GDAL"),
    "no reference system": (PLANE[:, ::-1], (-1, 0, 400010, 0, -1, 5000000), 1.0, "GDAL: a world file has none"),
}


@pytest.mark.parametrize("case", MAPS)
def test_a_mask_of_a_map_is_read_where_it_lies(tmp_path, case):
    values, transform, covered, _ = MAPS[case]
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    maps(tmp_path / "images" / "a.tif", PLANE * 100, MAP)
    maps(tmp_path / "masks" / "a.tif", values, transform, None if case.startswith("no ") else "EPSG:32633")
    whole = load_labeled_images(tmp_path, num_classes=3)
    ids = whole[0].mask
    assert np.array_equal(ids[ids != 255], PLANE[ids != 255]) and (ids != 255).mean() == covered
    tiles = LabeledTiles(whole, (12, 10))
    assert np.array_equal(tiles[0].mask, ids)


def test_a_mask_in_another_zone_is_reprojected_and_one_elsewhere_refused(tmp_path):
    warp = pytest.importorskip("rasterio.warp")
    image = open_raster(maps(tmp_path / "a.tif", PLANE, MAP))
    size = warp.calculate_default_transform("EPSG:32633", "EPSG:32632", 10, 12, *rasterio_bounds(image))
    mask = open_raster(maps(tmp_path / "m.tif", np.ones((size[2], size[1]), np.uint8), size[0][:6], "EPSG:32632"))
    assert (on_grid(mask, image)[0] == 1).mean() > 0.9
    wrong = open_raster(maps(tmp_path / "w.tif", PLANE, MAP, "EPSG:32634"))
    with pytest.raises(UserError, match="do not overlap: the image lies at x 400000 to 400010, .* of EPSG:32634"):
        on_grid(wrong, image)


def rasterio_bounds(raster):
    corners = [raster.transform * (0, raster.height), raster.transform * (raster.width, 0)]
    return (*corners[0], *corners[1])


@pytest.mark.parametrize("which", ["mask", "image"])
def test_a_header_without_a_place_is_not_compared_with_one_that_has_one(tmp_path, which):
    """nibabel users write `np.eye(4)` where they know no affine."""
    placed, empty = nifti(tmp_path / "placed.nii", TRUE, SCAN), nifti(tmp_path / "empty.nii", TRUE, np.eye(4))
    image, mask = (open_raster(path) for path in ((placed, empty) if which == "mask" else (empty, placed)))
    with pytest.raises(UserError, match="The header of .*empty.nii says nothing of its place .* lies at x 11.95 to"):
        on_grid(mask, image)
    other = np.diag([-1.0, 1, 1, 1])
    other[0, 3] = TRUE.shape[0] - 1
    flipped = open_raster(nifti(tmp_path / "flipped.nii", TRUE[::-1], other))
    assert np.array_equal(on_grid(flipped, open_raster(empty)), TRUE.T)  # of the same extent


def test_a_mask_elsewhere_in_the_patient_is_refused(tmp_path):
    moved = SCAN.copy()
    moved[0, 3] += 50
    image, mask = (open_raster(nifti(tmp_path / name, TRUE, a)) for name, a in (("a.nii", SCAN), ("m.nii", moved)))
    with pytest.raises(UserError, match="a.nii and its mask .*m.nii do not overlap: the image lies at x 11.95 to"):
        on_grid(mask, image)
