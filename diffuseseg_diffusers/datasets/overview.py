# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The line that commands begin with: what was read."""

from typing import Any

from datasets import Dataset, IterableDataset

from ..images.formats.cells import open_cell
from ..jobs.errors import UserError
from .annotations.shapes import is_cell
from .labeled import LabeledImages


def overview(name: str, split: str, images: Dataset | IterableDataset | LabeledImages, column: str = "") -> str:
    """What was read of a dataset, in a line: number of images, the first one, masks and classes.

    Args:
        name (`str`), split (`str`): Of the dataset, as they were given.
        images (`Dataset`, `IterableDataset` or [`LabeledImages`]): What was read.
        column (`str`): Of the images, where they have no masks.
    """
    if isinstance(images, IterableDataset):
        return f"{name}, {split}: streamed images."
    labelled = images if isinstance(images, LabeledImages) else None
    rows: Any = labelled.dataset if labelled else images
    column = labelled.image_column if labelled else column
    how: dict[str, Any] = {"axes": labelled.axes, "slice_axis": labelled.slice_axis} if labelled else {}
    try:
        with open_cell(rows[0][column], "row 0", **how) as raster:
            size = f"{raster.width} × {raster.height}" + f" × {raster.planes} planes" * (raster.planes > 1)
            first = f", the first {size} {raster.dtype} {'+'.join(raster.channels)}"
    except UserError:
        first = ""  # whether that is an error, the task says
    masks = ""
    if labelled:
        drawn = is_cell(rows[0][labelled.mask_column])
        masks = f"; {'annotations' if drawn else f'{labelled.mask_format} masks'} of {labelled.num_classes} classes"
    advice = f" (`diffuseseg inspect {name}` shows them)" if labelled else ""
    return f"{name}, {split}: {len(rows)} image{'s' * (len(rows) != 1)}{first}{masks}{advice}."
