# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json
import shutil

import pytest
from PIL import Image

from diffuseseg_diffusers.jobs.files import write_record

from ..conftest import run


@pytest.mark.slow
def test_a_head_a_student_and_its_onnx_file_side_by_side(drawn, student, exported, tmp_path):
    file, _ = exported
    out = ("--dataset_name", drawn / "data", "--output_dir", tmp_path / "out")
    said = run("diffuseseg", "compare", drawn / "model", student, file, "--dtype", "float32", *out, fresh=True).stdout
    report = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [m["model"] for m in report["models"]] == [str(drawn / "model"), str(student), str(file)]
    head, torch_student, onnx_student = report["models"]
    assert head["mean_iou"] > 0.7 and head["mean_iou"] > torch_student["mean_iou"]
    assert onnx_student["mean_iou"] == pytest.approx(torch_student["mean_iou"], abs=1e-3)
    assert onnx_student["megabytes"] == pytest.approx(file.stat().st_size / 1e6)
    assert report["num_images"] == 4 and report["dataset"]["split"] == "test"
    assert said.splitlines()[0].split()[:3] == ["model", "mean", "IoU"] and f"{head['mean_iou']:.4f}" in said
    assert Image.open(tmp_path / "out" / "comparison.png").width > 400


def test_an_onnx_file_says_that_it_computes_otherwise_than_asked(drawn, exported, tmp_path, caplog):
    file, _ = exported
    where = ("--dataset_name", drawn / "data", "--output_dir", tmp_path / "out")
    run("diffuseseg", "evaluate", "--model", file, *where)
    assert "ONNX Runtime" not in caplog.text
    run("diffuseseg", "evaluate", "--model", file, *where, "--overwrite", "--dtype", "bfloat16")
    assert f"{file}: float32 on cpu (ONNX Runtime, not bfloat16)" in caplog.messages


def test_what_cannot_be_compared_is_a_sentence(drawn, student, tmp_path):
    out = ("--dataset_name", drawn / "data", "--output_dir", tmp_path / "out")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for models, message in (
        ((student, student), "is given twice"),
        ((drawn / "ddpm",), "no segmentation head"),
        ((student, tmp_path / "broken.onnx"), "is no student that `diffuseseg export-onnx` wrote"),
        ((tmp_path / "none.onnx",), "There is no file"),
    ):
        result = run("diffuseseg", "compare", *models, *out, expect=1)
        assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_model_is_never_overwritten_by_what_is_said_of_it(drawn, student, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(student, own)
    write_record(own, "train-student", [p.relative_to(own).as_posix() for p in own.rglob("*") if p.is_file()])
    before = {p.name: p.read_bytes() for p in own.iterdir()}
    both = f"{drawn / 'model'} + {own}"
    for command in (("compare", own), ("evaluate", "--model", own), ("evaluate", "--model", both)):
        said = run(
            "diffuseseg", *command, "--dataset_name", drawn / "data", "--output_dir", own, "--overwrite", expect=1
        )
        assert "which this run is to read" in said.stderr
    assert {p.name: p.read_bytes() for p in own.iterdir()} == before


def test_a_dataset_of_other_classes_and_one_model_by_two_names_are_refused(drawn, student, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(drawn / "data", data)
    out = ("--output_dir", tmp_path / "out")
    for names in (["disc", "sky", "bar"], ["sky", "disc"]):
        (data / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
        for command in (("compare", student), ("evaluate", "--model", student)):
            said = run("diffuseseg", *command, "--dataset_name", data, *out, expect=1).stderr
            assert f"has the classes {', '.join(names)}, but the model has sky, disc, bar" in said
    (tmp_path / "link").symlink_to(student)
    said = run("diffuseseg", "compare", student, tmp_path / "link", "--dataset_name", drawn / "data", *out, expect=1)
    assert "is given twice" in said.stderr


def test_a_report_below_a_model_is_replaced(drawn, student, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(student, own)
    words = ("diffuseseg", "evaluate", "--model", own, "--dataset_name", drawn / "data", "--output_dir", own / "report")
    run(*words)
    run(*words, "--overwrite")
    kept = {p.name: p.read_bytes() for p in own.iterdir() if p.is_file()}
    assert kept == {p.name: p.read_bytes() for p in student.iterdir()} and (own / "report" / "metrics.json").is_file()
