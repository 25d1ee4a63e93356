# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import ast
import subprocess
import sys

import diffuseseg_diffusers

from .conftest import ROOT


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
    ours = set(python(offline + "import diffuseseg_diffusers\n" + report).split())
    assert ours - theirs == {"diffuseseg_diffusers"}


def test_every_public_name_is_there():
    for name in diffuseseg_diffusers.__all__:
        assert getattr(diffuseseg_diffusers, name).__doc__


def test_imports_run_down_the_ladder_only():
    ladder = [
        {"features", "segmentation_head", "image_processor", "metrics", "hub_errors"},
        {"pipeline_diffuseseg", "data", "drawn_faces", "augmentation"},
        {"head_training", "unlabeled_data", "student", "backbone"},
        {"evaluation", "guided_diffusion"},
        {"visualization", "commands"},
        {"ddpm_training", "hub", "generation", "analysis"},
        {"training"},
        {"demo"},
        {"cli"},
    ]
    inference = {"features", "segmentation_head", "image_processor", "pipeline_diffuseseg"}
    rung = {name: i for i, names in enumerate(ladder) for name in names}
    for path in (ROOT / "diffuseseg_diffusers").glob("*.py"):
        if path.stem == "__init__":
            continue
        tree = ast.parse(path.read_text())
        # The pipeline's `push_to_hub` looks up when it is called; repositories carry the file without it.
        inside = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)]
        late = [n for n in inside if isinstance(n, ast.ImportFrom) and path.stem == "pipeline_diffuseseg"]
        assert {n.module for n in late} <= {"hub"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node not in late:
                for module in [node.module.split(".")[0]] if node.module else [a.name for a in node.names]:
                    assert rung[module] < rung[path.stem], (path.stem, module)
                    assert path.stem not in inference or module in inference
    for path in (ROOT / "training").glob("*.py"):
        assert "diffuseseg_diffusers.cli" not in path.read_text()
