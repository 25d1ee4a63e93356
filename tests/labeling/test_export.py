# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers import UserError, load_labeled_images
from diffuseseg_diffusers.labeling.export import export_session
from diffuseseg_diffusers.labeling.folder import keep_port, kept_token
from diffuseseg_diffusers.labeling.journal import Journal

from .conftest import NAMES, label


def test_what_is_exported_is_a_dataset_with_the_same_labels(session, pictures, tmp_path):
    label(session, pictures[1], ["0.png", "4.png"])
    session.merge_classes(0, 2)
    session.change_class(1, color=[200, 0, 0])
    out = tmp_path / "out"
    out.mkdir()
    export_session(session, out)
    dataset = load_labeled_images(out / "dataset")
    assert dataset.label_names == ["disc", "bar"] and len(dataset) == 2
    assert Image.open(out / "dataset" / "masks" / "0.png").getpalette()[:3] == [200, 0, 0]
    for example, name in zip(dataset, ("0.png", "4.png")):
        assert (example.mask == session.compact_ids(session.labels(name))).all()
        assert np.array_equal(np.asarray(example.image), np.asarray(Image.open(pictures[0] / name)))
    of = json.loads((out / "predictions" / "of.json").read_text())
    assert sorted(of.values()) == sorted(session.pictures)
    for file, name in of.items():
        mask = Image.open(out / "predictions" / file)
        assert mask.mode == "P" and (np.asarray(mask) == session.compact_ids(session.predict(name).mask)).all()
    assert Journal(out / "strokes.jsonl").revision == session.revision
    assert not (out / "pipeline").exists() and "sparse_labels" in (out / "README.md").read_text()


def test_pictures_of_one_name_in_two_folders_stay_apart(pipe, pictures, tmp_path, open_session):
    folder, masks = pictures
    (folder / "deep").mkdir()
    Image.open(folder / "0.png").save(folder / "deep" / "0.jpg")
    session = open_session()
    session.extract()
    masks["deep/0.jpg"] = masks["0.png"]
    label(session, masks, ["0.png", "deep/0.jpg"])
    (tmp_path / "out").mkdir()
    export_session(session, tmp_path / "out")
    assert len(load_labeled_images(tmp_path / "out" / "dataset")) == 2
    assert len(json.loads((tmp_path / "out" / "predictions" / "of.json").read_text())) == 7


def test_predictions_come_back_equal_from_the_annotations_of_other_programs(session, pictures, tmp_path):
    folder = pictures[0]
    label(session, pictures[1], ["0.png", "4.png"])
    (tmp_path / "out").mkdir()
    export_session(session, tmp_path / "out")
    files = sorted((tmp_path / "out" / "annotations").iterdir())
    assert [file.name for file in files] == ["coco.json", "cvat.xml", "label_studio.json", "labelme", "qupath"]
    for file in files:
        labeled = load_labeled_images(folder, annotations=file, label_names=[c.name for c in session.classes])
        assert [Path(one.name).name for one in labeled] == sorted(session.pictures)
        for one in labeled:
            expected = session.compact_ids(session.predict(Path(one.name).name).mask)
            assert np.array_equal(one.mask, expected), file


def test_the_pipeline_goes_with_it(session, pictures, pipe, tmp_path):
    label(session, pictures[1], ["0.png"])
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "out").mkdir()
    export_session(session, tmp_path / "out", tmp_path / "pipeline")
    assert (tmp_path / "out" / "pipeline" / "model_index.json").is_file()


def test_a_session_exports_into_a_new_folder_and_says_which_picture_is_which(session, pictures, tmp_path):
    label(session, pictures[1], ["0.png", "4.png"])
    session.export(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset_of.json").read_text()) == {"0.png": "0.png", "4.png": "4.png"}
    with pytest.raises(UserError, match="exists and is kept"):
        session.export(tmp_path / "out")


def test_nothing_labelled_is_nothing_to_export(session, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="Nothing is labelled yet"):
        export_session(session, tmp_path / "out")
    assert session.classes[0].name == NAMES[0] and list((tmp_path / "out").iterdir()) == []


def test_pictures_that_are_gone_or_changed_are_left_out_and_said(session, pictures, tmp_path):
    label(session, pictures[1], ["0.png", "1.png", "2.png"])
    (pictures[0] / "0.png").unlink()
    Image.new("L", (5, 5)).save(pictures[0] / "1.png")
    (tmp_path / "out").mkdir()
    export_session(session, tmp_path / "out")
    assert len(load_labeled_images(tmp_path / "out" / "dataset")) == 1
    said = (tmp_path / "out" / "README.md").read_text()
    assert "0.png is gone" in said and "1.png was 30 x 24 pixels and is now 5 x 5" in said
    assert len([note for note in session.notes if "left out of the download" in note]) == 2
    (pictures[0] / "2.png").unlink()
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="None of the labelled pictures can be read: 0.png is gone"):
        export_session(session, tmp_path / "none")


def test_approved_pictures_are_exported_alone(session, pictures, tmp_path):
    label(session, pictures[1], ["0.png", "4.png"])
    session.export(tmp_path / "all")
    assert "All 6 pictures of the session, approved or not." in (tmp_path / "all" / "README.md").read_text()
    with pytest.raises(UserError, match="No picture is approved yet"):
        session.export(tmp_path / "none", approved=True)
    session.set_state("2.png", "approved")
    session.set_state("0.png", "skipped")
    with pytest.raises(UserError, match="Nothing is labelled in the 1 approved pictures"):
        session.export(tmp_path / "unlabelled", approved=True)
    session.set_state("4.png", "approved")
    out = tmp_path / "out"
    session.export(out, approved=True)
    assert [Path(own.name).name for own in load_labeled_images(out / "dataset")] == ["4.png"]
    assert json.loads((out / "dataset_of.json").read_text()) == {"4.png": "4.png"}
    assert json.loads((out / "predictions" / "of.json").read_text()) == {"2.png": "2.png", "4.png": "4.png"}
    assert sorted(p.name for p in (out / "predictions").iterdir()) == ["2.png", "4.png", "of.json"]
    coco = json.loads((out / "annotations" / "coco.json").read_text())
    assert sorted(own["file_name"] for own in coco["images"]) == ["2.png", "4.png"]
    said = (out / "README.md").read_text()
    assert "Of 6 pictures the 2 that were approved:\n\n* `2.png`\n* `4.png`\n" in said and "0.png" not in said
    assert Journal(out / "strokes.jsonl").states == {"0.png": "skipped", "2.png": "approved", "4.png": "approved"}


def test_the_token_of_the_page_is_never_exported(session, pictures, pipe, tmp_path):
    label(session, pictures[1], ["0.png", "4.png"])
    token = kept_token(session.folder)
    keep_port(session.folder, 43210)
    pipe.save_pretrained(session.folder / "pipeline")
    session.export(tmp_path / "out", session.folder / "pipeline")
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(files) > 10 and not {p.name for p in files} & {"token", "port"}
    assert [p for p in files if token.encode() in p.read_bytes()] == []
    assert token.encode() in (session.folder / "token").read_bytes()
