# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pixels of areas, beside those of the libraries whose rule they follow."""

import json
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco
from rasterio.features import rasterize as burn

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.datasets.annotations.shapes import Region, from_mask, paint, rasterize, run_lengths


def painted(area: dict, height: int = 20, width: int = 30) -> np.ndarray:
    out = np.zeros((height, width), np.uint8)
    paint(out, area, 1)
    return out


def polygon(rng: np.random.Generator, points: int = 6) -> np.ndarray:
    return rng.uniform(-3, [33, 23], (points, 2))


@pytest.mark.parametrize("seed", range(5))
def test_each_kind_of_area_has_the_pixels_of_its_library(seed):
    rng = np.random.default_rng(seed)
    outline, other = polygon(rng), polygon(rng)

    rings = [outline.tolist(), other.tolist()]
    gdal = burn([{"type": "Polygon", "coordinates": [ring]} for ring in rings[:1]], (20, 30))  # centres, as Java's
    assert np.array_equal(painted({"rings": rings[:1]}), gdal)
    second = burn([{"type": "Polygon", "coordinates": [rings[1]]}], (20, 30))
    assert np.array_equal(painted({"rings": rings}), gdal ^ second)  # even-odd: holes and parts

    flat = [outline.ravel().tolist(), other.ravel().tolist()]
    together = coco.decode(coco.frPyObjects(flat, 20, 30)).any(axis=2)
    assert np.array_equal(painted({"polygons": flat}), together)

    random = rng.random((20, 30)) < 0.4
    runs = coco.encode(np.asfortranarray(random.astype(np.uint8)))
    assert np.array_equal(painted({"runs": runs["counts"].decode()}), random)
    assert np.array_equal(painted({"runs": run_lengths(random, 0, 0, 20, 30)}), random)
    assert coco.frPyObjects({"counts": run_lengths(random, 0, 0, 20, 30), "size": [20, 30]}, 20, 30) == runs

    t = np.sort(rng.uniform(0, 2 * np.pi, 7))
    convex = np.stack([15 + 14 * np.cos(t), 10 + 9 * np.sin(t)], 1).astype(np.int32)
    filled = cv2.fillPoly(np.zeros((20, 30), np.uint8), [convex], 1)
    assert (painted({"filled": [convex.tolist()]}) != filled).sum() <= 4  # lines between pixels are drawn otherwise


@pytest.mark.parametrize(
    "area, pixels, source",
    [
        ({"rings": [[[1, 1], [3, 1], [3, 2], [1, 2]]]}, "..... .##.. .....", "GeoJSON of QuPath: pixel edges"),
        ({"rings": [[[0, 0], [3, 0], [3, 3], [0, 3]], [[1, 1], [2, 1], [2, 2], [1, 2]]]}, "###.. #.#.. ###..", "hole"),
        ({"rings": [[[-9, -9], [1, -9], [1, 9], [-9, 9]]]}, "#.... #.... #....", "cut off at the picture"),
        ({"rings": [[[9, 9], [12, 9], [12, 12]]]}, "..... ..... .....", "all outside"),
        ({"polygons": [[1, 1, 3, 1, 3, 2, 1, 2]]}, "..... .##.. .....", "pycocotools"),
        ({"drawn": ["polygon", [[1, 1], [3, 1], [3, 2], [1, 2]]]}, "..... .###. .###.", "labelme shape_to_mask"),
        ({"drawn": ["rectangle", [[3, 2], [1, 1]]]}, "..... .###. .###.", "labelme: corners in any order"),
        ({"drawn": ["circle", [[2, 1], [2, 2]]]}, "..#.. .###. ..#..", "labelme: centre and a point of it"),
        ({"filled": [[[1, 1], [3, 1], [3, 2], [1, 2]]]}, "..... .###. .###.", "cv2.fillPoly"),
        ({"filled": [[[0, 0], [4, 0], [4, 2], [0, 2]], [[1, 1], [3, 1], [3, 1]]]}, "##### #...# #####", "hole"),
        ({"runs": [4, 1, 10]}, "..... .#... .....", "COCO: down the columns"),
        ({"runs": [15]}, "..... ..... .....", "COCO: nothing"),
    ],
)  # fmt: skip
def test_areas_fill_the_pixels_that_their_programs_fill(area, pixels, source):
    found = " ".join("".join(".#"[v] for v in row) for row in painted(area, 3, 5))
    assert found == pixels, source


def test_later_shapes_cover_earlier_ones_and_the_rest_is_outside():
    square = {"rings": [[[0, 0], [3, 0], [3, 3], [0, 3]]]}
    inner = {"rings": [[[1, 1], [2, 1], [2, 2], [1, 2]]]}
    cell = {"height": 3, "width": 4, "outside": 7, "shapes": [{"class": 1, **square}, {"class": 2, **inner}]}
    assert rasterize(json.dumps(cell)).tolist() == [[1, 1, 1, 7], [1, 2, 1, 7], [1, 1, 1, 7]]
    cell["shapes"].reverse()
    assert (rasterize(json.dumps(cell)) == 2).sum() == 0


def test_masks_give_a_region_for_each_class_and_for_pixels_without_a_label():
    ids = np.array([[0, 1, 1], [255, 0, 1]], np.uint8)
    labels = {r.label: r.whole(2, 3) for r in from_mask(ids, ["background", "cell"])}
    assert set(labels) == {"cell", "__ignore__"}
    assert np.array_equal(labels["cell"], ids == 1) and np.array_equal(labels["__ignore__"], ids == 255)
    assert {r.label for r in from_mask(ids, ["sky", "road"])} == {"sky", "road", "__ignore__"}
    with pytest.raises(UserError, match="has the id 1, but there are 1 classes"):
        from_mask(ids, ["background"])


def test_regions_that_reach_out_of_the_picture_are_cut_off():
    assert run_lengths(np.ones((3, 3), bool), -1, -1, 2, 2) == [0, 4]
    assert Region("a", np.ones((1, 1), bool), 1, 1).whole(2, 2).tolist() == [[False, False], [False, True]]


def test_polygons_say_what_to_install_where_pycocotools_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="pycocotools is not installed; run `pip install"):
        painted({"polygons": [[1, 1, 3, 1, 3, 3]]})
    assert painted({"runs": "52="}, 4, 5).sum() == 2  # run lengths need none
