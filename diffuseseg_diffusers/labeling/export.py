# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Exports a session: labels as a dataset that every command reads, masks of all pictures, and the strokes."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..datasets.annotations import coco, cvat, label_studio, labelme, qupath
from ..datasets.annotations.base import Marked
from ..datasets.annotations.shapes import from_mask
from ..images.formats.cells import open_cell
from ..images.formats.planes import save_picture
from ..images.image_processor import mask_to_pil
from ..jobs.errors import UserError
from ..jobs.files import write_json
from ..tiling.files import free_names, stem
from .journal import APPROVED, JOURNAL
from .pictures import Picture


README = """# Labels from DiffuseSeg

* `dataset/`: the labelled pictures, and masks of class ids with 255 where there is no label, of approved pictures too.
  Every command reads it: `diffuseseg fit --model MODEL --dataset_name dataset --sparse_labels --output_dir fitted`.
  `pipeline` learned from these labels; what it is worth, whole masks of other pictures say: `diffuseseg evaluate
  --model pipeline --dataset_name OTHERS --output_dir evaluation`. `dataset_of.json` says which picture is which
* `predictions/`: the masks that the session's head made of all pictures; `of.json` says of which picture each one is
* `annotations/`: the same masks for other programs, to correct them there: COCO, CVAT ("for images 1.1"), Label Studio
  (brushes), labelme and QuPath (a file for each picture). `diffuseseg fit --dataset_name PICTURES --annotations
  annotations/coco.json --label_names …` reads them back
* `strokes.jsonl`: every stroke and class of all pictures, in the order in which they were drawn
* `pipeline/`: the fitted pipeline, if "Finish" was pressed, for `diffuseseg segment --model pipeline …`

Masks are palette images: the values of their pixels are class ids, `dataset/id2label.json` names them.
"""
PLANES = """
Planes of stacks and volumes are pictures of their own: "stack.tif, z 3" is `dataset/images/stack-z3.tif`, with the
values of the stack, and goes by this name in `annotations/`; `diffuseseg fit --dataset_name dataset/images
--annotations annotations/coco.json --label_names …` reads those that are labelled.
"""


_ANNOTATIONS: dict[str, Callable[[Path, Iterable[Marked], Sequence[str]], None]] = {
    "coco.json": coco.write,
    "cvat.xml": cvat.write,
    "label_studio.json": label_studio.write,
    "labelme": labelme.write,
    "qupath": qupath.write,
}


def export_session(
    session: Any, folder: Path, pipeline: Path | None = None, behind: bool = False, approved: bool = False
) -> None:
    """Writes the results of a [`LabelSession`] into an empty folder: see `README.md` there.

    Args:
        session, folder: What is exported, and where to.
        pipeline (`Path`, *optional*): Folder of the fitted pipeline, if there is one.
        behind (`bool`, defaults to `False`): Whether strokes or classes have changed since it was fitted.
        approved (`bool`, defaults to `False`): Whether pictures that are not approved are left out.

    Raises:
        UserError: Nothing is labelled, or no picture is approved that has to be.
    """
    with session.lock:  # classes that are merged meanwhile would be other ids in half of the masks
        total, names = len(session.pictures), _chosen(session, approved)
        left_out = _export(session, folder, pipeline, names)
    text = README + f"\n## Exported\n\nAll {total} pictures of the session, approved or not.\n"
    if approved:
        text = README + f"\n## Exported\n\nOf {total} pictures the {len(names)} that were approved:\n\n"
        text += "".join(f"* `{name}`\n" for name in names)
    if pipeline is not None and behind:
        text += "\n**Strokes or classes have changed since `pipeline/` was fitted**: it does not know all of them.\n"
    if any(session.picture(name).place for name in names):
        text += PLANES
    if session.axes and not all(picture.place for picture in session.pictures.values()):  # planes state theirs
        text += f"\nTIFFs of `dataset/` are read with `--axes {session.axes}`.\n"
    if left_out:
        text += "\n## Left out\n\n" + "".join(f"* {reason}\n" for reason in left_out)
        session.notes += [note for note in left_out if note not in session.notes]
    (folder / "README.md").write_text(text, encoding="utf-8")


def _chosen(session: Any, approved: bool) -> list[str]:
    """Names of the pictures to export, in their order; raises [`UserError`] if nothing in them is labelled."""
    labelled = set(session.labelled_names())
    if not labelled:
        raise UserError("Nothing is labelled yet; draw strokes first.")
    if not approved:
        return list(session.pictures)
    names = [name for name in session.pictures if session.journal.states.get(name) == APPROVED]
    if not names:
        raise UserError("No picture is approved yet; approve those that are done, or export all pictures.")
    if not labelled.intersection(names):
        raise UserError(f"Nothing is labelled in the {len(names)} approved pictures; draw strokes, or export all.")
    return names


def _export(session: Any, folder: Path, pipeline: Path | None, chosen: list[str]) -> list[str]:
    """Writes everything of some pictures except `README.md`; returns why labelled ones of them are left out."""
    classes, names = session.classes, [name for name in session.labelled_names() if name in set(chosen)]
    left_out: list[str] = []
    palette = [c.color for c in classes]
    of: dict[str, str] = {}
    exported = dict(zip(session.pictures, free_names([_stem(own) for own in session.pictures.values()])))
    for name in names:
        try:
            of[_copied(session.picture(name), folder / "dataset" / "images", exported[name])] = name
        except UserError as error:
            left_out.append(f"{error} Its labels are left out of the download; its strokes are in it.")
            continue
        mask = session.compact_ids(session.labels(name))
        _save_mask(folder / "dataset" / "masks" / f"{exported[name]}.png", mask, palette)
    if len(left_out) == len(names):
        raise UserError(f"None of the labelled pictures can be read: {left_out[0]}")
    write_json(folder / "dataset" / "id2label.json", {str(i): c.name for i, c in enumerate(classes)})
    write_json(folder / "dataset_of.json", of)

    made: dict[str, str] = {}
    for name in chosen:
        try:
            prediction = session.predict(name) if name in session.ready else None
        except UserError as error:  # it is gone, and had pixels without a measurement
            left_out.append(f"{error} Its mask is left out of the download.")
            continue
        if prediction is not None:
            made[f"{exported[name]}.png"] = name
            _save_mask(folder / "predictions" / f"{exported[name]}.png", session.compact_ids(prediction.mask), palette)
    if made:
        write_json(folder / "predictions" / "of.json", made)
        called = {file: _called(session.picture(name), exported[name]) for file, name in made.items()}
        left_out += _write_annotations(folder, called, [c.name for c in classes])
    if session.journal.lost() is None:
        shutil.copyfile(session.folder / JOURNAL, folder / JOURNAL)
    else:
        left_out.append(f"{JOURNAL} is gone from the session, or was replaced by another version.")
    if pipeline is not None and pipeline.is_dir():
        shutil.copytree(pipeline, folder / "pipeline")
    return left_out


def _stem(picture: Picture) -> str:
    """What the files of a picture are named after; of a plane such as "stack-z3"."""
    own = stem(picture.file_name)
    return "-".join([own, picture.place.replace(", ", "-").replace(" ", "")]) if picture.place else own


def _copied(picture: Picture, folder: Path, new: str) -> str:
    """Copies a picture into a folder, a plane as a TIFF of its own; returns the name of the copy.

    Raises:
        UserError: See [`Picture.check`]; or it cannot be read.
    """
    picture.check()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (_called(picture, new) if picture.place else f"{new}{_suffix(picture.path)}")
    if picture.place:
        with open_cell(picture.cell, picture.name, picture.axes) as raster:
            save_picture(raster, target)
    else:
        shutil.copytree(picture.path, target) if picture.path.is_dir() else shutil.copyfile(picture.path, target)
    return target.name


def _called(picture: Picture, new: str) -> str:
    """The name of a picture for other programs: its own, or of a plane that of its copy."""
    return f"{new}.tif" if picture.place else picture.name


def _write_annotations(folder: Path, called: Mapping[str, str], names: list[str]) -> list[str]:
    """Writes the predictions, by file the name of their picture, in the formats of other programs; returns why some of
    them are left out."""

    def marked() -> Iterator[Marked]:
        for file, name in called.items():
            with PIL.Image.open(folder / "predictions" / file) as image:
                ids = np.asarray(image)
            yield Marked(name, ids.shape[0], ids.shape[1], from_mask(ids, names))

    left_out, target = [], folder / "annotations"
    target.mkdir()
    for file, write in _ANNOTATIONS.items():
        try:
            write(target / file, marked(), names)
        except UserError as error:  # of a package that is not installed
            left_out.append(f"annotations/{file} is not written: {error}")
    return left_out


def _suffix(path: Path) -> str:
    lower = path.name.lower()
    double = next((s for s in (".nii.gz", ".ome.tif", ".ome.tiff", ".ome.zarr") if lower.endswith(s)), None)
    return path.name[len(path.name) - len(double) :] if double else path.suffix


def _save_mask(path: Path, ids: np.ndarray, palette: list[list[int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_to_pil(ids, palette).save(path)
