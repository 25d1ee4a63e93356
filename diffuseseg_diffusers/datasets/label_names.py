# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Files of class names."""

import os
from collections.abc import Mapping

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from ..jobs.errors import UserError
from ..jobs.files import read_json


def read_label_file(path: str | os.PathLike) -> list[str]:
    """Reads `id2label.json`: a list, or an object from class id to name.

    Raises:
        UserError: The file is missing or of another form, or the ids are not 0, 1, 2, … without gaps.
    """
    labels: object = read_json(path)
    if isinstance(labels, Mapping):
        if sorted(labels) != sorted(map(str, range(len(labels)))):
            ids = ", ".join(sorted(labels, key=lambda name: (len(name), name)))
            raise UserError(f"{path} must name the classes 0 to {len(labels) - 1}, found the ids {ids}.")
        labels = [labels[str(i)] for i in range(len(labels))]
    if not isinstance(labels, list) or not labels or not all(isinstance(name, str) for name in labels):
        raise UserError(f"{path} must hold names of classes: a list, or an object from class id to name.")
    return labels


def read_label_names(
    name: str, local: bool, cache_dir: str | None = None, token: str | None = None, revision: str | None = None
) -> list[str] | None:
    """Names of the classes from a dataset's `id2label.json`, of a local folder or on the Hub; `None` if it has none."""
    if local:
        path = os.path.join(name, "id2label.json")
        return read_label_file(path) if os.path.isfile(path) else None
    try:
        path = hf_hub_download(
            name, "id2label.json", repo_type="dataset", cache_dir=cache_dir, token=token, revision=revision
        )
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None  # names are a nicety; whether the dataset itself can be had, `load_dataset` says
    return read_label_file(path)
