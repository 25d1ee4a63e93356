# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How far the labelling of a session's pictures is."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..jobs.errors import UserError
from .checks import checked_name
from .journal import MAX_CLASSES, Journal, Stroke
from .pictures import Picture


class Statistics:
    """Labelled pixels of each class, counted only in pictures that have changed since they were counted."""

    def __init__(self, journal: Journal):
        self.journal = journal
        self._counted: dict[str, tuple[int, np.ndarray]] = {}  # by picture: its last change, pixels [256] int64

    def count(self, sizes: Mapping[str, tuple[int, int]]) -> dict[int, tuple[int, int]]:
        """Pixels and pictures of each class by its id, in the pictures of these heights and widths.

        Takes no lock: what is drawn meanwhile may be missing, and is counted the next time.
        """
        pixels, pictures = np.zeros(256, np.int64), np.zeros(256, np.int64)
        for name, size in sizes.items():
            changed = self.journal.changed.get(name)  # before the labels, which are at least as new
            if changed is None:
                continue
            if self._counted.get(name, (None,))[0] != changed:
                ids = self.journal.resolved(self.journal.labels(name, size).ids)
                self._counted[name] = (changed, np.bincount(ids.ravel(), minlength=256))
            own = self._counted[name][1]
            pixels += own
            pictures += own > 0
        return {label: (int(pixels[label]), int(pictures[label])) for label in list(self.journal.classes)}


def picture_state(journal: Journal, name: str, strokes: int) -> str:
    """`"approved"` or `"skipped"`, else `"started"` with strokes and `"empty"` without."""
    return journal.states.get(name) or ("started" if strokes else "empty")


def set_aside(journal: Journal, pictures: dict[str, Picture]) -> tuple[dict[str, str], list[str]]:
    """Takes out the pictures whose size, or number of planes beside them, changed since they were labelled.

    Returns:
        Why each was taken out, by name; lines that say so, and which labelled pictures are missing.
    """
    left_out: dict[str, str] = {}
    notes, gone = [], set()
    for stroke in journal.active():
        picture = pictures.get(stroke.picture)
        if picture is None:
            gone.add(stroke.picture)
        elif changed := _changed(picture, stroke):
            left_out[stroke.picture] = f"{changed}; its strokes are kept for the old one"
            notes.append(f"{stroke.picture} {left_out[stroke.picture]}.")
            del pictures[stroke.picture]
    gone -= set(left_out)
    if gone:
        notes.append(f"{len(gone)} labelled pictures are gone, {min(gone)} too; their strokes are kept.")
    return left_out, notes


def _changed(picture: Picture, stroke: Stroke) -> str | None:
    """How a picture differs from the one in which a stroke was drawn, if it does."""
    (height, width), planes = stroke.size, stroke.planes
    if picture.size != stroke.size:
        now = f"{picture.size[1]} x {picture.size[0]}"
        return f"was {width} x {height} pixels when it was labelled and is now {now}"
    if picture.planes != planes:
        return f"was one of {planes} planes when it was labelled and is now one of {picture.planes}"
    return None


def begin_classes(journal: Journal, names: Sequence[str]) -> list[str]:
    """Adds classes to a journal that never had any; returns a line if it has others."""
    known = [own.name for own in journal.classes.values()]
    if not known and not journal.merged and not journal.deleted:
        for name in names:
            journal.add_class(name)
    elif names and list(names) != known:
        has = ", ".join(known) or "all of them deleted"
        return [f"The session has classes already, {has}; those that were given are left out."]
    return []


def checked_names(class_names: Sequence[str]) -> list[str]:
    """Validates the names of the classes that a session begins with.

    Raises:
        UserError: One is no name or is given twice, or there are more than 255.
    """
    names = [checked_name(name) for name in class_names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"The class {twice!r} is given twice; classes need names of their own.")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{len(names)} classes are given, and there are {MAX_CLASSES} at most.")
    return names
