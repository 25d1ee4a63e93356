# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The house: what may import what, how long things may be, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import diffuseseg_diffusers

from .conftest import ROOT


PACKAGE = ROOT / "diffuseseg_diffusers"
# Packages and top-level modules from the ground up; each imports from lower rungs alone.
LADDER = [
    {"jobs"},
    {"images", "metrics"},
    {"datasets"},
    {"features"},
    {"heads"},
    {"pipelines"},
    {"tiling"},
    {"evaluation"},
    {"students", "diffusion", "factory", "paper", "labeling"},
    {"figures"},
    {"hub"},
    {"arguments"},
    {"training"},
    {"tasks"},
    {"cli"},
    {"__main__"},
]
# What a saved pipeline carries to load without this package.
CARRIED = {
    *(
        "jobs.errors",
        "images.channels",
        "images.image_processor",
        "features.noise",
        "features.dry_run",
        "features.base",
        "features.pixel_unet",
        "features.weights",
        "heads.decisions",
        "heads.upsampling",
        "heads.ensemble",
    ),
    *("pipelines.identity", "pipelines.segmenter", "pipelines.saved_code", "pipelines.pixel"),
}
MODULES = {
    **{p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): p for p in PACKAGE.rglob("*.py")},
    **{f"training.{p.stem}": p for p in (ROOT / "training").glob("*.py")},
}


def imports(name: str, path: Path) -> set[str]:
    """Modules of this package that a module imports anywhere in it, by their dotted names below the package."""
    found = set()
    folder = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - (node.level - 1)] + (node.module.split(".") if node.module else [])
            names = [".".join([*base, alias.name]) for alias in node.names]
            found |= {n if n in MODULES else ".".join(base) for n in names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffuseseg_diffusers"):
            base = node.module.split(".")[1:]
            public = diffuseseg_diffusers._PUBLIC
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.add(full if full in MODULES else ".".join(base) if base else public.get(alias.name, alias.name))
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".", 1)[1] for a in node.names if a.name.startswith("diffuseseg_diffusers.")}
    return found - {""}


GRAPH = {name: imports(name, path) for name, path in MODULES.items()}


def test_every_module_stands_on_the_ladder():
    rungs = set().union(*LADDER)
    assert {name.split(".")[0] for name in MODULES} - rungs == {"__init__"}


def test_imports_run_down_the_ladder_only():
    rung = {name: i for i, names in enumerate(LADDER) for name in names}
    wrong = []
    for name, targets in GRAPH.items():
        here = name.split(".")[0]
        for target in targets:
            there = target.split(".")[0]
            if here in rung and there in rung and there != here and rung[there] >= rung[here]:
                wrong.append(f"{name} -> {target}")
    assert not wrong, wrong


def test_no_module_imports_itself_by_way_of_others():
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name not in GRAPH:  # a package: its own file
            name = f"{name}.__init__"
        if state.get(name) == 2 or name not in GRAPH:
            return
        assert state.get(name) != 1, " -> ".join((*path, name))
        state[name] = 1
        for target in GRAPH[name]:
            visit(target, (*path, name))
        state[name] = 2

    for name in GRAPH:
        if name != "__init__":
            visit(name, ())


def test_what_a_repository_carries_imports_nothing_else_of_the_package():
    for name in CARRIED:
        assert GRAPH[name] <= CARRIED, (name, GRAPH[name] - CARRIED)


def test_no_private_name_is_imported_from_another_module():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.level or "diffuseseg" in (node.module or "")):
                private = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                assert not private, (name, private)


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_450_lines_and_functions_80_at_most(name):
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= 450
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= 80, node.name


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_touches_no_network_and_loads_nothing_that_diffusers_does_not_load():
    parts = "from diffusers import DiffusionPipeline, UNet2DModel, DDPMScheduler, ModelMixin, SchedulerMixin\n"
    parts += "from diffusers.image_processor import VaeImageProcessor\n"
    report = "import sys\nprint(*{m.split('.')[0] for m in sys.modules})\n"
    offline = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    )
    theirs = set(python(offline + parts + report).split())
    ours = set(python(offline + "from diffuseseg_diffusers import DiffuseSegPipeline\n" + report).split())
    assert ours - theirs == {"diffuseseg_diffusers"}


def test_every_public_name_is_there():
    for name in diffuseseg_diffusers.__all__:
        assert getattr(diffuseseg_diffusers, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = diffuseseg_diffusers.nothing
