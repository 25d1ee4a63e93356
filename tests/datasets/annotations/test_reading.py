# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders with annotations of other programs: which pictures, splits and classes they have."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffuseseg_diffusers import LabeledImages, UserError, load_labeled_images
from diffuseseg_diffusers.datasets.annotations import coco, labelme
from diffuseseg_diffusers.datasets.annotations.reading import READERS, read_annotations
from diffuseseg_diffusers.datasets.columns import dataset_contents
from diffuseseg_diffusers.datasets.crops import LabeledTiles
from diffuseseg_diffusers.datasets.layouts import find_layout
from diffuseseg_diffusers.datasets.overview import overview
from diffuseseg_diffusers.datasets.parquet import as_parquet
from diffuseseg_diffusers.tasks.options import ANNOTATION_FORMATS

from ...conftest import run
from .folders import HEIGHT, MADE, NAMES, WIDTH, draw, file_name, make_coco, marked


def check(labeled: LabeledImages, masks: dict[str, np.ndarray]) -> None:
    """Pictures and masks are those, in order of their names."""
    assert len(labeled) == len(masks) and labeled.label_names == NAMES
    for one, (name, mask) in zip(labeled, sorted(masks.items())):
        assert one.name.endswith(name) and np.array_equal(one.mask, mask)


@pytest.mark.parametrize("kind", MADE)
def test_folders_are_read_without_an_option_split_by_split(kind, tmp_path):
    for split, masks in MADE[kind](tmp_path).items():
        labeled = load_labeled_images(tmp_path, split="validation" if split == "val" else split)
        check(labeled, masks)
        tiles = LabeledTiles(labeled, (HEIGHT, WIDTH))
        assert np.array_equal(tiles[0].mask, labeled[0].mask)
        check(labeled.select(range(len(masks))), masks)
        assert all(len(key) < 200 for key in dataset_contents(labeled.dataset, "image", "mask"))


@pytest.mark.parametrize(("kind", "said"), [("coco", "annotations of"), ("masks", "index masks of")])
def test_the_first_line_of_a_command_says_whether_masks_or_annotations_are_read(kind, said, tmp_path):
    masks = draw(tmp_path / "photos" / "images", "a.png")
    if kind == "coco":
        coco.write(tmp_path / "photos/a.json", marked(masks), NAMES)
    else:
        (tmp_path / "photos/masks").mkdir()
        Image.fromarray(masks["a.png"]).save(tmp_path / "photos/masks/a.png")
    labeled = load_labeled_images(tmp_path / "photos", label_names=NAMES)
    assert f"; {said} {len(NAMES)} classes" in overview("photos", "train", labeled)


def test_annotations_may_lie_elsewhere_and_be_named(tmp_path):
    masks = draw(tmp_path / "photos", "a.png", "sub/b.png")
    coco.write(tmp_path / "labels.json", marked(masks), NAMES)
    check(load_labeled_images(tmp_path / "photos", annotations=tmp_path / "labels.json"), masks)
    labelme.write(tmp_path / "drawn", marked(masks, file_name), NAMES)
    check(load_labeled_images(tmp_path / "photos", annotations=tmp_path / "drawn", annotation_format="labelme"), masks)
    with pytest.raises(UserError, match="no file or folder"):
        load_labeled_images(tmp_path / "photos", annotations=tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"labels.json is not in a format of annotations that is read \(cvat\)"):
        load_labeled_images(tmp_path / "photos", annotations=tmp_path / "labels.json", annotation_format="cvat")
    with pytest.raises(UserError, match="mask_format binary is for masks"):
        load_labeled_images(tmp_path / "photos", annotations=tmp_path / "labels.json", mask_format="binary")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="None of the 2 pictures"):
        load_labeled_images(tmp_path / "empty", annotations=tmp_path / "labels.json")


def test_annotations_in_linked_folders_are_found_as_pictures_are(tmp_path):
    masks = draw(tmp_path / "elsewhere", "a.png")
    labelme.write(tmp_path / "elsewhere", marked(masks), NAMES)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    check(load_labeled_images(tmp_path / "data"), masks)


def test_several_formats_are_refused_and_listed(tmp_path):
    masks = draw(tmp_path, "a.png")
    coco.write(tmp_path / "coco.json", marked(masks), NAMES)
    labelme.write(tmp_path, marked(masks), NAMES)
    with pytest.raises(UserError, match=r"several formats in .* \(labelme: .*a.json; coco: .*coco.json\); name"):
        load_labeled_images(tmp_path)
    check(load_labeled_images(tmp_path, annotation_format="labelme"), masks)
    coco.write(tmp_path / "again.json", marked(masks), NAMES)
    with pytest.raises(UserError, match="annotated twice, in .*again.json and .*coco.json"):
        load_labeled_images(tmp_path, annotation_format="coco")


def test_masks_are_taken_before_annotations_with_a_line(tmp_path, caplog):
    masks = draw(tmp_path, "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "masks" / "a.png")
    coco.write(tmp_path / "annotations.json", marked(masks), NAMES)
    assert (load_labeled_images(tmp_path, label_names=NAMES)[0].mask == 1).all()
    assert "annotations.json; name that by --annotations" in caplog.text
    check(load_labeled_images(tmp_path, annotations=tmp_path / "annotations.json"), masks)


def test_pictures_without_annotations_and_annotations_without_pictures_get_a_line(tmp_path, caplog):
    masks = draw(tmp_path, "a.png", "b.png", "c.png")
    masks["c.png"][:] = 0
    gone = {"z.png": masks["a.png"]}
    drawn = {name: masks[name] for name in ("a.png", "c.png")}
    coco.write(tmp_path / "coco.json", marked(drawn | gone), NAMES)
    check(load_labeled_images(tmp_path), drawn)
    assert "1 annotated pictures are not in" in caplog.text and "z.png among them" in caplog.text
    assert "1 pictures of" in caplog.text and "b.png among them" in caplog.text
    assert "1 of 2 pictures have no shapes: all of their pixels are of class 'background'" in caplog.text


def polygons(path: Path, **changes) -> Path:
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH} | changes
    square = {"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [[-9, -9, 4, -9, 4, 4, -9, 4]]}
    line = square | {"id": 2, "segmentation": []}
    categories = [{"id": 7, "name": "cell"}, {"id": 3, "name": "vessel"}]
    path.write_text(json.dumps({"images": [image], "annotations": [square, line], "categories": categories}))
    return path


def test_what_is_cut_off_or_left_out_gets_a_line(tmp_path, caplog):
    draw(tmp_path, "a.png")
    polygons(tmp_path / "coco.json")
    labeled = load_labeled_images(tmp_path)
    assert labeled.label_names == NAMES  # by the ids 3 and 7, behind the background
    assert (labeled[0].mask[:4, :4] == 2).all() and (labeled[0].mask == 2).sum() == 16
    assert "1 annotations without an area" in caplog.text and "1 shapes reach out of their pictures" in caplog.text


def test_sizes_that_differ_are_refused_with_both(tmp_path):
    draw(tmp_path, "a.png")
    polygons(tmp_path / "coco.json", height=WIDTH, width=HEIGHT)
    with pytest.raises(UserError, match="a.png is 30 × 24, but its annotation is 24 × 30"):
        load_labeled_images(tmp_path)[0]


def test_coordinates_are_of_the_picture_as_it_is_shown(tmp_path):
    """labelme, CVAT and Label Studio show pictures with their EXIF orientation applied."""
    stored = Image.fromarray(np.zeros((WIDTH, HEIGHT, 3), np.uint8))  # lies on its side
    exif = Image.Exif()
    exif[274] = 6
    stored.save(tmp_path / "a.jpg", exif=exif)
    polygons(tmp_path / "coco.json", file_name="a.jpg")
    one = load_labeled_images(tmp_path)[0]
    assert one.image.size == (WIDTH, HEIGHT) and (one.mask[:4, :4] == 2).all()


def test_names_of_classes_may_be_given(tmp_path):
    draw(tmp_path, "a.png")
    polygons(tmp_path / "coco.json")
    for names, inside, outside in ((["cell", "background"], 0, 1), (["sky", "cell"], 1, 255)):
        labeled = load_labeled_images(tmp_path, label_names=names)
        assert labeled.label_names == names and set(labeled[0].mask[:4, :4].ravel()) == {inside}
        assert labeled[0].mask[-1, -1] == outside
    with pytest.raises(UserError, match="has the label 'cell', which is no class; classes are sky, sea"):
        load_labeled_images(tmp_path, label_names=["sky", "sea"])
    assert load_labeled_images(tmp_path, classes=["cell", "background"])[0].mask[0, 0] == 0
    assert load_labeled_images(tmp_path, classes=["class 0", "class 1", "class 2"])[0].mask[0, 0] == 2
    with pytest.raises(UserError, match="has the classes background, vessel, cell, but the model has class 0"):
        load_labeled_images(tmp_path, classes=["class 0", "class 1"])
    (tmp_path / "id2label.json").write_text('{"0": "cell", "1": "background"}')
    assert load_labeled_images(tmp_path)[0].mask[0, 0] == 0


def test_a_file_of_one_split_that_is_named_is_taken_for_any(tmp_path, caplog):
    draw(tmp_path, "a.png")
    polygons(tmp_path / "instances_val.json")
    assert len(load_labeled_images(tmp_path, annotations=tmp_path / "instances_val.json")) == 1
    assert "are of the split 'validation', and are taken for 'train'" in caplog.text
    with pytest.raises(UserError, match="no split 'train'; it has 'validation'"):
        load_labeled_images(tmp_path)


def test_ambiguous_names_are_refused(tmp_path):
    draw(tmp_path, "one/a.png", "two/a.png")
    polygons(tmp_path / "coco.json")
    with pytest.raises(UserError, match="means a.png, which may be .*one/a.png or .*two/a.png"):
        load_labeled_images(tmp_path)
    polygons(tmp_path / "coco.json", file_name="two/a.png")
    assert load_labeled_images(tmp_path)[0].name.endswith("two/a.png")


def test_boxes_alone_are_refused(tmp_path):
    draw(tmp_path, "images/train/a.png")
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text(yaml.dump({"train": "images/train", "names": ["cell"]}))
    with pytest.raises(UserError, match="data.yaml has no areas, but 1 boxes; masks need areas"):
        load_labeled_images(tmp_path)


def test_the_option_has_the_formats_that_are_read():
    assert set(ANNOTATION_FORMATS) == {"auto", *READERS}


def test_annotated_folders_become_parquet_with_their_masks_and_names(tmp_path):
    masks = make_coco(tmp_path / "mine")
    assert as_parquet(tmp_path / "mine", tmp_path / "parquet") is not None
    for split, own in (("train", masks["train"]), ("validation", masks["val"])):
        labeled = load_labeled_images(tmp_path / "parquet", split=split, cache_dir=tmp_path / "cache")
        assert labeled.label_names == NAMES
        assert [one.mask.tolist() for one in labeled] == [mask.tolist() for mask in own.values()]


def test_folders_become_parquet_with_the_names_that_their_layout_states(tmp_path):
    masks = draw(tmp_path / "voc", "JPEGImages/a.png")
    (tmp_path / "voc" / "SegmentationClass").mkdir()
    Image.fromarray(masks["JPEGImages/a.png"]).save(tmp_path / "voc" / "SegmentationClass" / "a.png")
    (tmp_path / "voc" / "labelmap.txt").write_text("".join(f"{name}:0,{i},0::\n" for i, name in enumerate(NAMES)))
    assert as_parquet(tmp_path / "voc", tmp_path / "parquet") is not None
    labeled = load_labeled_images(tmp_path / "parquet", cache_dir=tmp_path / "cache")
    assert labeled.label_names == NAMES and np.array_equal(labeled[0].mask, masks["JPEGImages/a.png"])
    (tmp_path / "voc" / "JPEGImages" / "a.png").rename(tmp_path / "voc" / "JPEGImages" / "a.nii")
    with pytest.raises(UserError, match="a.nii is of a format that Parquet files do not hold"):
        as_parquet(tmp_path / "voc", tmp_path / "again")


def test_annotations_are_inspected_and_copied_as_masks(tmp_path):
    masks = make_coco(tmp_path / "data")
    shown = ("diffuseseg", "inspect", tmp_path / "data", "--json")
    found = json.loads(run(*shown, "--fix", tmp_path / "clean").stdout)
    assert found["layout"] == "coco annotations" and found["mask_format"] == "coco" and not found["refusals"]
    every = np.stack([mask for own in masks.values() for mask in own.values()])
    assert {c["name"]: c["pixels"] for c in found["classes"]} == {n: (every == i).sum() for i, n in enumerate(NAMES)}
    for split, own in (("train", masks["train"]), ("validation", masks["val"])):
        copied = load_labeled_images(tmp_path / "clean", split=split)
        assert [one.mask.tolist() for one in copied] == [mask.tolist() for mask in own.values()]
    labelme.write(tmp_path / "data" / "x.json", marked({"x.png": every[0]}), NAMES)
    assert "in several formats" in json.loads(run(*shown).stdout)["refusals"][0]


SQUARE = [[0, 0], [4, 0], [4, 4], [0, 4]]


def labelme_file(folder, name="a", **changes):
    """A picture of 10 × 8 with a square of the class cell, as labelme says it; with an `encoding`, or other content."""
    Image.new("RGB", (10, 8)).save(folder / f"{name}.png")
    content = {"imagePath": f"{name}.png", "imageHeight": 8, "imageWidth": 10}
    content["shapes"] = [{"label": "cell", "shape_type": "polygon", "points": SQUARE} | changes.pop("shape", {})]
    text = changes.pop("text", None) or json.dumps(content | changes)
    (folder / f"{name}.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def coco_text(**changes):
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": [8, 10], "counts": [0, 80]}}
    image = {"id": 1, "file_name": "a.png", "height": 8, "width": 10}
    image |= {k: changes.pop(k) for k in ("height", "width") if k in changes}
    content = {"images": [image], "categories": [{"id": 1, "name": "cell"}], "annotations": [annotation | changes]}
    return json.dumps(content)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text": "[" * 100_000}, "cannot be read"),
        ({"text": "{"}, "cannot be read .*; export the annotations again, or remove it"),
        ({"text": '"Köln"'.encode("latin-1")}, "cannot be read"),
        ({"imageHeight": float("inf")}, "infinity"),
        ({"imageHeight": 10**7, "imageWidth": 10**7}, "is 10 × 8, but its annotation is 10000000 × 10000000"),
        ({"shape": {"shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "AAAA"}}, "no PNG"),
        ({"text": coco_text(segmentation={"size": [8, 10], "counts": [0.5, 79.5]})}, "no numbers of pixels"),
        ({"text": coco_text(segmentation={"size": [8, 10], "counts": [-1, 81]})}, "no numbers of pixels"),
        ({"text": coco_text(height=0, width=0, segmentation={"size": [0, 0], "counts": []})}, "is 10 × 8"),
    ],
)
def test_broken_annotations_are_one_sentence(tmp_path, changes, message):
    labelme_file(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        load_labeled_images(tmp_path)[0]


def test_numbers_that_would_fill_the_memory_are_refused(tmp_path):
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    shapes = (
        '<box label="cell" xtl="0" ytl="0" xbr="nan" ybr="5"/>',
        '<box label="cell" xtl="0" ytl="0" xbr="1e12" ybr="5"/>',
        '<ellipse label="cell" cx="0" cy="0" rx="inf" ry="5"/>',
        '<mask label="cell" rle="1000000000000000" left="0" top="0" width="100000000" height="10000000"/>',
    )
    for shape in shapes:
        text = f'<annotations><image id="0" name="a.png" width="10" height="8">{shape}</image></annotations>'
        (tmp_path / "annotations.xml").write_text(text)
        with pytest.raises(UserError, match="is not as cvat files are"):
            load_labeled_images(tmp_path)


def test_a_mark_of_byte_order_is_read_over_and_a_broken_file_beside_others_is_named(tmp_path):
    labelme_file(tmp_path, "a")
    text = (tmp_path / "a.json").read_bytes()
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + text)
    labelme_file(tmp_path, "b", text="{")
    assert len(load_labeled_images(tmp_path)) == 1
    layout = find_layout(tmp_path)
    read_annotations(layout)
    assert any("b.json cannot be read" in note for note in layout.notes)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    labelme_file(tmp_path)
    os.mkfifo(tmp_path / "b.json")
    assert len(load_labeled_images(tmp_path)) == 1


@pytest.mark.parametrize(
    "line, message",
    [("0 0 0 40 0 40 40", "coordinate 40, and parts"), ("0.7 0 0 1 0 1 1", "the class 0.7")],
)
def test_yolo_in_pixels_and_fractions_of_classes_are_refused(tmp_path, line, message):
    yolo_folder(tmp_path, line)
    with pytest.raises(UserError, match=message):
        load_labeled_images(tmp_path)


def test_yolo_that_leads_to_other_pictures_is_not_taken_for_those_of_the_folder(tmp_path):
    yolo_folder(tmp_path / "other", "0 0 0 1 0 1 1")
    yolo_folder(tmp_path / "own", "1 0 0 1 0 1 1", train="../../other/images/train")
    with pytest.raises(UserError, match="None of the 1 pictures"):
        load_labeled_images(tmp_path / "own")


def yolo_folder(folder, line, train="images/train"):
    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (10, 8)).save(folder / "images/train/a.png")
    (folder / "labels/train/a.txt").write_text(line)
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": ["cat", "dog"], "train": train}))


def test_an_empty_ring_is_refused(tmp_path):
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    geometry = {"type": "Polygon", "coordinates": [SQUARE, []]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "cell"}}}
    (tmp_path / "a.geojson").write_text(json.dumps([feature]))
    with pytest.raises(UserError, match="without coordinates"):
        load_labeled_images(tmp_path)
