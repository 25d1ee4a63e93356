# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The code that a saved pipeline carries, so that it loads with `trust_remote_code=True` without this package."""

import ast
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


# Where saved pipelines carry the code: beside model_index.json, and in the head's folder, because diffusers looks for
# the code of a component there.
PIPELINE_CODE = "pipeline_diffuseseg.py"
HEAD_CODE = "segmentation_head/pixel_classifier_ensemble.py"


def code_files(index: dict, modules: Sequence[str]) -> dict[str, str]:
    """Files that let a saved pipeline load with `trust_remote_code=True` where this package is missing.

    Args:
        index (`dict`): Content of the pipeline's `model_index.json`.
        modules (sequence of `str`): What the code is made of, each after those that it needs; of a pipeline that was
            itself loaded from such code, that is one file.

    Returns:
        `dict`: Content of each file by its path below the folder; `model_index.json` is one of them.
    """
    sources = dict.fromkeys(sys.modules[name].__file__ for name in modules)
    code = "\n\n".join(_stand_alone(Path(source).read_text(encoding="utf-8")) for source in sources)
    index = {k: v for k, v in index.items() if k != "_name_or_path"}  # strips local paths
    index["_class_name"] = [Path(PIPELINE_CODE).stem, "DiffuseSegPipeline"]
    files = {PIPELINE_CODE: code}
    if (index.get("segmentation_head") or [None])[0] is not None:
        index["segmentation_head"] = [Path(HEAD_CODE).stem, "PixelClassifierEnsemble"]
        files[HEAD_CODE] = code
    files["model_index.json"] = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return files


def _stand_alone(source: str) -> str:
    """The source without its imports from this package."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.level > 0:
            for line in range(node.lineno - 1, node.end_lineno):
                lines[line] = None
    return "\n".join(line for line in lines if line is not None) + "\n"


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the keyword arguments of a `from_pretrained` that say where files are."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
    return {name: kwargs[name] for name in names if name in kwargs}
