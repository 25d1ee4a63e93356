# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""OME-Zarr with axes in any order, written by zarr; masks by the schemas of the specification."""

import json

import numpy as np
import pytest

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import find_rasters, is_raster, open_raster, pictures_at
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tiling.files import free_names, stem

from .ngff import SCHEMAS


zarr = pytest.importorskip("zarr")
KINDS = {"t": "time", "c": "channel"}
SIZES = {"t": 2, "c": 3, "z": 4, "y": 6, "x": 5}
STEPS = {"t": 1.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}


def write(path, axes, form=3, unit="micrometer", dataset=(), multiscales=(), sizes=SIZES, groups=None):
    """A picture whose value at each place is its number in the order t, c, z, y, x."""
    own = [sizes[name] for name in axes]
    order = [name for name in "tczyx" if name in axes]
    values = np.arange(np.prod(own), dtype=np.uint16).reshape([sizes[name] for name in order])
    values = values.transpose([order.index(name) for name in axes])
    group = zarr.open_group(str(path), mode="w", zarr_format=form)
    group.create_array("0", shape=values.shape, chunks=values.shape, dtype=values.dtype)[...] = values
    described = [{"name": n, "type": KINDS.get(n, "space")} | ({"unit": unit} if n in "zyx" else {}) for n in axes]
    steps = [{"type": "scale", "scale": [STEPS[name] for name in axes]}, *dataset]
    scales = {"axes": described, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    if multiscales:
        scales["coordinateTransformations"] = list(multiscales)
    if form == 2:
        group.attrs["multiscales"] = [{**scales, "version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [scales]}
    return path


def pixels(raster):
    return np.stack([raster.read(plane, Window(0, 0, *raster.size)) for plane in range(raster.planes)])


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize(
    ("axes", "rule"),
    [
        ("tczyx", "NGFF 0.4: the recommended order"),
        ("czyx", "NGFF 0.4: axes may be left out"),
        ("cxyz", "WEBKNOSSOS: x, y and z in this order"),
        ("xyz", "NGFF 0.4: the order of axes in space is a recommendation"),
        ("xy", "NGFF 0.4: two axes in space"),
        ("yxz", "NGFF 0.4: the order of axes in space is a recommendation"),
        ("yxc", "n5 and older writers: channels last"),
        ("zyxc", "n5 and older writers: channels last"),
    ],
)
def test_a_mask_has_the_axes_of_its_picture_in_their_order(tmp_path, axes, rule, form):
    jsonschema = pytest.importorskip("jsonschema")
    path = write(tmp_path / "a.ome.zarr", axes, form)
    with open_raster(path) as raster:
        read = pixels(raster)  # [planes,C,y,x]
        shape = [SIZES[n] if n in axes else 1 for n in "tczyx"]
        expected = np.arange(read.size).reshape(shape).swapaxes(1, 2).reshape(read.shape)
        assert np.array_equal(read, expected), rule
        ids = (read[:, 0] % 7).astype(np.uint8)
        raster.write_labels(
            tmp_path / "mask.ome.zarr", lambda p, w: ids[p][w.slices], np.dtype(np.uint8), [[0, 0, 0], [255, 0, 0]]
        )
        with open_raster(tmp_path / "mask.ome.zarr") as mask:
            assert np.array_equal(pixels(mask)[:, 0], ids)
            assert mask.pixel_size == raster.pixel_size and mask.plane_distance == raster.plane_distance
    group = zarr.open_group(str(tmp_path / "mask.ome.zarr"), mode="r")
    attributes = dict(group.attrs)
    jsonschema.validate(attributes, SCHEMAS[form])
    kept = [name for name in axes if name != "c"]
    scales = attributes.get("ome", attributes)["multiscales"][0]
    assert [axis["name"] for axis in scales["axes"]] == kept and group["0"].shape == tuple(SIZES[n] for n in kept)
    if form == 3:
        assert list(group["0"].metadata.dimension_names) == kept


def test_transformations_of_the_picture_are_applied_after_those_of_the_array(tmp_path):
    steps = [{"type": "scale", "scale": [2, 2]}, {"type": "translation", "translation": [7, 9]}]
    path = write(
        tmp_path / "a.ome.zarr", "yx", dataset=[{"type": "translation", "translation": [100, 200]}], multiscales=steps
    )
    with open_raster(path) as raster:
        assert raster.pixel_size == (1.0, 0.5)
        assert raster.grid.affine[:2, 3].tolist() == [2 * 200 + 9, 2 * 100 + 7]
        raster.write_labels(tmp_path / "m.ome.zarr", lambda p, w: np.zeros((6, 5), np.uint8), np.dtype(np.uint8), None)
    attributes = json.loads((tmp_path / "m.ome.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    assert attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"] == [
        {"type": "scale", "scale": [1.0, 0.5]},
        {"type": "translation", "translation": [207.0, 409.0]},
    ]
    assert "colors" not in attributes["image-label"]
    wrong = write(tmp_path / "b.ome.zarr", "yx", dataset=[{"type": "affine", "affine": []}])
    with pytest.raises(UserError, match="transformation of type 'affine' that is not read"):
        open_raster(wrong)


def test_one_time_of_a_volume_is_a_volume_and_resolutions_with_fewer_slices_are_left_out(tmp_path):
    path = write(tmp_path / "a.ome.zarr", "tczyx", sizes={**SIZES, "t": 1})
    group = zarr.open_group(str(path), mode="a")
    half = group["0"][:, :, ::2, ::2, ::2]
    group.create_array("1", shape=half.shape, chunks=half.shape, dtype=half.dtype)[...] = half
    described = dict(group.attrs["ome"])
    scale = {"type": "scale", "scale": [1, 1, 4, 1, 0.5]}
    described["multiscales"][0]["datasets"].append({"path": "1", "coordinateTransformations": [scale]})
    group.attrs["ome"] = described
    raster = open_raster(path)
    assert raster.volumetric and raster.levels == (1.0,) and raster.plane_distance == 2.0
    assert raster.position(3) == (3, 0)
    assert open_raster(write(tmp_path / "b.ome.zarr", "tczyx")).position(5) == (1, 1)


def test_plates_and_series_are_found_picture_by_picture(tmp_path):
    """NGFF 0.4: plates have wells, wells fields; bioformats2raw numbers its series."""
    plate = zarr.open_group(str(tmp_path / "plate.zarr"), mode="w", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    for well in ("A/1", "B/2"):
        plate.create_group(well).attrs["well"] = {"images": [{"path": "0"}, {"path": "1"}]}
        for field in "01":
            write(tmp_path / "plate.zarr" / well / field, "yx", 2)
    series = zarr.open_group(str(tmp_path / "series.zarr"), mode="w", zarr_format=2)
    series.attrs["bioformats2raw.layout"] = 3
    write(tmp_path / "series.zarr" / "0", "yx", 2)
    fields = [tmp_path / "plate.zarr" / name for name in ("A/1/0", "A/1/1", "B/2/0", "B/2/1")]
    assert (
        find_rasters(tmp_path) == [*fields, tmp_path / "series.zarr"] and pictures_at(tmp_path / "plate.zarr") == fields
    )
    assert all(is_raster(field) and open_raster(field).size == (6, 5) for field in fields)
    assert open_raster(tmp_path / "series.zarr").size == (6, 5)
    with pytest.raises(UserError, match="plate.zarr holds 4 pictures, and one is read; name it, such as .*A.1.0"):
        open_raster(tmp_path / "plate.zarr")
    assert free_names([stem(str(field)) for field in fields]) == [
        "plate_A_1_0",
        "plate_A_1_1",
        "plate_B_2_0",
        "plate_B_2_1",
    ]
