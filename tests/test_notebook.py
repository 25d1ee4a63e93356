# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The quickstart notebook runs, and is stored with its outputs."""

import ast
import base64
import io
import json
import tempfile
from pathlib import Path

import pytest
from PIL import Image

from .conftest import ROOT


NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
# What the test does less of than the notebook, to save time.
SHORTER = {
    "label_names=LABEL_NAMES, seed=0)": 'label_names=LABEL_NAMES, seed=0, recipe="fast", num_members=3)',
    'drawn_faces("test", 20)': 'drawn_faces("test", 6)',
    "num_inference_steps=100": "num_inference_steps=2",
}


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whole = "\n".join(cell["source"] for cell in code_cells())
    assert all(whole.count(text) == 1 for text in SHORTER)
    names: dict = {"__name__": "__main__"}
    for cell in code_cells():
        source = cell["source"]
        for text, shorter in SHORTER.items():
            source = source.replace(text, shorter)
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), names)
        if last:
            names["_"] = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    assert names["metrics"]["mean_iou"] > 0.5
    assert len(names["output"].images) == len(names["output"].masks) == 6
    assert names["_"] == list(names["LABEL_NAMES"])


def test_it_is_stored_with_its_outputs_and_nothing_else():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert not any(str(place) in text for place in (ROOT, Path.home(), tempfile.gettempdir()))
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(images) == 3
    for image in images:
        assert Image.open(io.BytesIO(base64.b64decode("".join(image)))).width >= 400
    assert any("mean IoU" in "".join(output.get("text", "")) for output in outputs)
