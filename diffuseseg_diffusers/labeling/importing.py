# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Begins a session with annotations of other programs, as strokes of its journal: one for each picture, once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..datasets.annotations import base
from ..datasets.annotations.reading import Annotated, find_annotations, leaves, read_annotations
from ..datasets.annotations.shapes import IGNORED, is_background, paint
from ..datasets.layouts import find_layout
from ..jobs.errors import UserError
from .checks import checked_name
from .journal import IMPORT, UNLABELED, Journal
from .pictures import Picture
from .regions import to_runs


def import_annotations(
    journal: Journal,
    pictures: Mapping[str, Picture],
    folder: Path,
    place: Path,
    kind: str,
    class_names: Sequence[str] = (),
) -> list[str]:
    """Draws the annotations of a session's pictures into its journal, after all of them are checked.

    Later shapes cover earlier ones. Pixels in no shape are of the class "background", if there is one. Pixels that are
    labelled already stay as they are, and so do pictures whose annotations were imported before, undone or not.

    Args:
        journal ([`Journal`]): Of the session; one without classes gets `class_names`, or those of the annotations.
        pictures (mapping of `str` to [`Picture`]): Of the session, by name.
        folder (`Path`): Where the pictures are.
        place (`Path`): File or folder of annotations.
        kind (`str`): Their format; by content if `"auto"`.
        class_names (sequence of `str`, *optional*): Classes of a journal that has none.

    Returns:
        Lines that say what was imported and what was not.

    Raises:
        UserError: The annotations cannot be read, have other classes than the session, or are of another size.
    """
    layout = find_layout(folder)
    found = read_annotations(layout, place, kind)
    assert found is not None  # of a place that is named
    notes = found.layout.notes[len(layout.notes) :]
    before = {stroke.picture for stroke in journal.strokes.values() if stroke.kind == IMPORT}
    named = {path.relative_to(folder).as_posix(): own for pairs in found.splits.values() for path, own in pairs}
    stacks = {picture.file_name for picture in pictures.values() if picture.place}
    if whole := sorted(stacks & set(named)):
        notes.append(
            f"{len(whole)} annotated stacks are not imported, {whole[0]} among them: their planes are pictures."
        )
    if outside := sorted(set(named) - set(pictures) - stacks):
        notes.append(f"{len(outside)} annotated pictures are not in this session, {outside[0]} among them.")
    new = {name: own for name, own in named.items() if name in pictures and name not in before}
    ids, names = _classes(journal, class_names or found.names, new, place)

    drawn, empty, clipped, kept = {}, [], 0, 0
    for name, own in new.items():
        size = pictures[name].size
        mask = _mask(own, ids, size, name)
        labelled = journal.labels(name, size).ids != UNLABELED
        if not own.shapes or (mask == UNLABELED).all():
            empty.append(name)
            continue
        clipped += sum(leaves(area, *size) for _, area in own.shapes)
        kept += bool(labelled.any())
        mask[labelled] = UNLABELED
        runs = [run for i in np.unique(mask).tolist() if i != UNLABELED for run in to_runs(mask == i, i)]
        if runs:
            drawn[name] = np.array(runs, np.int32)
    for class_name in names:
        journal.add_class(class_name)
    for name, runs in drawn.items():
        journal.draw(name, pictures[name].size, runs, IMPORT)
    return notes + _said(found, place, len(drawn), len(before & set(named)), empty, clipped, kept)


def offered_annotations(folder: Path) -> list[str]:
    """A line for each format of annotations that is found in a folder of pictures and not imported."""
    return [
        f"There are {kind} annotations in {folder}, {files[0][0]} among them; --annotations imports them."
        for kind, files in find_annotations(folder).items()
    ]


def _classes(
    journal: Journal, names: Sequence[str], new: Mapping[str, base.Picture], place: Path
) -> tuple[dict[str, int], list[str]]:
    """Ids of the session's classes, and the names of those that have to be added."""
    ids = {own.name: i for i, own in journal.classes.items()}
    wanted, added = list(dict.fromkeys(map(checked_name, names))), []
    # The end of the process may have left the first classes alone.
    fresh = not journal.strokes and [*journal.classes] == list(range(len(ids)))
    if fresh and not journal.merged and not journal.deleted and [*ids] == wanted[: len(ids)]:
        ids, added = {name: i for i, name in enumerate(wanted)}, wanted[len(ids) :]
    used = {checked_name(label) for own in new.values() for label, _ in own.shapes if label != IGNORED}
    if used - set(ids):
        raise UserError(
            f"{place} has the classes {', '.join(sorted(used))}, but the session has {', '.join(ids)}; rename those of "
            f"the session on its page, or give --classes with those of the annotations and a new --session."
        )
    return ids, added


def _mask(own: base.Picture, ids: Mapping[str, int], size: tuple[int, int], name: str) -> np.ndarray:
    """The class ids of an annotated picture, `[H, W]` uint8, 255 where there is none."""
    height, width = own.size or size
    if (height, width) != size:
        raise UserError(
            f"{name} is {size[1]} × {size[0]}, but its annotation is {width} × {height} (width × height); annotate the "
            f"picture as it is, or put back the one that was annotated."
        )
    outside = next((i for label, i in ids.items() if is_background(label)), UNLABELED)
    mask = np.full(size, outside, np.uint8)
    for label, area in own.shapes:
        paint(mask, area, UNLABELED if label == IGNORED else ids[checked_name(label)])
    return mask


def _said(
    found: Annotated, place: Path, drawn: int, before: int, empty: list[str], clipped: int, kept: int
) -> list[str]:
    lines = [f"Annotations of {drawn} pictures are imported from {place} ({found.format})."] if drawn else []
    if before:
        lines.append(f"Annotations of {before} pictures were imported before, and are not imported again.")
    if empty:
        lines.append(f"{len(empty)} pictures in {place} have no shapes and count as unlabelled, {empty[0]} among them.")
    if clipped:
        lines.append(f"{clipped} shapes reach out of their pictures and are cut off there.")
    if kept:
        lines.append(f"{kept} annotated pictures were labelled in part; those labels stay.")
    return lines
