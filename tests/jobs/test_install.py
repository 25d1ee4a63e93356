# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.install import missing_extra


def test_a_missing_package_is_named_with_a_line_that_installs_it():
    error = missing_extra("onnx", "onnxruntime")
    assert isinstance(error, UserError) and str(error).startswith(
        "onnxruntime is not installed; run `pip install 'onnx>="
    )
    for extra in ("train", "analysis", "onnx"):
        assert "diffuseseg" not in str(missing_extra(extra))  # nobody owns that name
