# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Exports of objects, as the programs that they are for read them."""

import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.datasets.annotations.qupath import outline
from diffuseseg_diffusers.datasets.annotations.shapes import Region
from diffuseseg_diffusers.images.formats.base import ArrayRaster, Window
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tiling.exports import check_planes, object_files, write_objects
from diffuseseg_diffusers.tiling.options import CountsObjects

from ..images.formats.pictures import geotiff
from .test_objects import NAMES, PALETTE, Blocks, discs


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


class Stack(ArrayRaster):
    """Two times of two slices in memory."""

    volumetric, mask_suffix = True, ".npy"

    def position(self, plane):
        return plane % 2, plane // 2


def test_each_plane_of_a_stack_is_exported_with_its_place_and_its_own_measurements(tmp_path):
    """QuPath: `plane: {c, z, t}` in the geometry, c = -1 for all channels; COCO: a box contains its run lengths."""
    coco = pytest.importorskip("pycocotools.mask")
    pyogrio = pytest.importorskip("pyogrio")
    mask = np.zeros((4, 20, 24), np.uint8)
    mask[0, 2:9, 2:9] = mask[1, 4:6, 5:20] = mask[2, 5, 19] = 1
    mask[3, 15, 2] = 2
    made = tmp_path / "work" / "made"
    made.mkdir(parents=True)
    options = CountsObjects(instances="components", export=("geojson", "coco", "gpkg"))
    assert write_objects(options, Stack(mask[:, None], "a.tif"), Blocks(mask), made, "a", NAMES, PALETTE, 255) == 2
    features = json.loads((made / "a_objects.geojson").read_text())["features"]
    assert [f["geometry"]["plane"] for f in features] == [{"c": -1, "z": p % 2, "t": p // 2} for p in range(4)]
    assert len({f["id"] for f in features}) == 4 and [f["properties"]["name"] for f in features] == ["1", "1", "1", "2"]
    areas = [int((plane > 0).sum()) for plane in mask]
    assert [f["properties"]["measurements"]["area_px"] for f in features] == areas
    content = json.loads((made / "a_objects.coco.json").read_text())
    for annotation in content["annotations"]:
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
        assert annotation["area"] == coco.area(annotation["segmentation"]) == areas[annotation["image_id"] - 1]
    meta, _, geometry, fields = pyogrio.raw.read(made / "a_objects.gpkg")
    columns = {name: values.tolist() for name, values in zip(meta["fields"], fields)}
    assert columns["id"] == [1, 2, 3, 4] and columns["object"] == [1, 1, 1, 2] and columns["area_px"] == areas
    assert (columns["z"], columns["t"]) == ([0, 1, 0, 1], [0, 0, 1, 1])


@settings(deadline=None, max_examples=60)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))).filter(np.any))
def test_outlines_are_valid_and_have_the_area_of_their_pixels(mask):
    """OGC simple features: rings may not cross or touch themselves; pixels that touch at corners make them."""
    shapely = pytest.importorskip("shapely")
    found = shapely.geometry.shape({"type": "MultiPolygon", "coordinates": outline(Region("", mask, 3, 5))})
    assert found.is_valid and found.area == mask.sum()


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
    with pytest.raises(
        UserError, match="stack.npy has 3 planes, and pictures of one are what cvat can hold; export coco"
    ):
        check_planes(CountsObjects(instances="components", export=("cvat", "coco")), raster)
