# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands are tried on."""

import pytest
import torch
from PIL import Image

from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.student import StudentSegmenter

from ..conftest import draw, make_pipeline, run
from ..students.test_networks import write_config


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A folder with a U-Net, labelled drawings in two splits, and a model fitted on them by the command."""
    folder = tmp_path_factory.mktemp("drawn")
    make_pipeline().save_pretrained(folder / "ddpm")
    for split, seeds in (("train", range(6)), ("test", range(20, 24))):
        for kind in ("images", "masks"):
            (folder / "data" / split / kind).mkdir(parents=True)
        for seed in seeds:
            image, mask = draw((24, 30), seed)
            Image.fromarray(image).save(folder / "data" / split / "images" / f"{seed}.png")
            Image.fromarray(mask).save(folder / "data" / split / "masks" / f"{seed}.png")
    (folder / "data" / "id2label.json").write_text('["sky", "disc", "bar"]')
    run(
        *("diffuseseg", "fit", "--model", folder / "ddpm", "--dataset_name", folder / "data"),
        *("--recipe", "fast", "--num_members", "3", "--output_dir", folder / "model"),
    )
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """A student with random weights, of the same classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("students")
    model = make_student(write_config(folder), ["sky", "disc", "bar"])
    StudentSegmenter(model, make_processor("nvidia/mit-b0", (32, 32))).save_pretrained(folder / "student")
    return folder / "student"


@pytest.fixture(scope="session")
def exported(student):
    """That student as an ONNX file, and what the command said."""
    pytest.importorskip("onnxscript")
    file = student.parent / "new" / "student.onnx"
    return file, run("diffuseseg", "export-onnx", student, file).stdout
