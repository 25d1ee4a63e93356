# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Colours of classes, as files and people state them."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..jobs.errors import UserError
from ..jobs.files import read_json


def read_palette(
    given: str | os.PathLike | Sequence | Mapping, ignore_index: int = 255
) -> tuple[list[list[int]], list[list[int]]]:
    """Colours of the classes, and those of pixels without a label.

    Args:
        given (path, sequence or mapping): Colours `[red, green, blue]` or `"#rrggbb"` in the order of the classes, or
            from class id to colour; or a JSON file with either. The id `ignore_index` has the colours, one or a list,
            of pixels without a label.
        ignore_index (`int`, defaults to 255): That id.

    Raises:
        UserError: It is of another form, an id is missing, or two classes have one colour.
    """
    colors: Any = read_json(Path(given)) if isinstance(given, (str, os.PathLike)) else given
    where = f"The palette {given}" if isinstance(given, (str, os.PathLike)) else "A palette"
    ignored: Any = []
    if isinstance(colors, Mapping):
        by_id = {str(key): color for key, color in colors.items()}
        ignored = by_id.pop(str(ignore_index), [])
        ignored = [ignored] if _color(ignored) else ignored
        if sorted(by_id) != sorted(map(str, range(len(by_id)))):
            ids = ", ".join(sorted(by_id, key=lambda name: (len(name), name)))
            raise UserError(f"{where} must give colours to the classes 0 to {len(by_id) - 1}, found the ids {ids}.")
        colors = [by_id[str(i)] for i in range(len(by_id))]
    found = [_color(color) for color in colors] if isinstance(colors, (list, tuple, np.ndarray)) else []
    unlabeled = [_color(color) for color in ignored]
    if not found or None in found or None in unlabeled:
        raise UserError(
            f'{where} is a colour for each class, [red, green, blue] of integers 0 to 255 or "#rrggbb": a list of '
            f'them, or an object from class id to colour, such as {{"0": [0, 0, 0], "1": "#ff0000"}}.'
        )
    if twice := next((color for color, n in Counter(map(tuple, [*found, *unlabeled])).items() if n > 1), None):
        raise UserError(f"{where} has the colour #{bytes(twice).hex()} twice; classes need colours of their own.")
    return found, unlabeled


def is_color(given: Any) -> bool:
    """Whether this is `[red, green, blue]`, integers 0 to 255."""
    is_triple = isinstance(given, (list, tuple, np.ndarray)) and len(given) == 3
    return is_triple and all(isinstance(x, (int, np.integer)) and 0 <= x <= 255 for x in given)


def _color(given: Any) -> list[int] | None:
    """`[red, green, blue]` of a colour in either form; `None` of anything else."""
    if isinstance(given, str) and len(given) == 7 and given[0] == "#":
        try:
            return list(bytes.fromhex(given[1:]))
        except ValueError:
            return None
    return [int(x) for x in given] if is_color(given) else None
