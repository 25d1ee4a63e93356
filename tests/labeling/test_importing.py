# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from diffuseseg_diffusers import UserError, load_labeled_images
from diffuseseg_diffusers.datasets.annotations import coco, labelme
from diffuseseg_diffusers.datasets.annotations.base import Marked
from diffuseseg_diffusers.datasets.annotations.shapes import from_mask
from diffuseseg_diffusers.labeling.journal import JOURNAL, UNLABELED
from diffuseseg_diffusers.labeling.server import create_app
from diffuseseg_diffusers.labeling.session import LabelSession

from .conftest import NAMES


FORMATS = {"coco": (coco, "coco.json"), "labelme": (labelme, "annotations")}


def write(tmp_path, masks, names=("0.png", "4.png"), kind="coco"):
    """Annotations that name every pixel of some pictures."""
    module, file = FORMATS[kind]
    marked = [Marked(name, *masks[name].shape, from_mask(masks[name], NAMES)) for name in names]
    module.write(tmp_path / file, marked, NAMES)
    return tmp_path / file


def polygon(tmp_path, kind, label="cell", size=(24, 30), file_name="0.png"):
    """A square of 5 to 12 in a picture of 24 x 30, as the two programs write it."""
    height, width = size
    points = [[5, 5], [12, 5], [12, 12], [5, 12]]
    if kind == "labelme":
        shape = {"label": label, "points": points, "shape_type": "polygon", "group_id": None, "flags": {}}
        content = {"version": "5.5.0", "flags": {}, "shapes": [shape], "imagePath": file_name, "imageData": None}
        content |= {"imageHeight": height, "imageWidth": width}
    else:
        flat = [number for point in points for number in point]
        content = {
            "images": [
                {"id": 1, "file_name": file_name, "height": height, "width": width},
                {"id": 2, "file_name": "1.png", "height": 24, "width": 30},
                {"id": 3, "file_name": "elsewhere.png", "height": 24, "width": 30},
            ],
            "categories": [{"id": 7, "name": label}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "iscrowd": 0, "segmentation": [flat]}],
        }
    (tmp_path / f"{kind}.json").write_text(json.dumps(content))
    return tmp_path / f"{kind}.json"


def by_name(session, name):
    """The labels of a picture as names of classes, "" without one."""
    table = {c.id: c.name for c in session.classes} | {UNLABELED: ""}
    return np.vectorize(table.get)(session.labels(name))


def test_classes_that_were_moved_keep_their_ids(open_session, pictures, tmp_path):
    session = open_session()
    session.journal.order_classes([2, 1, 0])
    again = open_session(class_names=NAMES[::-1], annotations=write(tmp_path, pictures[1]))
    for name in again.labelled_names():
        assert (by_name(again, name) == np.array(NAMES)[pictures[1][name]]).all()
    assert again.labelled_names()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_session_begins_with_what_was_drawn_elsewhere(open_session, pictures, tmp_path, kind):
    masks = pictures[1]
    session = open_session(class_names=(), annotations=write(tmp_path, masks, kind=kind))
    assert {c.name for c in session.classes} == {"background", *NAMES}
    assert session.labelled_names() == ["0.png", "4.png"] and len(session.journal.active()) == 2
    for name in session.labelled_names():
        assert (by_name(session, name) == np.array(NAMES)[masks[name]]).all()
    said = " ".join(session.notes)
    assert f"Annotations of 2 pictures are imported from {tmp_path}" in said and f"({kind})" in said
    assert "4 pictures of" in said and "count as unlabelled, " in said
    session.extract()
    assert (by_name(session, "1.png") == "").all() and session.predict("1.png") is not None


@pytest.mark.parametrize(("kind", "side"), [("coco", 7), ("labelme", 8)])  # labelme's polygons have their border
@pytest.mark.parametrize("classes", [(), ("sky", "cell"), ("cell", "background")])
def test_pixels_in_no_shape_are_background_where_there_is_one(open_session, tmp_path, kind, side, classes):
    session = open_session(class_names=classes, annotations=polygon(tmp_path, kind))
    found = by_name(session, "0.png")
    assert (found[5 : 5 + side, 5 : 5 + side] == "cell").all() and (found == "cell").sum() == side**2
    assert found[0, 0] == ("" if "sky" in classes else "background")
    assert [c.name for c in session.classes] == list(classes or ("background", "cell"))
    if kind == "coco":
        said = " ".join(session.notes)
        assert "1 annotated pictures are not in" in said and "elsewhere.png" in said
        assert "have no shapes and count as unlabelled, 1.png" in said and (session.labels("1.png") == UNLABELED).all()


def test_annotations_are_imported_once(open_session, pictures, tmp_path):
    place = write(tmp_path, pictures[1])
    session = open_session(annotations=place)
    (first, second) = session.journal.active()
    session.undo(first.number)
    session.change_class(1, "moon")  # no reason to refuse what is imported already
    again = open_session(annotations=place)
    assert again.revision == session.revision and again.labelled_names() == [second.picture]
    assert any("2 pictures were imported before" in note for note in again.notes)
    again.redo(first.number)
    assert (again.labels("0.png") == pictures[1]["0.png"]).all()
    again.change_class(1, "disc")
    write(tmp_path, pictures[1], ("0.png", "3.png", "4.png"))
    assert open_session(annotations=place).labelled_names() == ["0.png", "3.png", "4.png"]


def test_what_was_labelled_before_stays(open_session, pictures, tmp_path):
    open_session().draw("0.png", [[12, 0, 30, 2]])
    session = open_session(annotations=write(tmp_path, pictures[1]))
    truth = pictures[1]["0.png"].copy()
    truth[12] = 2
    assert (session.labels("0.png") == truth).all()
    assert any("1 annotated pictures were labelled in part" in note for note in session.notes)


def test_an_import_that_was_killed_goes_on(open_session, pictures, tmp_path):
    place, journal = write(tmp_path, pictures[1]), tmp_path / "session" / JOURNAL
    open_session(class_names=(), annotations=place)
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 6  # four classes, two pictures
    for kept in range(len(lines)):
        journal.write_bytes(b"".join(lines[:kept]) + lines[kept][:9])
        open_session(class_names=(), annotations=place)
        assert journal.read_bytes() == whole


def test_what_does_not_fit_is_refused_and_nothing_is_written(open_session, pictures, tmp_path):
    cases = [
        (polygon(tmp_path, "coco"), "has the classes cell, but the session has sky, disc, bar"),
        (polygon(tmp_path, "labelme", "disc", (30, 24)), "0.png is 30 × 24, but its annotation is 24 × 30"),
        (tmp_path / "none.json", "There is no file or folder"),
    ]
    for place, said in cases:
        with pytest.raises(UserError, match=said):
            open_session(annotations=place)
        assert not (tmp_path / "session" / JOURNAL).exists()
    session = open_session(class_names=["cell"], annotations=cases[0][0])
    assert [c.name for c in session.classes] == ["cell"] and session.labelled_names() == ["0.png"]


def test_annotations_in_the_folder_are_offered(open_session, pictures):
    labelme.write(pictures[0], [Marked("0.png", 24, 30, from_mask(pictures[1]["0.png"], NAMES))], NAMES)
    session = open_session()
    assert not session.journal.active()
    assert any("There are labelme annotations in" in note and "0.json" in note for note in session.notes)
    session = open_session(annotations=pictures[0])
    assert (session.labels("0.png") == pictures[1]["0.png"]).all()
    assert not any("There are labelme" in note for note in open_session().notes)


def test_the_page_says_shows_undoes_and_exports_them(open_session, pictures, tmp_path):
    session = open_session(annotations=write(tmp_path, pictures[1]))
    client = TestClient(create_app(session, None, None, None))
    state = client.get("/api/state").json()
    assert any("Annotations of 2 pictures are imported from" in note for note in state["notes"])
    assert {p["name"]: p["strokes"] for p in state["pictures"] if p["strokes"]} == {"0.png": 1, "4.png": 1}
    labels = client.get("/api/labels", params={"picture": "0.png"})
    assert labels.content == pictures[1]["0.png"].tobytes()
    session.export(tmp_path / "export")
    found = load_labeled_images(tmp_path / "export" / "dataset")
    assert [one.mask.tolist() for one in found] == [pictures[1][name].tolist() for name in ("0.png", "4.png")]
    assert client.post(f"/api/strokes/{labels.headers['X-Strokes']}/undo").status_code == 200
    labels = client.get("/api/labels", params={"picture": "0.png"})
    assert set(labels.content) == {UNLABELED} and labels.headers["X-Strokes"] == ""


def test_coordinates_are_of_the_picture_as_it_is_shown(open_session, pictures, tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (24, 30)).save(pictures[0] / "turned.jpg", exif=exif)
    place = polygon(tmp_path, "labelme", "disc", file_name="turned.jpg")
    assert (open_session(annotations=place).labels("turned.jpg")[5:13, 5:13] == 1).all()


def test_annotations_of_whole_stacks_are_said_not_to_be_imported(stack, pipe, tmp_path):
    place = polygon(tmp_path, "coco", label="sky", file_name="stack.tif")
    session = LabelSession(pipe, stack[0], tmp_path / "session", NAMES, annotations=place)
    assert session.labelled_names() == []
    said = "1 annotated stacks are not imported, stack.tif among them: their planes are pictures."
    assert said in session.notes and not any("in this session" in note for note in session.notes)
