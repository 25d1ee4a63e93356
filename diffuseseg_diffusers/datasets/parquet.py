# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labelled folders as Parquet, and what `datasets` finds in a folder."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
from datasets import Dataset, Features, Image, IterableDataset, get_dataset_config_names, load_dataset

from ..images.formats.opening import TIFF
from ..images.image_files import SUFFIXES, encode_image
from ..jobs.errors import UserError
from ..jobs.files import write_json
from .annotations.reading import read_annotations
from .find_labeled import annotated_rows, read_folder
from .label_names import read_label_names
from .labeled import LabeledImages
from .layout import ALL
from .layouts import find_layout, is_described


def open_streams(folder: Path) -> Iterator[tuple[str, str, IterableDataset]]:
    """Configuration, split and rows, images not decoded, of all that `datasets` finds in a local folder."""
    try:
        names = get_dataset_config_names(os.fspath(folder))
        streams = [(name, load_dataset(os.fspath(folder), name, streaming=True)) for name in names]
    except FileNotFoundError:  # with `datasets`, also of data files in a folder that is there
        return
    for name, splits in streams:
        for split, rows in splits.items():
            for column, feature in (rows.features or {}).items():
                if isinstance(feature, Image):
                    rows = rows.cast_column(column, Image(decode=False))
            yield name, split, rows


def as_parquet(folder: Path, target: Path) -> Path | None:
    """Writes labelled images whose layout `datasets` does not know as Parquet, one file a split, masks as PNG.

    Args:
        folder (`Path`): As [`load_labeled_images`] takes it.
        target (`Path`): Where to; may be there.

    Returns:
        `Path`: `target`, or `None` if `datasets` reads the folder as it is, and nothing was written.

    Raises:
        UserError: A picture is of a format that cells do not hold, such as a volume.
    """
    layout = None if is_described(folder) else find_layout(folder)
    names, found = read_label_names(str(folder), True), {}
    if layout is not None and layout.has_pairs:
        names = names or layout.label_names
        found = {split: read_folder(layout, split) for split in layout.splits}
    elif layout is not None and (annotated := read_annotations(layout, names=names)) is not None:
        names = annotated.names
        found = {split: annotated_rows(annotated, split) for split in annotated.splits}
    features = Features({"image": Image(decode=False), "mask": Image(decode=False)})
    for split, dataset in sorted(found.items()):
        rows = []
        labeled = LabeledImages(dataset, label_names=names)
        for i, image in enumerate(dataset["image"]):
            if not image["path"].lower().endswith((*TIFF, *SUFFIXES)):
                raise UserError(
                    f"{image['path']} is of a format that Parquet files do not hold; save it as TIFF or PNG."
                )
            mask = encode_image(PIL.Image.fromarray(labeled[i].mask))
            cell = {"bytes": Path(image["path"]).read_bytes(), "path": os.path.basename(image["path"])}
            rows.append({"image": cell, "mask": {"bytes": mask, "path": None}})
        written = Dataset.from_list(rows, features=features).cast(Features({"image": Image(), "mask": Image()}))
        (target / "data").mkdir(parents=True, exist_ok=True)
        name = "train" if split == ALL else re.sub(r"\W", "_", split)  # of folders one in the other
        written.to_parquet(target / "data" / f"{name}-00000-of-00001.parquet")
    if found and names:
        write_json(target / "id2label.json", dict(enumerate(names)))
    return target if found else None
