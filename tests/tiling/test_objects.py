# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.images.formats.base import ArrayRaster
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tiling.objects import (
    check_planes,
    counted_classes,
    label_objects,
    measure_objects,
    object_files,
    split_objects,
    write_objects,
)
from diffuseseg_diffusers.tiling.options import CountsObjects

from ..images.formats.pictures import geotiff


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
    table = measure_objects(found, raster, blocks.labels, blocks.uncertainty, NAMES)
    area = int((mask == 1).sum())
    assert table["class"] == ["cell", "fibre"] and table["area_px"] == [area, area]
    assert table["area_um2"] == pytest.approx([area * 0.125] * 2)
    assert (table["centroid_y"], table["centroid_x"]) == (pytest.approx([20, 60]), pytest.approx([30, 80]))
    assert (table["top"][0], table["left"][0], table["bottom"][0], table["right"][0]) == (11, 21, 30, 40)
    assert table["mean_a"] == [50, 100] and table["mean_b"] == [190, 180]
    assert table["mean_uncertainty"] == pytest.approx([0.1, 0.5])
    small = measure_objects(found, raster, blocks.labels, blocks.uncertainty, NAMES, min_area=area + 1)
    assert small["id"] == [] and not found.any()


def test_every_export_is_read_back_by_its_reader(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    pq = pytest.importorskip("pyarrow.parquet")
    mask = discs((20, 30), (60, 80), (40, 5))
    mask[18:22, 28:32] = 0  # a hole
    path = geotiff(tmp_path / "map.tif", np.stack([mask] * 3) * 40)
    options = CountsObjects(instances="components", export=("geojson", "coco", "gpkg"))
    (tmp_path / "work" / "made").mkdir(parents=True)
    made = tmp_path / "work" / "made"
    with open_raster(path) as raster:
        count = write_objects(options, raster, Blocks(mask), made, "map", NAMES, PALETTE, 255)
        assert count == 3 and sorted(p.name for p in made.iterdir()) == sorted(
            n for n, _ in object_files(options, "map", ".tif", False)
        )
        transform = raster.transform
    with open_raster(made / "map_objects.tif") as labels:
        from diffuseseg_diffusers.images.formats.base import Window

        found = labels.read(0, Window(0, 0, *mask.shape))[0]
    assert found.dtype == np.uint16 and ((found > 0) == (mask > 0)).all()
    table = pq.read_table(made / "map_objects.parquet").to_pydict()
    lines = (made / "map_objects.csv").read_text().splitlines()
    assert (
        len(lines) == 4
        and lines[0].startswith('"id","class"')
        and table["area_px"] == [int((found == i).sum()) for i in (1, 2, 3)]
    )
    features = json.loads((made / "map_objects.geojson").read_text())["features"]
    areas = [shapely.geometry.shape(f["geometry"]).area for f in features]
    assert areas == table["area_px"]
    kind = features[0]["properties"]
    assert kind["objectType"] == "annotation" and kind["classification"]["name"] == table["class"][0]
    assert kind["classification"]["color"] == PALETTE[table["class_id"][0]]
    annotations = json.loads((made / "map_objects.coco.json").read_text())["annotations"]
    for annotation in annotations:
        own = coco.decode(annotation["segmentation"])
        assert np.array_equal(own, found == annotation["object"]) and annotation["area"] == own.sum()
        assert annotation["bbox"] == list(map(int, coco.toBbox(annotation["segmentation"])))
    meta, _, geometry, fields = pyogrio.raw.read(made / "map_objects.gpkg")
    assert meta["crs"] == "EPSG:32633" and len(geometry) == 3
    shapes = [shapely.from_wkb(g) for g in geometry]
    columns = dict(zip(meta["fields"], fields))
    for shape, area, y, x in zip(shapes, columns["area_px"], columns["centroid_y"], columns["centroid_x"]):
        assert shape.area == pytest.approx(area * 100)  # pixels of 10 m
        assert shape.centroid.coords[0] == pytest.approx(transform * (x + 0.5, y + 0.5), abs=1e-3)
    again = tmp_path / "again" / "made"
    again.mkdir(parents=True)
    with open_raster(path) as raster:
        write_objects(options, raster, Blocks(mask), again, "map", NAMES, PALETTE, 255)
    for name in ("map_objects.csv", "map_objects.geojson", "map_objects.coco.json", "map_objects.parquet"):
        assert (made / name).read_bytes() == (again / name).read_bytes()


def test_objects_go_through_the_slices_of_a_volume_and_not_through_pages(tmp_path):
    mask = np.zeros((3, 20, 20), np.uint8)
    mask[:, 5:9, 5:9] = 1
    raster = ArrayRaster(mask[:, None])
    for deep, count in ((True, 1), (False, 3)):
        found = label_objects(Blocks(mask).labels, mask.shape, [1], deep, tmp_path)
        table = measure_objects(found, raster, Blocks(mask).labels, Blocks(mask).uncertainty, NAMES)
        assert len(table["id"]) == count and "mean_uncertainty" not in table
    assert table["first_plane"] == [0, 1, 2] == table["last_plane"]


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(UserError, match="--instances must be one of components, watershed; got blobs"):
        CountsObjects(instances="blobs")
    with pytest.raises(UserError, match="There is no class 'nucleus'; there are background, cell, fibre"):
        counted_classes(CountsObjects(instances="components", object_classes=("nucleus",)), NAMES)
    assert counted_classes(CountsObjects(instances="components", object_classes=("fibre",)), NAMES) == [2]
    assert counted_classes(CountsObjects(), NAMES) == [1, 2]


@pytest.mark.parametrize("names", [NAMES, ["class 0", "class 1", "class 2"]])
def test_exports_are_read_back_as_the_mask_that_they_were_made_of(names, tmp_path):
    mask = discs((20, 30), (60, 80), (40, 5))
    mask[18:22, 28:32] = 0  # a hole
    mask[30:33, 30:33] = np.eye(3)  # pixels that touch at corners
    (tmp_path / "photos").mkdir()
    PIL.Image.fromarray(mask * 40).save(tmp_path / "photos" / "a.png")
    (tmp_path / "work" / "made").mkdir(parents=True)
    exports = ("geojson", "coco", "labelme", "cvat", "label_studio")
    options = CountsObjects(instances="components", export=exports)
    with open_raster(tmp_path / "photos" / "a.png") as raster:
        write_objects(options, raster, Blocks(mask), tmp_path / "work" / "made", "a", names, PALETTE, 255)
    files = [name for name, _ in object_files(options, "a", ".png", False)][3:]
    assert len(files) == len(exports)
    for file in files:
        labeled = load_labeled_images(tmp_path / "photos", annotations=tmp_path / "work" / "made" / file)
        assert np.array_equal(labeled[0].mask, mask), file
        assert labeled.label_names == ["background", *names[1:]]


def test_planes_of_stacks_have_boxes_of_their_own_and_no_formats_of_single_pictures(tmp_path):
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.zeros((3, 20, 20), np.uint8)
    for plane in range(3):
        mask[plane, 5 : 9 + plane, 5 - plane : 9] = 1
    raster = ArrayRaster(mask[:, None], "stack.npy")
    raster.volumetric = True
    (tmp_path / "work" / "made").mkdir(parents=True)
    options = CountsObjects(instances="components", export=("coco",))
    write_objects(options, raster, Blocks(mask), tmp_path / "work" / "made", "a", NAMES, PALETTE, 255)
    content = json.loads((tmp_path / "work" / "made" / "a_objects.coco.json").read_text())
    assert [image["plane"] for image in content["images"]] == [0, 1, 2] and len(content["annotations"]) == 3
    for one in content["annotations"]:
        assert one["bbox"] == list(map(int, coco.toBbox(one["segmentation"]))) and one["object"] == 1
        assert np.array_equal(coco.decode(one["segmentation"]), mask[one["image_id"] - 1])
    with pytest.raises(UserError, match="stack.npy has 3 planes, and cvat are of pictures with one; export coco"):
        check_planes(CountsObjects(instances="components", export=("cvat", "coco")), raster)
