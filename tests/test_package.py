# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What imports cost, and what carried code may import; the ladder of imports is a contract in pyproject.toml."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import diffuseseg_diffusers
from diffuseseg_diffusers.tasks import TASKS

from .conftest import ROOT


PACKAGE = ROOT / "diffuseseg_diffusers"
# What a saved pipeline carries to load without this package.
CARRIED = {
    *(
        "jobs.errors",
        "images.channels",
        "images.image_processor",
        "features.noise",
        "features.dry_run",
        "features.filters",
        "features.base",
        "features.pixel_unet",
        "features.weights",
        "heads.decisions",
        "heads.guided",
        "heads.inputs",
        "heads.upsampling",
        "heads.ensemble",
    ),
    *("pipelines.identity", "pipelines.outputs", "pipelines.segmenter", "pipelines.saved_code", "pipelines.pixel"),
}
MODULES = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "training").glob("*.py"))]


def imports(path: Path) -> list[ast.ImportFrom]:
    """Imports of this package anywhere in a module."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [node for node in nodes if node.level or (node.module or "").startswith(PACKAGE.name)]


def test_what_a_repository_carries_imports_nothing_else_of_the_package():
    for name in CARRIED:
        here = name.split(".")
        for node in imports(PACKAGE.joinpath(*here).with_suffix(".py")):
            assert node.level and node.module, f"{name} imports a package, line {node.lineno}"
            found = ".".join([*here[: len(here) - node.level], node.module])
            assert found in CARRIED, f"{name} imports {found}"


def test_no_name_stands_twice_in_what_saved_pipelines_carry():
    """They carry one file of these modules: a second definition would replace the first one there."""
    names: dict[str, str] = {}
    for module in sorted(CARRIED):
        for node in ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()).body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            found = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
            found += [node.name] if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else []
            for name in set(found) - {"logger"}:
                assert names.setdefault(name, module) == module, f"{name} stands in {names[name]} and {module}"


def test_no_private_name_is_imported_from_another_module():
    for path in MODULES:
        for node in imports(path):
            private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert not private, (path, private)


def test_scripts_are_imported_by_tasks_alone():
    """They stand at the top level, where the contracts of imports do not see them as a part of the package."""
    for path in PACKAGE.rglob("*.py"):
        modules = [node.module or node.names[0].name for node in imports(path)]
        if path.parent.name != "tasks":
            assert not {"training", f"{PACKAGE.name}.training"} & set(modules), path


def test_no_module_is_longer_than_450_lines():
    assert [path.name for path in MODULES if len(path.read_text().splitlines()) > 450] == []


WHAT_AN_IMPORT_LOADS = """
import socket, sys
def refuse(*a, **k): raise AssertionError("network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from diffusers import DiffusionPipeline, UNet2DModel, DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
theirs = {name.split(".")[0] for name in sys.modules}
from diffuseseg_diffusers import DiffuseSegPipeline
print(*{name.split(".")[0] for name in sys.modules} - theirs)
"""


def test_importing_touches_no_network_and_loads_nothing_that_diffusers_does_not_load():
    command = [sys.executable, "-c", WHAT_AN_IMPORT_LOADS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["diffuseseg_diffusers"]


def test_the_page_of_options_names_what_to_import(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    page = importlib.import_module("hooks").on_page_markdown("<!-- options -->", None, None, None)
    found = re.findall(r"`from diffuseseg_diffusers import (\w+), (\w+)`", page)
    assert len(found) == len(TASKS) and {name for pair in found for name in pair} <= {*diffuseseg_diffusers.__all__}


def test_examples_are_sections_that_the_reference_shows_as_code():
    found = {path.name: re.findall(r"^ +Examples?:$", path.read_text(encoding="utf-8"), re.M) for path in MODULES}
    assert any(found.values()) and not {n for n, lines in found.items() if any("Example:" in one for one in lines)}


def test_every_public_name_is_there():
    for name in diffuseseg_diffusers.__all__:
        assert getattr(diffuseseg_diffusers, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = diffuseseg_diffusers.nothing
