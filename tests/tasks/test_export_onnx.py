# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest

from ..conftest import run


def test_a_student_becomes_an_onnx_file_and_none_is_replaced_unasked(drawn, student, exported, tmp_path):
    file, said = exported
    assert f"Written to {file}: pixels [N, 3, 32, 32] in [0, 1] to masks." in said
    whole = file.read_bytes()
    for wrong in (
        (student, file),
        (student, tmp_path, "--overwrite"),
        (tmp_path / "nowhere", file, "--overwrite"),
        (drawn / "model", file, "--overwrite"),
    ):
        result = run("diffuseseg", "export-onnx", *wrong, expect=1)
        assert "Traceback" not in result.stderr and file.read_bytes() == whole
    assert "is not a student; `diffuseseg train-student` makes one of it." in result.stderr


def test_a_name_that_no_command_would_know_is_refused(student, tmp_path):
    assert "does not end in .onnx" in run("diffuseseg", "export-onnx", student, tmp_path / "file", expect=1).stderr
    (tmp_path / "file").write_text("mine")
    result = run("diffuseseg", "export-onnx", student, tmp_path / "file" / "x.onnx", expect=1)
    assert "is a file, and a folder is needed" in result.stderr and (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_int8_is_calibrated_on_pictures_and_says_how_far_masks_agree(drawn, student, exported, tmp_path):
    file = tmp_path / "int8.onnx"
    given = ("--int8", "--unlabeled_dataset_name", drawn / "data", "--unlabeled_split", "train")
    said = run("diffuseseg", "export-onnx", student, file, *given).stdout
    assert "Masks in int8 agree with float32 on " in said and f"Written to {file}" in said
    assert file.stat().st_size < 0.9 * exported[0].stat().st_size
    given_model = ("--model", file, "--dataset_name", drawn / "data", "--output_dir", tmp_path / "metrics")
    assert "int8 on cpu (ONNX Runtime)" in run("diffuseseg", "evaluate", *given_model, "--verbose", fresh=True).stderr
    run("diffuseseg", "compare", exported[0], file, "--dataset_name", drawn / "data", "--output_dir", tmp_path / "both")
    kept = file.read_bytes()
    for wrong in (("--int8",), given[1:3], ("--unlabeled_split", "test")):
        result = run("diffuseseg", "export-onnx", student, file, "--overwrite", *wrong, expect=1)
        assert "--unlabeled_dataset_name" in result.stderr and file.read_bytes() == kept
