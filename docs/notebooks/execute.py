# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Executes the quickstart notebook and stores its outputs: `make notebook`."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


path = Path(__file__).parent / "quickstart.ipynb"
notebook = nbformat.read(path, as_version=4)
os.environ["HF_HUB_OFFLINE"] = "1"
with tempfile.TemporaryDirectory() as folder:
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
    ).execute()
for cell in notebook.cells:
    # Progress bars and warnings go to stderr; images are stored once, as PNG.
    cell.metadata.pop("execution", None)
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            output.get("data", {}).pop("image/jpeg", None)
notebook.metadata = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
nbformat.write(notebook, path)
