# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from datasets import load_dataset

from diffuseseg_diffusers import LabeledImages, load_labeled_images
from diffuseseg_diffusers.datasets.drawn_faces import (
    BACKGROUND,
    CLOTHES,
    EYES,
    GLASSES,
    HAIR,
    LABEL_NAMES,
    MOUTH,
    NOSE,
    SKIN,
    SPLITS,
    draw_face,
    drawn_faces,
    write_drawn_faces,
)


def test_faces_are_a_function_of_seed_and_number():
    image, classes = draw_face(3)
    again, same = draw_face(3)
    assert np.array_equal(image, again) and np.array_equal(classes, same)
    assert image.shape == (64, 64, 3) and image.dtype == classes.dtype == np.uint8 and classes.shape == (64, 64)
    for other in (draw_face(4), draw_face(3, seed=1)):
        assert (other[0] != image).mean() > 0.5 and (other[1] != classes).mean() > 0.05


def test_every_face_has_its_parts_and_they_vary():
    faces = [draw_face(i) for i in range(100)]
    areas = np.array([np.bincount(classes.ravel(), minlength=len(LABEL_NAMES)) for _, classes in faces]) / 64**2
    assert (areas[:, [BACKGROUND, SKIN, NOSE, MOUTH]] > 0).all() and (areas[:, SKIN] > 0.05).all()
    assert 0.2 < (areas[:, GLASSES] > 0).mean() < 0.5
    assert (areas[:, EYES] > 0).mean() > 0.85 and (areas[:, HAIR] > 0.02).mean() > 0.85
    assert (areas[:, CLOTHES] > 0).mean() > 0.9
    brightness = np.array([image.mean() for image, _ in faces])
    assert brightness.std() > 15
    skins = np.array([image[classes == SKIN].mean(0) for image, classes in faces])
    assert skins.std(0).min() > 15


def test_masks_are_those_of_the_image():
    """The colour of a class differs from what surrounds it where the mask says that it ends."""
    ratios = []
    for i in range(30):
        image, classes = draw_face(i)
        step = np.abs(np.diff(image.astype(float), axis=1)).mean(2)
        border = classes[:, 1:] != classes[:, :-1]
        ratios.append(step[border].mean() / step[~border].mean())
    assert np.median(ratios) > 3


def test_parts_are_apart_and_checked():
    train, test = drawn_faces("train", 5), drawn_faces("test", 3)
    assert train.column_names == ["image", "mask"] and drawn_faces("unlabeled", 2).column_names == ["image"]
    assert np.array_equal(np.asarray(train[0]["image"]), draw_face(SPLITS["unlabeled"])[0])
    assert np.array_equal(np.asarray(test[2]["mask"]), draw_face(SPLITS["unlabeled"] + SPLITS["train"] + 2)[1])
    labeled = LabeledImages(train, label_names=LABEL_NAMES)
    assert len(labeled) == 5 and labeled[0].mask.max() < len(LABEL_NAMES) == 8
    with pytest.raises(ValueError, match="parts unlabeled, train, test, not 'valid'"):
        drawn_faces("valid")
    with pytest.raises(ValueError, match="has 1 to 20 faces, asked for 21"):
        drawn_faces("train", 21)


def test_the_folder_is_a_dataset(tmp_path):
    write_drawn_faces(tmp_path, count=4)
    unlabeled = load_dataset(str(tmp_path), "unlabeled", split="train")
    assert len(unlabeled) == 4 and np.array_equal(np.asarray(unlabeled[1]["image"]), draw_face(1)[0])
    labeled = load_labeled_images(tmp_path, "labeled", "test")
    assert len(labeled) == 100 and labeled.label_names == list(LABEL_NAMES)
    assert json.loads((tmp_path / "id2label.json").read_text())["6"] == "glasses"
