# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""No command removes what it is to read, and none removes anything before its options are known to be valid."""

import subprocess
import sys

import pytest
from PIL import Image

from diffuseseg_diffusers.jobs.files import write_record

from ..conftest import draw, make_head, make_pipeline, run


GENERATE = ("--num_samples", "2", "--batch_size", "2", "--num_inference_steps", "2", "--scheduler", "ddim")


def content(folder) -> dict:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def model(tmp_path):
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, label_names=["sky", "disc", "bar"])
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def dataset(model, tmp_path):
    run("diffuseseg", "generate", "--model", model, *GENERATE, "--output_dir", tmp_path / "data")
    return tmp_path / "data"


def test_generating_over_a_model_that_generates_is_refused(model, tmp_path):
    write_record(model, "fit", owns=[p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_file()])
    before = content(model)
    said = run("diffuseseg", "generate", "--model", model, *GENERATE, "--output_dir", model, "--overwrite", expect=1)
    assert "which this run is to read; choose another --output_dir" in said.stderr
    assert content(model) == before


def test_segmenting_and_training_over_ones_own_images_is_refused(model, dataset, tmp_path):
    Image.fromarray(draw((16, 16), 0)[0]).save(tmp_path / "one.png")
    pictures = tmp_path / "pictures"
    run("diffuseseg", "segment", tmp_path / "one.png", "--model", model, "--output_dir", pictures)
    for command in (
        ("segment", pictures, "--model", model, "--output_dir", pictures),
        ("train-student", "--train_dataset_name", dataset, "--validation_fraction", "0.5", "--output_dir", dataset),
    ):
        before = content(tmp_path)
        said = run("diffuseseg", *command, "--overwrite", expect=1)
        assert "which this run is to read" in said.stderr
        assert content(tmp_path) == before


@pytest.mark.parametrize(
    "option", [("--seed", "-1"), ("--num_inference_steps", "5000"), ("--shard_mb", "nan"), ("--shard_mb", "inf")]
)
def test_wrong_numbers_cost_nothing(option, model, dataset, tmp_path):
    before = content(dataset)
    again = ("--model", model, *GENERATE, *option, "--output_dir", dataset, "--overwrite")
    assert run("diffuseseg", "generate", *again, expect=1).stderr.startswith(f"error: {option[0]} must be")
    assert content(dataset) == before


def test_a_second_process_in_a_folder_is_refused(model, dataset, tmp_path):
    code = "import sys, time; from pathlib import Path; from diffuseseg_diffusers.jobs.locks import lock_folder; "
    code += "lock_folder(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(dataset)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        again = ("--model", model, *GENERATE, "--output_dir", dataset)
        assert "Another process is at work in" in run("diffuseseg", "generate", *again, expect=1).stderr
    finally:
        other.kill()
        other.wait()
    run("diffuseseg", "generate", *again)
