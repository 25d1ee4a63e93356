# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import tomllib

from packaging.requirements import Requirement

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.install import missing_extra, requirements_of

from ..conftest import ROOT


def test_a_missing_package_is_named_with_a_line_that_installs_it():
    error = missing_extra("onnx", "onnxruntime")
    assert isinstance(error, UserError) and str(error).startswith(
        "onnxruntime is not installed; run `pip install 'onnx>="
    )
    for extra in ("train", "analysis", "onnx"):
        assert "diffuseseg" not in str(missing_extra(extra))  # nobody owns that name


def test_extras_bring_what_the_extras_in_them_bring():
    names = [one.name for one in requirements_of("app")]
    assert {"datasets", "transformers", "fastapi"} <= set(names) and len(names) == len(set(names))
    assert "torch" not in names and "torch" in [one.name for one in requirements_of("app", base=True)]


def test_every_floor_is_pinned_where_the_oldest_versions_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name not in ("docs", "lint")}
    pins = (line for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if not line.startswith("#"))
    oldest = {name.lower().replace("_", "-"): version for name, version in (pin.split("==") for pin in pins)}
    for text in [*project["dependencies"], *(text for texts in extras.values() for text in texts)]:
        one = Requirement(text)
        if one.name in (project["name"], "ray"):  # Ray has no tests where it is not installed
            continue
        assert one.specifier.contains(oldest[one.name.lower().replace("_", "-")]), text
