# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from diffuseseg_diffusers import UserError, load_labeled_images
from diffuseseg_diffusers.labeling.export import export_session
from diffuseseg_diffusers.labeling.folder import keep_port, kept_token
from diffuseseg_diffusers.labeling.journal import Journal
from diffuseseg_diffusers.labeling.session import LabelSession

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


def test_planes_are_exported_as_pictures_of_their_own(stack, pictures, pipe, tmp_path):
    folder, masks, values = stack
    Image.open(pictures[0] / "0.png").save(folder / "stack-z2.png")  # has the name of a plane's copy
    session = LabelSession(pipe, folder, tmp_path / "session", NAMES)
    session.extract()
    masks["stack-z2.png"] = pictures[1]["0.png"]
    names = ["stack-z2.png", "stack.tif, z 2", "stack.tif, z 10"]
    label(session, masks, names)
    session.export(tmp_path / "out")
    out = tmp_path / "out"
    of = json.loads((out / "dataset_of.json").read_text())
    assert of == {"stack-z2.png": names[0], "stack-z2-2.tif": names[1], "stack-z10.tif": names[2]}
    assert sorted(p.name for p in (out / "dataset" / "images").iterdir()) == sorted(of)
    dataset = {Path(one.name).name: one for one in load_labeled_images(out / "dataset")}
    for file, name in of.items():
        assert (dataset[file].mask == session.compact_ids(session.labels(name))).all()
    for file, z in (("stack-z2-2.tif", 1), ("stack-z10.tif", 9)):
        stored = tifffile.imread(out / "dataset" / "images" / file)
        assert stored.dtype == np.uint16 and np.array_equal(stored, values[z])
    made = json.loads((out / "predictions" / "of.json").read_text())
    assert len(made) == 13 and made["stack-z10.png"] == "stack.tif, z 10"
    coco = json.loads((out / "annotations" / "coco.json").read_text())
    called = {own["file_name"] for own in coco["images"]}
    assert len(called) == 13 and {"stack-z2.png", "stack-z2-2.tif", "stack-z10.tif", "stack-z12.tif"} < called
    assert "`dataset/images/stack-z3.tif`" in (out / "README.md").read_text()
    for file in sorted((out / "annotations").iterdir()):
        read = load_labeled_images(out / "dataset" / "images", annotations=file, label_names=NAMES)
        for one in read:
            expected = session.predict(of[Path(one.name).name]).mask
            assert np.array_equal(one.mask, session.compact_ids(expected)), file
        assert len(read) == 3, file


def test_a_stack_with_other_planes_is_left_out_of_the_export_and_said(stack, pipe, tmp_path):
    folder, masks, values = stack
    Image.fromarray((values[0] // 256).astype(np.uint8)).save(folder / "a.png")
    session = LabelSession(pipe, folder, tmp_path / "session", NAMES)
    session.extract()
    label(session, {**masks, "a.png": masks["stack.tif, z 1"]}, ["a.png", "stack.tif, z 2"])
    tifffile.imwrite(folder / "stack.tif", values[:5], imagej=True, metadata={"axes": "ZYX"})
    session.export(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "dataset" / "images").iterdir()] == ["a.png"]
    assert "stack.tif had 12 planes and has 5 now" in (tmp_path / "out" / "README.md").read_text()


def test_planes_of_a_stack_whose_axes_were_given_need_none_in_the_export(pipe, tmp_path):
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 255, (3, 16, 16)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "in" / "stack.tif", values, photometric="minisblack")
    session = LabelSession(pipe, tmp_path / "in", tmp_path / "session", NAMES, axes="ZYX")
    session.extract()
    session.draw("stack.tif, z 3", [[2, 2, 8, 0], [9, 2, 8, 1]])
    session.export(tmp_path / "out")
    assert "--axes" not in (tmp_path / "out" / "README.md").read_text()
    (one,) = load_labeled_images(tmp_path / "out" / "dataset")
    assert np.array_equal(np.asarray(one.image), values[2])
