# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuseseg_diffusers.images.formats.base import ArrayRaster
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tiling.objects import (
    counted_classes,
    label_objects,
    measure_objects,
    split_objects,
)
from diffuseseg_diffusers.tiling.options import CountsObjects


skimage = pytest.importorskip("skimage")
NAMES, PALETTE = ["background", "cell", "fibre"], [[0, 0, 0], [230, 159, 0], [86, 180, 233]]


class Blocks:
    """Labels that are in memory."""

    def __init__(self, labels, uncertainty=None):
        self.mask, self.doubt = labels if labels.ndim == 3 else labels[None], uncertainty

    def labels(self, plane, window):
        return self.mask[plane][window.slices]

    def uncertainty(self, plane, window):
        return None if self.doubt is None else self.doubt[plane][window.slices]


def same_partition(one, other):
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(pairs.T) == len(np.unique(one)) == len(np.unique(other))


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)), elements=st.integers(0, 2)),
    st.integers(3, 9),
    st.booleans(),
)
def test_blocks_find_the_objects_of_the_whole(tmp_path_factory, mask, block, deep):
    folder = tmp_path_factory.mktemp("objects")
    found = label_objects(Blocks(mask).labels, mask.shape, [1, 2], deep, folder, block)
    if deep:
        expected = skimage.measure.label(mask, background=0, connectivity=3)
        assert same_partition(found, expected)
    else:
        assert len(np.unique(found[found > 0])) == sum(
            skimage.measure.label(p, background=0, connectivity=2).max() for p in mask
        )
        for plane, own in zip(mask, found):
            assert same_partition(own, skimage.measure.label(plane, background=0, connectivity=2))
    numbers = np.unique(found[found > 0])
    assert numbers.tolist() == list(range(1, len(numbers) + 1))
    assert not (folder / "classes.uint8").exists()


def discs(*centres, radius=9, size=(80, 120)):
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for i, (cy, cx) in enumerate(centres):
        mask[(y - cy) ** 2 + (x - cx) ** 2 <= radius**2] = 1 + i % 2
    return mask


def test_touching_discs_are_split_where_they_narrow(tmp_path):
    mask = (discs((40, 30), (40, 46), (20, 90)) > 0).astype(np.uint8)
    found = np.array(label_objects(Blocks(mask).labels, (1, *mask.shape), [1], False, tmp_path, 32))
    assert found.max() == 2
    assert split_objects(found, 5) == [] and found.max() == 3
    middles = [found[0, 40, 26], found[0, 40, 50], found[0, 20, 90]]
    assert len(set(middles)) == 3 and ((found > 0) == (mask[None] > 0)).all()


def test_known_discs_are_measured_in_pixels_and_micrometres(tmp_path):
    mask = discs((20, 30), (60, 80))
    image = np.stack([mask * 50, 200 - mask * 10]).astype(np.uint8)
    raster = ArrayRaster(image, channels=("a", "b"), pixel_size=(0.5, 0.25))
    doubt = np.where(mask[None] == 2, 0.5, 0.1).astype(np.float32)
    found = label_objects(Blocks(mask).labels, (1, *mask.shape), [1, 2], False, tmp_path, 16)
    blocks = Blocks(mask, doubt)
    table = measure_objects(found, raster, blocks.labels, blocks.uncertainty, NAMES).objects
    area = int((mask == 1).sum())
    assert table["class"] == ["cell", "fibre"] and table["area_px"] == [area, area]
    assert table["area_um2"] == pytest.approx([area * 0.125] * 2)
    assert (table["centroid_y"], table["centroid_x"]) == (pytest.approx([20, 60]), pytest.approx([30, 80]))
    assert (table["top"][0], table["left"][0], table["bottom"][0], table["right"][0]) == (11, 21, 30, 40)
    assert table["mean_a"] == [50, 100] and table["mean_b"] == [190, 180]
    assert table["mean_uncertainty"] == pytest.approx([0.1, 0.5])
    small = measure_objects(found, raster, blocks.labels, blocks.uncertainty, NAMES, min_area=area + 1).objects
    assert small["id"] == [] and not found.any()


def test_objects_go_through_the_slices_of_a_volume_and_not_through_pages(tmp_path):
    mask = np.zeros((3, 20, 20), np.uint8)
    mask[:, 5:9, 5:9] = 1
    raster = ArrayRaster(mask[:, None])
    for deep, count in ((True, 1), (False, 3)):
        found = label_objects(Blocks(mask).labels, mask.shape, [1], deep, tmp_path)
        table = measure_objects(found, raster, Blocks(mask).labels, Blocks(mask).uncertainty, NAMES).objects
        assert len(table["id"]) == count and "mean_uncertainty" not in table
    assert table["first_plane"] == [0, 1, 2] == table["last_plane"]


def test_an_object_of_a_volume_is_measured_in_space_and_in_each_plane(tmp_path):
    mask = np.zeros((3, 700, 20), np.uint8)  # more than a window
    mask[0, 500:520, 5:9] = mask[1, 510, 6] = 1
    values = np.arange(3)[:, None, None, None] * np.ones((3, 1, 700, 20))
    raster = ArrayRaster(values, channels=("a",), pixel_size=(0.5, 0.25))
    raster.volumetric, raster.plane_distance = True, 2.0
    found = label_objects(Blocks(mask).labels, mask.shape, [1], True, tmp_path)
    measured = measure_objects(found, raster, Blocks(mask).labels, Blocks(mask).uncertainty, NAMES)
    whole, sections = measured.objects, measured.sections
    assert whole["area_px"] == [81] and whole["volume_um3"] == [81 * 0.25] and "area_um2" not in whole
    assert (whole["first_plane"], whole["last_plane"], whole["centroid_plane"]) == ([0], [1], [1 / 81])
    assert [whole[side][0] for side in ("top", "left", "bottom", "right")] == [500, 5, 520, 9]
    assert sections["id"] == [1, 1] and sections["area_px"] == [80, 1] and sections["area_um2"] == [10, 0.125]
    assert sections["first_plane"] == [0, 1] and sections["mean_a"] == [0, 1]
    assert [sections[side][1] for side in ("top", "left", "bottom", "right")] == [510, 6, 511, 7]
    assert sections["centroid_y"] == [509.5, 510] and sections["centroid_x"] == [6.5, 6]


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(UserError, match="--instances must be one of components, watershed; got blobs"):
        CountsObjects(instances="blobs")
    with pytest.raises(UserError, match="There is no class 'nucleus'; there are background, cell, fibre"):
        counted_classes(CountsObjects(instances="components", object_classes=("nucleus",)), NAMES)
    assert counted_classes(CountsObjects(instances="components", object_classes=("fibre",)), NAMES) == [2]
    assert counted_classes(CountsObjects(), NAMES) == [1, 2]
