# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Layouts of labelled images in folders, and files of class names."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, Features, Image, Value
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from ..images.formats.opening import MASK_FOLDERS, find_rasters, name_of
from ..images.image_files import find_images
from ..jobs.errors import UserError
from ..jobs.files import read_json


logger = logging.getLogger(__name__)

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


def read_label_file(path: str | os.PathLike) -> list:
    """Reads `id2label.json`, or a palette in the same form: a list, or an object from class id to name or colour.

    Raises:
        UserError: The file is missing or of another form, or the ids are not 0, 1, 2, … without gaps.
    """
    labels: object = read_json(path)
    if isinstance(labels, Mapping):
        if sorted(labels) != sorted(map(str, range(len(labels)))):
            ids = ", ".join(sorted(labels, key=lambda name: (len(name), name)))
            raise UserError(f"{path} must name the classes 0 to {len(labels) - 1}, found the ids {ids}.")
        labels = [labels[str(i)] for i in range(len(labels))]
    if not isinstance(labels, list) or not labels:
        raise UserError(f"{path} must hold a list, or an object from class id to name or colour.")
    return labels


def read_label_names(
    name: str, local: bool, cache_dir: str | None = None, token: str | None = None, revision: str | None = None
) -> list[str] | None:
    """Names of the classes from a dataset's `id2label.json`, of a local folder or on the Hub; `None` if it has none."""
    if local:
        path = os.path.join(name, "id2label.json")
        return _only_names(path) if os.path.isfile(path) else None
    try:
        path = hf_hub_download(
            name, "id2label.json", repo_type="dataset", cache_dir=cache_dir, token=token, revision=revision
        )
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None  # names are a nicety; whether the dataset itself can be had, `load_dataset` says
    return _only_names(path)


def _only_names(path: str) -> list[str]:
    names = read_label_file(path)
    if wrong := next((name for name in names if not isinstance(name, str)), None):
        raise UserError(f"{path} must hold names of classes, found {wrong!r}.")
    return names


def read_folder(folder: Path, split: str) -> Dataset | None:
    """A dataset of paths for layouts that `datasets` does not know; `None` for the others."""
    splits = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name in SPLITS)
    for root in (folder / split, folder):
        pairs = _npy_pairs(root) or _folder_pairs(root)
        if pairs and root == folder and splits:  # all splits together is not what was asked for
            raise UserError(f"The dataset {folder} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
        if pairs:
            if root == folder and split != "train":
                logger.warning(f"{folder} has no splits: all of its images are taken for {split!r}.")
            images, masks = zip(*pairs)
            if wrong := next((p for p in (*images, *masks) if not _is_text(p)), None):
                raise UserError(
                    f"The name of {wrong!r} is no UTF-8 text, which `datasets` cannot hold; rename the file."
                )
            mask = Value("string") if masks[0].endswith(".npy") else Image(decode=False)
            features = Features({"image": Image(decode=False), "mask": mask})
            return Dataset.from_dict({"image": list(images), "mask": list(masks)}, features=features)
    return None


def _is_text(path: str) -> bool:
    """Whether a path is valid UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _npy_pairs(root: Path) -> list[tuple[str, str]]:
    """The published layout: images with `.npy` masks beside them, anywhere below the folder."""
    if not root.is_dir() or not any(root.rglob("*.npy")):
        return []
    images = find_images(root)
    lonely = [str(p) for p in images if not p.with_suffix(".npy").is_file()]
    if lonely:
        raise UserError(f"{lonely[0]} has no mask {Path(lonely[0]).with_suffix('.npy').name} beside it.")
    if not images:
        raise UserError(f"The folder {root} has .npy masks but no images in it.")
    return [(str(p), str(p.with_suffix(".npy"))) for p in images]


def _folder_pairs(root: Path) -> list[tuple[str, str]]:
    """Two folders of images, `images` and `masks`, whose files have the same names up to the suffix."""
    masks = next((root / m for m in MASK_FOLDERS if (root / m).is_dir()), None)
    if masks is None or not (root / "images").is_dir():
        return []
    images = find_rasters(root / "images")
    if not images:
        raise UserError(f"The folder {root / 'images'} has no images in it.")
    by_name = {name_of(p.relative_to(masks)): p for p in find_rasters(masks)}
    lonely = [p for p in images if name_of(p.relative_to(root / "images")) not in by_name]
    if lonely:
        raise UserError(f"{lonely[0]} has no mask of the same name in {masks}.")
    return [(str(p), str(by_name[name_of(p.relative_to(root / "images"))])) for p in images]
