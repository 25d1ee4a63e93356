# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of each format: what is read of them, and that masks come back equal from what is written."""

import base64
import contextlib
import copy
import io
import json
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import shapely.geometry
import yaml as yaml_library
from hypothesis import HealthCheck, given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.datasets.annotations import coco, cvat, label_studio, labelme, qupath, supervisely, yolo
from diffuseseg_diffusers.datasets.annotations.base import Contents, Marked
from diffuseseg_diffusers.datasets.annotations.reading import read_file
from diffuseseg_diffusers.datasets.annotations.shapes import Region, from_mask, paint


NAMES = ["background", "vessel", "cell"]
IDS = dict(zip(NAMES, range(3))) | {"__ignore__": 255}
WRITTEN = {
    coco: ("coco.json", "coco.json"),
    labelme: (".", "x.json"),
    cvat: ("annotations.xml", "annotations.xml"),
    label_studio: ("tasks.json", "tasks.json"),
    qupath: (".", "x.geojson"),
}
MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: arrays(np.uint8, size, elements=st.sampled_from([0, 1, 2, 255]))
)


def parse(module, path: Path) -> Contents:
    """What a file says, after it was recognised by its content, and by no other format."""
    if path.suffix == ".xml":
        content = ET.parse(path).getroot()
    else:
        content = yaml_library.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    others = [coco, cvat, label_studio, labelme, qupath, supervisely, yolo]
    assert [one for one in others if one.recognises(path, content)] == [module]
    return read_file(module.__name__.rsplit(".", 1)[1], path, content)


def ids_of(contents: Contents, height: int, width: int) -> np.ndarray:
    out = np.zeros((height, width), np.uint8)
    for picture in contents.pictures[:1]:
        for label, area in picture.shapes:
            paint(out, area, IDS.get(label, 1))
    return out


def save(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rows(mask: np.ndarray) -> str:
    return " ".join("".join({0: ".", 1: "v", 2: "c", 255: "?"}[v] for v in row) for row in mask.tolist())


@pytest.mark.parametrize("module", WRITTEN, ids=lambda m: m.__name__.rsplit(".", 1)[1])
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mask=MASKS)
def test_masks_come_back_equal_from_what_is_written(module, mask, tmp_path):
    written, read = WRITTEN[module]
    module.write(tmp_path / written, [Marked("x.png", *mask.shape, from_mask(mask, NAMES))], NAMES)
    contents = parse(module, tmp_path / read)
    assert np.array_equal(ids_of(contents, *mask.shape), mask)
    assert contents.names == NAMES and not contents.left_out
    (picture,) = contents.pictures
    assert picture.name in ("x.png", "x") and picture.size in (None, mask.shape)


@settings(max_examples=30, deadline=None)
@given(mask=MASKS)
def test_outlines_are_valid_and_have_the_area_of_their_pixels(mask):
    for region in from_mask(mask, NAMES):
        shape = shapely.geometry.shape({"type": "MultiPolygon", "coordinates": qupath.outline(region)})
        assert shape.is_valid and shape.area == region.mask.sum()


def test_objects_keep_their_own_annotation(tmp_path):
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    regions = [Region("cell", ring, 1, 2), Region("cell", np.ones((1, 1), bool), 2, 3), Region("vessel", ring, 4, 0)]
    for module, (written, read) in WRITTEN.items():
        module.write(tmp_path / written, [Marked("x.png", 8, 9, regions)], NAMES)
        shapes = parse(module, tmp_path / read).pictures[0].shapes
        assert [label for label, _ in shapes] == ["cell", "cell", "vessel"]
        for region, (_, area) in zip(regions, shapes):
            out = np.zeros((8, 9), np.uint8)
            paint(out, area, 1)
            assert np.array_equal(out, region.whole(8, 9)), module
        (tmp_path / read).unlink()


def test_coco_that_is_written_is_what_pycocotools_reads(tmp_path):
    mask = np.random.default_rng(0).choice([0, 1, 2], (7, 5)).astype(np.uint8)
    coco.write(tmp_path / "c.json", [Marked("a/x.png", 7, 5, from_mask(mask, NAMES))], NAMES)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(tmp_path / "c.json")
    for one in api.loadAnns(api.getAnnIds()):
        own = api.annToMask(one)
        assert np.array_equal(own, mask == one["category_id"]) and own.sum() == one["area"]
        y, x = np.nonzero(own)
        assert one["bbox"] == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
    assert api.loadCats([2])[0]["name"] == "cell" and api.loadImgs([1])[0]["file_name"] == "a/x.png"


DAMAGE = st.sampled_from([None, "x", -1, [], {}, [None], float("nan"), 10**12])


@pytest.mark.parametrize("module", [coco, labelme, label_studio, qupath, supervisely])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_ends_in_anything_but_a_sentence(module, data):
    content = copy.deepcopy(INTACT[module])
    place = content
    while True:  # down to something that is replaced or removed
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not (isinstance(place[key], (dict, list)) and place[key]) or data.draw(st.booleans()):
            break
        place = place[key]
    if data.draw(st.booleans()):
        del place[key]
    else:
        place[key] = data.draw(DAMAGE)
    path = Path("data/ann/x.png.json")
    if module.recognises(path, content):
        with contextlib.suppress(UserError):
            contents = read_file(module.__name__.rsplit(".", 1)[1], path, content)
            if all(picture.size in (None, (4, 5)) for picture in contents.pictures):
                ids_of(contents, 4, 5)


def annotation(**changes) -> dict:
    return {
        "id": 1,
        "image_id": 7,
        "category_id": 9,
        "iscrowd": 0,
        "segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]],
    } | changes


def coco_file(*annotations: dict) -> dict:
    image = {"id": 7, "file_name": "x.png", "height": 4, "width": 5}
    categories = [{"id": 9, "name": "cell"}, {"id": 3, "name": "vessel"}]
    return {"images": [image], "annotations": list(annotations), "categories": categories}


@pytest.mark.parametrize(
    "annotations, pixels, source",
    [
        ([annotation()], "..... .cc.. .cc.. .....", "polygon, pycocotools"),
        ([annotation(segmentation=[[0, 0, 1, 0, 1, 1, 0, 1], [4, 3, 5, 3, 5, 4, 4, 4]])],
         "c.... ..... ..... ....c", "parts"),
        ([annotation(segmentation={"size": [4, 5], "counts": [5, 2, 13]})], "..... .c... .c... .....", "run lengths"),
        ([annotation(segmentation={"size": [4, 5], "counts": "52="})],
         "..... .c... .c... .....", "compressed, LEB128 of maskApi.c"),
        ([annotation(), annotation(category_id=3, segmentation=[[2, 2, 4, 2, 4, 4, 2, 4]])],
         "..... .cc.. .cvv. ..vv.", "in order of the file"),
        ([annotation(iscrowd=1)], "..... .??.. .??.. .....", "cocoeval: crowds are passed over"),
        ([annotation(segmentation=[[-3, -3, 1, -3, 1, 9, -3, 9]])], "c.... c.... c.... c....", "clipped"),
    ],
)  # fmt: skip
def test_coco(annotations, pixels, source, tmp_path):
    contents = parse(coco, save(tmp_path / "c.json", coco_file(*annotations)))
    assert rows(ids_of(contents, 4, 5)) == pixels, source
    assert contents.names == ["vessel", "cell"]  # in order of the ids 3 and 9


@pytest.mark.parametrize(
    "content, message",
    [
        (coco_file(annotation(category_id=4)), "annotation 1 is of category 4, which is not there"),
        (coco_file(annotation(image_id=4)), "annotation 1 is of image 4, which is not there"),
        (coco_file(annotation(segmentation={"size": [5, 4], "counts": [20]})), r"\(5, 4\), and x.png is of \(4, 5\)"),
        (coco_file(annotation(segmentation={"size": [4, 5], "counts": [5, 2]})), "of 7 pixels, and its picture has 20"),
        (coco_file(annotation(segmentation={"size": [4, 5], "counts": "52"})), "of 7 pixels, and its picture has 20"),
        (coco_file(annotation(segmentation=[[1, 1, 3, 1, 3, 3, 1]])), "odd number of coordinates"),
        (coco_file(annotation(segmentation=[[1, 1, 3, 1e9, 3, 3]])), "no number of at most 1,000,000 pixels"),
        (coco_file(annotation(segmentation=[[1, 1, 3, float("nan"), 3, 3]])), "no number of at most 1,000,000 pixels"),
        ({**coco_file(), "images": [{"id": 1}]}, "'file_name' is missing"),
        ({**coco_file(), "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "the same id or name"),
    ],
)
def test_coco_that_has_no_right_reading_is_refused(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        parse(coco, save(tmp_path / "c.json", content))


def test_coco_boxes_without_an_area_are_counted(tmp_path):
    file = save(tmp_path / "c.json", coco_file(annotation(segmentation=[]), annotation(segmentation=[[1, 1, 3, 3]])))
    assert parse(coco, file).left_out == {"annotations without an area": 2}


def png(mask: str, mode: str = "1") -> bytes:
    data = io.BytesIO()
    image = Image.fromarray(np.array([[c == "#" for c in row] for row in mask.split()]))
    if mode == "P":  # as Supervisely writes it: index 0 is transparent
        image = Image.fromarray(np.array(image, np.uint8))
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(data, "PNG", transparency=0)
    else:
        image.convert(mode).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    "shape, pixels, source",
    [
        ({"points": [[1, 1], [3, 1], [3, 2], [1, 2]]}, "..... .ccc. .ccc. .....", "no shape_type: polygon"),
        ({"shape_type": "rectangle", "points": [[4, 3], [3, 2]]}, "..... ..... ...cc ...cc", "shape_to_mask"),
        ({"shape_type": "circle", "points": [[2, 1], [2, 2]]}, "..c.. .ccc. ..c.. .....", "shape_to_mask"),
        ({"shape_type": "mask", "points": [[1, 0], [2, 1]], "mask": base64.b64encode(png("#. ##")).decode()},
         ".c... .cc.. ..... .....", "shapes_to_label"),
        ({"shape_type": "mask", "points": [[1, 0], [2, 1]], "mask": base64.b64encode(png("#. ##", "L")).decode()},
         ".c... .cc.. ..... .....", "grey mask"),
    ],
)  # fmt: skip
def test_labelme(shape, pixels, source, tmp_path):
    content = {"version": "5.5.0", "imagePath": "..\\pictures\\x.png", "imageHeight": 4, "imageWidth": 5}
    line = {"label": "cell", "shape_type": "line", "points": [[0, 0], [4, 4]]}
    contents = parse(labelme, save(tmp_path / "x.json", content | {"shapes": [{"label": "cell"} | shape, line]}))
    assert rows(ids_of(contents, 4, 5)) == pixels, source
    assert contents.pictures[0].name == "../pictures/x.png" and contents.left_out == {"shapes of the kind 'line'": 1}


@pytest.mark.parametrize(
    "shapes, pixels, source",
    [
        ('<polygon label="cell" points="1,1;3,1;3,3;1,3"/>', "..... .cc.. .cc.. .....", "pycocotools"),
        ('<box label="cell" xtl="1" ytl="1" xbr="3" ybr="3"/>', "..... .cc.. .cc.. .....", "BoxesToMasks"),
        ('<box label="cell" xtl="1" ytl="1" xbr="4" ybr="2" rotation="90"/>', "..c.. ..c.. ..c.. .....", "turned"),
        ('<mask label="cell" rle="1, 2, 1" left="2" top="1" width="2" height="2"/>',
         "..... ...c. ..c.. .....", "row by row in its box"),
        ('<mask label="cell" rle="0, 4" left="4" top="3" width="2" height="2"/>', "..... ..... ..... ....c", "clipped"),
        ('<polygon label="cell" points="1,1;3,1;3,3;1,3" z_order="1"/>'
         '<box label="vessel" xtl="0" ytl="0" xbr="5" ybr="2" z_order="0"/>',
         "vvvvv vccvv .cc.. .....", "z_order, then order of the file"),
        ('<ellipse label="cell" cx="2.5" cy="2" rx="1.5" ry="1"/>', "..... .ccc. .ccc. .....", "720 points, datumaro"),
    ],
)  # fmt: skip
def test_cvat(shapes, pixels, source, tmp_path):
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("vessel", "cell"))
    shapes += '<points label="cell" points="1,1"/>'
    image = f'<image id="0" name="x.png" width="5" height="4" subset="Train">{shapes}</image>'
    text = (
        f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>{image}</annotations>"
    )
    contents = parse(cvat, save(tmp_path / "a.xml", text))
    assert rows(ids_of(contents, 4, 5)) == pixels, source
    assert contents.names == ["vessel", "cell"] and contents.left_out == {"shapes of the kind 'points'": 1}
    assert contents.pictures[0].split == "Train"


@pytest.mark.parametrize(
    "inside, message",
    [
        ('<mask label="cell" rle="1, 2" left="0" top="0" width="2" height="2"/>', "of 3 pixels, and its box has 4"),
        ('<polygon label="cell" points="1,1;2,2"/>', "less than three points"),
        ('<polygon label="cell" points="1,1;2,x;3,3"/>', "could not convert string to float: 'x'"),
        ('<star label="cell"/>', "no shape 'star'"),
    ],
)
def test_cvat_that_has_no_right_reading_is_refused(inside, message, tmp_path):
    text = f'<annotations><image name="x.png" width="5" height="4">{inside}</image></annotations>'
    with pytest.raises(UserError, match=message):
        parse(cvat, save(tmp_path / "a.xml", text))
    with pytest.raises(UserError, match="tracks of a video"):
        parse(cvat, save(tmp_path / "b.xml", "<annotations><track/></annotations>"))


def task(*results: dict, **changes) -> list:
    size = {"original_width": 5, "original_height": 4, "image_rotation": 0}
    return [{"id": 1, "data": {"image": "/data/upload/2/1f2e3d4c-x.png"},
             "annotations": [{"result": [size | one for one in results]}]} | changes]  # fmt: skip


def drawn(kind: str, **value) -> dict:
    return {"id": "a", "type": f"{kind}labels", "value": value | {f"{kind}labels": ["cell"]}}


# Of label-studio-converter's own test: the values 1 1 1 1 2 3 5 6 7 8 4 4 4 4 4 4 4 4 as run lengths.
PUBLISHED = [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32]


def test_label_studio_brushes_are_as_its_own_converter_encodes_them():
    assert label_studio.decode_brush(PUBLISHED).tolist() == [1, 6, 4, 4]  # every fourth value, alpha
    mask = np.array([[True] * 9 + [False]] * 1)
    sizes = "0010001101111111"  # runs of up to 2^3, 2^4, 2^8 and 2^16 values
    bits = f"{40:032b}" + f"{7:05b}" + sizes + "110" + f"{35:08b}" + "1" * 8 + "100" + f"{3:03b}" + "0" * 8
    bits += "0" * (-len(bits) % 8)
    assert label_studio.encode_brush(mask) == [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    large = np.ones((300, 300), bool)  # runs of more than 2^16 values are split
    assert label_studio.decode_brush(label_studio.encode_brush(large)).tolist() == [255] * 90000


@pytest.mark.parametrize(
    "result, pixels, source",
    [
        (drawn("polygon", points=[[20, 25], [60, 25], [60, 75], [20, 75]]), "..... .cc.. .cc.. .....", "percent"),
        (drawn("rectangle", x=20, y=25, width=40, height=50), "..... .cc.. .cc.. .....", "percent"),
        (drawn("rectangle", x=60, y=25, width=25, height=40, rotation=90),
         "..... .cc.. ..... .....", "turned about its corner"),
        (drawn("ellipse", x=50, y=50, radiusX=30, radiusY=25), "..... .ccc. .ccc. .....", "ellipse"),
        (drawn("brush", format="rle", rle=label_studio.encode_brush(np.eye(4, 5) > 0)),
         "c.... .c... ..c.. ...c.", "rle-pack"),
    ],
)  # fmt: skip
def test_label_studio(result, pixels, source, tmp_path):
    choice = {"id": "b", "type": "choices", "value": {"choices": ["good"]}}
    unlabelled = {"id": 2, "data": {"image": "y.png"}, "annotations": [{"was_cancelled": True, "result": []}]}
    contents = parse(label_studio, save(tmp_path / "t.json", [*task(result, choice), unlabelled]))
    if source == "turned about its corner":  # x = 3 px; 1.25 px wide becomes 1.25 px high, 1.6 px high becomes wide
        assert contents.pictures[0].shapes[0][1]["polygons"][0] == pytest.approx([3, 1, 3, 2.25, 1.4, 2.25, 1.4, 1])
    else:
        assert rows(ids_of(contents, 4, 5)) == pixels, source
    assert contents.pictures[0].name == "x.png" and contents.pictures[0].size == (4, 5)
    assert contents.left_out == {"results of the type 'choices'": 1, "tasks that nobody has labelled": 1}


@pytest.mark.parametrize(
    "address, name",
    [
        ("/data/local-files/?d=scans%2Fday%201/x.png", "scans/day 1/x.png"),
        ("https://example.org/a/x%20y.png?token=1", "/a/x y.png"),
        ("s3://bucket/a/x.png", "/a/x.png"),
        ("C:\\photos\\x.png", "/photos/x.png"),
    ],
)
def test_label_studio_addresses_name_pictures(address, name, tmp_path):
    one = task(drawn("rectangle", x=0, y=0, width=9, height=9), data={"image": address})
    assert parse(label_studio, save(tmp_path / "t.json", one)).pictures[0].name == name


@pytest.mark.parametrize(
    "content, message",
    [
        (task(annotations=[{"result": []}, {"result": []}]), "has 2 annotations; mark one of them as ground truth"),
        (task(drawn("rectangle", x=0, y=0, width=9, height=9) | {"image_rotation": 90}), "turned by 90°"),
        (task(drawn("brush", rle=[0, 0, 0, 80, 57])), "end too early"),
        (task(drawn("brush", rle=PUBLISHED)), "of 4 pixels, and its picture has 20"),
        (task({"type": "rectanglelabels", "value": {"rectanglelabels": ["a", "b"]}}), "has 2 labels"),
        (task(drawn("rectangle", x=0, y=0, width=9)), "'height' is missing"),
    ],
)
def test_label_studio_that_has_no_right_reading_is_refused(content, message, tmp_path):
    with pytest.raises(UserError, match=message):
        parse(label_studio, save(tmp_path / "t.json", content))


def feature(kind: str | None, coordinates: list, shape: str = "Polygon", **geometry) -> dict:
    properties = {"objectType": "annotation"} | ({"classification": {"name": kind}} if kind else {})
    return {
        "type": "Feature",
        "geometry": {"type": shape, "coordinates": coordinates, **geometry},
        "properties": properties,
    }


SQUARE = [[1, 1], [4, 1], [4, 4], [1, 4], [1, 1]]
HOLE = [[2, 2], [3, 2], [3, 3], [2, 3], [2, 2]]


@pytest.mark.parametrize(
    "features, pixels, source",
    [
        ([feature("cell", [SQUARE])], "..... .ccc. .ccc. .ccc.", "pixel edges"),
        ([feature("cell", [SQUARE, HOLE])], "..... .ccc. .c.c. .ccc.", "hole"),
        ([feature("cell", [[SQUARE, HOLE], [HOLE]], "MultiPolygon")], "..... .ccc. .ccc. .ccc.", "parts"),
        ([feature("cell", [SQUARE]), feature("Ignore*", [HOLE])], "..... .ccc. .c?c. .ccc.", "Ignore*"),
    ],
)
def test_qupath(features, pixels, source, tmp_path):
    more = [feature(None, [SQUARE]), feature("cell", [1, 1], "Point")]
    for content in ({"type": "FeatureCollection", "features": features + more}, features + more):
        contents = parse(qupath, save(tmp_path / "slide.ome.geojson", content))
        assert rows(ids_of(contents, 4, 5)) == pixels, source
        assert contents.pictures[0].name == "slide.ome"
        assert contents.left_out == {"shapes without a class": 1, "shapes of the kind 'Point'": 1}
    with pytest.raises(UserError, match="several planes"):
        parse(qupath, save(tmp_path / "a.geojson", [feature("cell", [SQUARE], plane={"c": -1, "z": 2, "t": 0})]))


def yolo_folder(folder: Path, lines: str, **content) -> Path:
    (folder / "images" / "train").mkdir(parents=True, exist_ok=True)
    Image.new("L", (5, 4)).save(folder / "images" / "train" / "x.png")
    save(folder / "labels" / "train" / "x.txt", lines)
    described = {"train": "images/train", "names": {0: "vessel", 1: "cell"}} | content
    return save(folder / "data.yaml", yaml_library.dump(described))


def test_a_test_split_of_yolo_that_was_not_exported_is_left_out(tmp_path):
    lines = "1 0.2 0.25 0.6 0.25 0.6 0.5 0.2 0.5"
    contents = parse(yolo, yolo_folder(tmp_path, lines, test="../test/images"))
    assert len(contents.pictures) == 1
    assert list(contents.left_out) == ["folder of the split 'test', which data.yaml names and which is not there"]
    for split in ("train", "val"):
        with pytest.raises(UserError, match="names ../gone/images, and there is no .*gone/images; mend the path"):
            parse(yolo, yolo_folder(tmp_path, lines, **{split: "../gone/images"}))


def test_yolo(tmp_path):
    lines = "1 0.2 0.25 0.6 0.25 0.6 0.5 0.2 0.5\n\n0 0.5 0.5 0.5 0.5\n"
    for content in ({}, {"names": ["vessel", "cell"]}, {"train": "../images/train"}, {"train": ["images/train"]}):
        contents = parse(yolo, yolo_folder(tmp_path, lines, **content))
        assert rows(ids_of(contents, 4, 5)) == "..... .ccc. .ccc. ....."  # as cv2.fillPoly, border included
        assert contents.names == ["vessel", "cell"] and contents.left_out == {"boxes": 1}
        assert contents.pictures[0].split == "train"
    save(tmp_path / "train.txt", "./images/train/x.png\n")
    assert len(parse(yolo, yolo_folder(tmp_path, lines, train="train.txt")).pictures) == 1
    for wrong, message in (("2 0 0 0 1 1 1", "has the class 2, and there are 2"), ("1 0 0 0 1 1 1 1", "odd number")):
        with pytest.raises(UserError, match=message):
            parse(yolo, yolo_folder(tmp_path, wrong))
    with pytest.raises(UserError, match="names images/val"):
        parse(yolo, yolo_folder(tmp_path, lines, val="images/val"))


@pytest.mark.parametrize(
    "shape, pixels, source",
    [
        ({"geometryType": "polygon", "points": {"exterior": [[0, 0], [4, 0], [4, 3], [0, 3]],
          "interior": [[[1, 1], [2, 1], [2, 2], [1, 2]]]}},
         "ccccc c..cc c..cc ccccc", "cv2.fillPoly of the outline, then of the holes"),
        ({"geometryType": "rectangle", "points": {"exterior": [[1, 1], [3, 2]], "interior": []}},
         "..... .ccc. .ccc. .....", "border included"),
        ({"geometryType": "bitmap", "bitmap": {"origin": [3, 1],
          "data": base64.b64encode(zlib.compress(png("#. ##", "P"))).decode()}},
         "..... ...c. ...cc .....", "base64 of zlib of PNG, index 0 transparent"),
    ],
)  # fmt: skip
def test_supervisely(shape, pixels, source, tmp_path):
    content = {"size": {"height": 4, "width": 5}, "objects": [{"classTitle": "cell"} | shape]}
    contents = parse(supervisely, save(tmp_path / "ds" / "ann" / "x.png.json", content))
    assert rows(ids_of(contents, 4, 5)) == pixels, source
    assert contents.pictures[0].name == str(tmp_path / "ds" / "img" / "x.png")
    meta = {"classes": [{"title": "vessel"}, {"title": "cell"}], "tags": []}
    assert parse(supervisely, save(tmp_path / "meta.json", meta)).names == ["vessel", "cell"]


INTACT = {
    coco: coco_file(annotation(), annotation(segmentation={"size": [4, 5], "counts": "52="})),
    labelme: {
        "imagePath": "x.png",
        "imageHeight": 4,
        "imageWidth": 5,
        "shapes": [
            {"label": "cell", "points": [[1, 1], [3, 1], [3, 2]]},
            {
                "label": "cell",
                "shape_type": "mask",
                "points": [[1, 0], [2, 1]],
                "mask": base64.b64encode(png("#. ##")).decode(),
            },
        ],
    },
    label_studio: task(drawn("polygon", points=[[20, 25], [60, 25], [60, 75]]), drawn("brush", rle=PUBLISHED)),
    qupath: {"type": "FeatureCollection", "features": [feature("cell", [SQUARE, HOLE])]},
    supervisely: {
        "size": {"height": 4, "width": 5},
        "objects": [
            {
                "classTitle": "cell",
                "geometryType": "polygon",
                "points": {"exterior": [[0, 0], [4, 0], [4, 3]], "interior": []},
            },
            {
                "classTitle": "cell",
                "geometryType": "bitmap",
                "bitmap": {"origin": [3, 1], "data": base64.b64encode(zlib.compress(png("#. ##", "P"))).decode()},
            },
        ],
    },
}
