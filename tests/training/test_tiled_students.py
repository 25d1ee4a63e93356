# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students of tiles: from labels as people have them, and from a teacher that reads tiles."""

import json

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers import load_pipeline
from diffuseseg_diffusers.images.formats.base import ArrayRaster
from diffuseseg_diffusers.tiling.tiles import Tiling, choose_tiling, segment_tiled

from ..conftest import draw, make_pipeline, run


@pytest.fixture
def pictures(tmp_path):
    """Two large pictures with black and white masks of what is bright."""
    for kind in ("images", "masks"):
        (tmp_path / "labeled" / kind).mkdir(parents=True)
    for i in range(2):
        tiles = [[draw((32, 32), 10 * i + 2 * y + x) for x in range(2)] for y in range(2)]
        image, mask = (np.block([[tile[part] for tile in row] for row in tiles]) for part in (0, 1))
        Image.fromarray(image).save(tmp_path / "labeled" / "images" / f"{i}.png")
        Image.fromarray((mask == 1).astype(np.uint8) * 255).save(tmp_path / "labeled" / "masks" / f"{i}.png")
    return tmp_path / "labeled"


def train_on(output, *more, expect: int = 0):
    given = ("--output_dir", output, "--num_epochs", "2", "--dataloader_num_workers", "0", *more)
    return run("diffuseseg", "train-student", *given, expect=expect)


def test_a_student_of_tiles_segments_by_tiles(pictures, tmp_path):
    data = ("--train_dataset_name", pictures, "--mask_format", "binary", "--validation_fraction", "0.5")
    said = train_on(
        *(tmp_path / "student", *data, "--tile", "--resolution", "16", "--scale", "0.5", "--model", "unet"),
        *("--images_per_epoch", "160", "--train_batch_size", "8"),
    )
    assert "4 tiles of 1 pictures hold labels" in said.stdout
    student = load_pipeline(str(tmp_path / "student"), device="cpu", dtype="float32")
    assert student.fitted_tiles == {"tiles": True, "scale": 0.5, "pixel_size": None} and student.image_size == (16, 16)
    image = np.asarray(Image.open(pictures / "images" / "0.png"))
    tiling = choose_tiling(student, ArrayRaster(image[None]))
    assert tiling == Tiling((16, 16), 0.5)
    truth = np.asarray(Image.open(pictures / "masks" / "0.png")) > 0
    found = segment_tiled(student, ArrayRaster(image[None]), tiling).labels == 1
    assert (found & truth).sum() / (found | truth).sum() > 0.6


def test_a_student_sees_tiles_as_its_teacher_did(pictures, tmp_path):
    teacher = make_pipeline(head=True)
    config = {"tiles": True, "scale": 0.5, "pixel_size": None}
    teacher.segmentation_head.register_to_config(tiling=config)
    teacher.save_pretrained(tmp_path / "teacher")
    own = teacher.image_size
    given = ("--teacher", tmp_path / "teacher", "--unlabeled_dataset_name", pictures / "images", "--model", "unet")
    told = train_on(tmp_path / "student", *given, "--images_per_epoch", "16", "--max_unlabeled", "5")
    per_picture = round(64 * 64 / (own[0] * own[1] * 4))
    assert f"Soft targets are computed for 5 of {2 * per_picture} tiles of 2 pictures." in told.stdout
    record = json.loads((tmp_path / "student" / "student.json").read_text())
    assert record["tiling"] == config and load_pipeline(str(tmp_path / "student")).image_size == own
    refused = train_on(tmp_path / "other", *given, "--whole", expect=1)
    assert "reads tiles, and a student reads images as its teacher; leave --whole out" in refused.stderr
    refused = train_on(tmp_path / "other", *given, "--resolution", "64", expect=1)
    assert "leave --resolution out" in refused.stderr and not (tmp_path / "other").exists()
