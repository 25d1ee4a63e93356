# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
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
