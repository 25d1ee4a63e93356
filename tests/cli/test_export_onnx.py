# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest

from ..conftest import run


def test_a_student_becomes_an_onnx_file_and_none_is_replaced_unasked(student, tmp_path):
    pytest.importorskip("onnxscript")
    file = tmp_path / "new" / "student.onnx"
    said = run("diffuseseg", "export-onnx", student, file).stdout
    assert f"Written to {file}: pixels [N, 3, 32, 32] in [0, 1] to masks." in said
    whole = file.read_bytes()
    for wrong in ((student, file), (student, tmp_path, "--overwrite"), (tmp_path / "nowhere", file, "--overwrite")):
        result = run("diffuseseg", "export-onnx", *wrong, expect=1)
        assert "Traceback" not in result.stderr and file.read_bytes() == whole
