# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which picture of a folder has which mask: splits, roles of folders and names of files, as people keep them."""

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import PIL.Image

from ..images.formats.opening import ZARR, find_rasters
from ..images.image_files import walk
from ..jobs.errors import UserError
from ..jobs.files import read_json
from .folder_names import MASKS, NO_CLASS_NAMES, bare_name, image_keys, mask_keys, plain_name, said_by, split_of
from .layout import ALL, Layout, Pair, report


logger = logging.getLogger(__name__)

STUDENT_FILES = ("student.json", "student_training.json")  # beside the config.json of a student
_TEXT = (".txt", ".md", ".json", ".jsonl", ".xml", ".csv", ".tsv", ".yaml", ".yml", ".html", ".log", ".py", ".ini")
_TEXT += (".geojson", ".parquet", ".arrow", ".tfw", ".jgw", ".pgw", ".rpb", ".db", ".ipynb", ".toml", ".hdr", ".raw")
_LOSSY = (".jpg", ".jpeg")
_LOOKED_AT = 8  # files whose content says whether they are masks


@dataclass
class _File:
    """A picture or mask, and what its path says."""

    path: Path
    role: str  # "image", "mask", "other" (a mask that holds no classes) or ""
    kind: str  # name of the folder that says so
    split: str
    place: tuple[str, ...]  # folders above that, without the split
    inner: tuple[str, ...]  # folders below it, without the split

    @cached_property
    def name(self) -> str:
        return bare_name(self.path)

    @property
    def where(self) -> tuple:
        return self.split, self.place, self.inner


def find_pictures(folder: Path) -> list[Path]:
    """The pictures below a folder without masks, sorted; a line says what is left out."""
    layout = find_layout(folder)
    report(layout)
    return layout.pictures()


def is_described(folder: Path) -> bool:
    """Whether a folder says by files of its own how `datasets` reads it: Parquet, metadata with file names, a card."""
    for here, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.lower().endswith(ZARR)]
        for name in names:
            if name.endswith((".parquet", ".arrow", ".tar")):
                return True
            if name in ("metadata.csv", "metadata.jsonl"):
                with open(here / name, encoding="utf-8", errors="replace") as file:
                    if "file_name" in file.readline():
                        return True
    card = folder / "README.md"
    return card.is_file() and "\nconfigs:" in card.read_text(encoding="utf-8", errors="replace")


def check_no_model(name: str | os.PathLike) -> None:
    """Raises [`UserError`] for the folder of a model: its index is no row, its samples are no data."""
    student = Path(name, "config.json").is_file() and any(Path(name, own).is_file() for own in STUDENT_FILES)
    if student or Path(name, "model_index.json").is_file():
        raise UserError(f"The folder {name} holds a model, not images; give the folder of the images, or a Hub name.")


def find_layout(folder: Path) -> Layout:
    """Looks at a folder: which pictures are in it, in which splits, and which masks are theirs.

    Args:
        folder (`Path`): The folder.

    Returns:
        [`Layout`]: Of pictures without masks, one of the kind "pictures alone".

    Raises:
        UserError: It is the folder of a model.
    """
    check_no_model(folder)
    layout = Layout(folder)
    rasters = find_rasters(folder)
    files = [_look(path, folder) for path in rasters]
    for path in _others(folder, rasters):
        if path.suffix.lower() == ".npy":
            files.append(_look(path, folder))
        elif path.suffix.lower() not in _TEXT and not path.name.lower().startswith("thumbs"):
            suffix = path.suffix.lower() or path.name
            layout.ignored[suffix] = layout.ignored.get(suffix, 0) + 1
    if layout.ignored:
        said = ", ".join(f"{number} {suffix}" for suffix, number in sorted(layout.ignored.items()))
        layout.notes.append(f"Files of {folder} that are not read: {said}.")
    _places_as_splits(files)
    images, masks = _by_folder(files, layout) or _beside(files, layout) or (files, [])
    _match([f for f in images if f.path.suffix.lower() != ".npy"], masks, layout)
    _read_lists(layout)
    _read_names(layout)
    return layout


def _others(folder: Path, rasters: Iterable[Path]) -> Iterator[Path]:
    """The files that are no pictures, nor parts of folders that are pictures."""
    known = set(rasters)
    for here, folders, names in walk(folder):
        folders[:] = [n for n in folders if here / n not in known]
        if here not in known:
            yield from (here / n for n in names if here / n not in known)


def _look(path: Path, folder: Path) -> _File:
    """What the folders above a file say of it."""
    parts = path.relative_to(folder).parts[:-1]
    said = [said_by(part) for part in parts]
    at = next((i for i, (role, _) in enumerate(said) if role), None)
    if at is not None and said[at][0] == "image" and any(part.lower() in ("mask", "masks") for part in parts[at + 1 :]):
        parts, said = parts[:at] + parts[at + 1 :], said[:at] + said[at + 1 :]  # images/masks/
        at = next(i for i, (role, _) in enumerate(said) if role)
    split = next((s for _, s in said[: len(parts) if at is None else at + 1] if s), "")
    if at is None:
        return _File(path, "", "", split, (), tuple(p for p, (_, s) in zip(parts, said) if not s))
    place = tuple(p for p, (_, s) in zip(parts[:at], said) if not s)
    below = at + 1
    while below < len(parts) and (said[below][0] == said[at][0] or (said[below][1] and not split)):
        split, below = split or said[below][1], below + 1
    return _File(path, said[at][0], parts[at], split, place, parts[below:])


def _places_as_splits(files: list[_File]) -> None:
    """Several folders with images and masks each, and no names of splits, are splits by their own names."""
    places = {f.place for f in files if f.role}
    if len(places) > 1 and not any(f.split for f in files):
        for f in files:
            f.split = "/".join(f.place)


def _by_folder(files: list[_File], layout: Layout) -> tuple[list[_File], list[_File]] | None:
    """Pictures and masks by the names of their folders; `None` if those say nothing."""
    kinds: dict[str, list[_File]] = defaultdict(list)
    for f in files:
        if f.role == "mask":
            kinds[next((name for name in MASKS if name in plain_name(f.kind)), MASKS[-1])].append(f)
    images = [f for f in files if f.role == "image"]
    if not kinds:
        return None
    loose = [f for f in files if not f.role and f.path.suffix.lower() != ".npy"]
    if not images:
        images = _partners(loose, [f for own in kinds.values() for f in own])
        if not images:
            return None
    taken = min(kinds, key=MASKS.index)
    rest = [f for kind, own in kinds.items() if kind != taken for f in own]
    others = [f for f in files if f.role == "other"]
    if rest:
        left = ", ".join(sorted({f"{f.kind}/" for f in rest}))
        layout.notes.append(f"Masks of {layout.folder} are taken from {kinds[taken][0].kind}/, not from {left}.")
    chosen = {id(f) for f in images}
    extra = [f for f in loose if id(f) not in chosen]
    if extra:
        layout.notes.append(
            f"{len(extra)} pictures of {layout.folder} are neither in {images[0].kind or 'the'}/ nor masks, and are "
            f"left out, {extra[0].path} among them."
        )
    places = {f.where for f in kinds[taken]}
    first = next((f for f in images if f.where in places), images[0])  # test_images/ may have no masks
    layout.kind = f"{first.kind + '/' if first.kind else 'pictures'} and {kinds[taken][0].kind}/"
    layout.unused += [f.path for f in (*rest, *others)]
    return images, kinds[taken]


def _partners(loose: list[_File], masks: list[_File]) -> list[_File]:
    """The pictures of folders without a telling name that have the masks' names: photos/ beside masks/."""
    names = {(m.split, *m.place, *m.inner, key) for m in masks for key in mask_keys(m.path)}
    for drop in (0, 1):  # beside the folder of masks, or in one folder beside it
        found = [f for f in loose if any((f.split, *f.inner[drop:], key) in names for key in image_keys(f.path))]
        if found:
            tops = {f.inner[:drop] for f in found}
            chosen = [f for f in loose if f.inner[:drop] in tops]
            for f in chosen:
                f.kind, f.inner = "".join(f.inner[:drop]), f.inner[drop:]
            return chosen
    return []


def _beside(files: list[_File], layout: Layout) -> tuple[list[_File], list[_File]] | None:
    """Masks beside their pictures: `.npy`, another name, or another format."""
    arrays = [f for f in files if f.path.suffix.lower() == ".npy"]
    pictures = [f for f in files if f.path.suffix.lower() != ".npy" and f.role != "other"]
    layout.unused += [f.path for f in files if f.role == "other"]
    if arrays:
        layout.kind = "pictures with .npy masks beside them"
        return pictures, arrays
    names: dict[tuple, list[_File]] = defaultdict(list)
    for f in pictures:
        names[(*f.where, f.name)].append(f)
    owners = {(*f.where, key): f for f in pictures for key in image_keys(f.path)}
    named = [f for f in pictures if any(owners.get((*f.where, key), f) is not f for key in mask_keys(f.path)[1:])]
    if named:
        layout.kind = f"pictures with masks beside them, such as {named[0].path.name}"
        chosen = {id(f) for f in named}
        return [f for f in pictures if id(f) not in chosen], named
    twice = [own for own in names.values() if len(own) == 2 and len([f for f in own if _is_lossy(f.path)]) == 1]
    if twice and 2 * len(twice) >= len(names):
        masks = [f for own in twice for f in own if not _is_lossy(f.path)]
        if all(_looks_like_mask(f.path) for f in masks[:: -(-len(masks) // _LOOKED_AT)]):
            layout.kind = f"photos with masks of the same name beside them ({masks[0].path.suffix})"
            layout.notes.append(f"{masks[0].path.name} and its like are taken for the masks of the photos beside them.")
            chosen = {id(f) for f in masks}
            return [f for f in pictures if id(f) not in chosen], masks
    return None


def _is_lossy(path: Path) -> bool:
    return path.suffix.lower() in _LOSSY


def _looks_like_mask(path: Path) -> bool:
    """Whether a picture has so few values that it is a mask, and no photo."""
    try:
        with PIL.Image.open(path) as image:
            if image.mode in ("1", "P"):
                return True
            values = np.asarray(image)
    except OSError:
        return False
    flat = values.reshape(-1, values.shape[2]) if values.ndim == 3 else values.reshape(-1, 1)
    counts = np.sort(np.unique(flat, axis=0, return_counts=True)[1])[::-1]
    return len(counts) <= 64 or counts[:16].sum() >= 0.9 * len(flat)  # JPEG noise and smooth edges are few


def _match(images: list[_File], masks: list[_File], layout: Layout) -> None:
    """Gives each picture its mask; what is not one to one is a problem."""
    train_ids = any("labeltrainids" in m.name.lower() for m in masks)
    unread = [m for m in masks if re.fullmatch(NO_CLASS_NAMES, m.name, re.IGNORECASE)]
    unread += [m for m in masks if train_ids and m.name.lower().endswith("labelids")]
    layout.unused += [m.path for m in unread]
    out = {id(m) for m in unread}
    by_key: dict[tuple, list[_File]] = defaultdict(list)
    for m in masks:
        if id(m) not in out:
            for rank, key in enumerate(mask_keys(m.path)):
                by_key[(*m.where, key, rank > 0)].append(m)
    owners: dict[Path, list[_File]] = defaultdict(list)
    for f in images:
        keys = [(*f.where, key, changed) for key in image_keys(f.path) for changed in (False, True)]
        own = next((by_key[key] for key in keys if key in by_key), [])
        split = f.split or ALL
        if not own:
            layout.unmasked.setdefault(split, []).append(f.path)
            continue
        if len(own) > 1:
            said = " and ".join(str(m.path) for m in own[:2])
            layout.problems.append(f"{f.path} has {len(own)} masks, {said}; keep one of them.")
        owners[own[0].path].append(f)
        layout.splits.setdefault(split, []).append((f.path, own[0].path))
    for mask, shared in owners.items():
        said = " and ".join(str(f.path) for f in shared[:2])
        if len(shared) > 1 and all(re.search(r"_\d{4}$", f.name) for f in shared):
            layout.problems.append(
                f"{said} are channels of one picture in files of their own, which are not read together; join them to "
                f"one file of {len(shared)} channels, or keep one of them."
            )
        elif len(shared) > 1:
            layout.problems.append(f"{said} would share the mask {mask}; give each picture a name of its own.")
    lonely = [m.path for m in masks if m.path not in owners and id(m) not in out]
    if lonely and masks:
        layout.notes.append(f"{len(lonely)} masks of {layout.folder} have no picture, {lonely[0]} among them.")
    layout.unused += lonely


def _read_lists(layout: Layout) -> None:
    """Splits that text files name, as those of Pascal VOC: a name of a picture in each line."""
    if set(layout.splits) != {ALL}:
        return
    places = ("ImageSets/Segmentation", "ImageSets", "splits", ".")
    lists = {p.stem: p for at in places[::-1] for p in sorted(layout.folder.glob(f"{at}/*.txt"))}
    lists |= {p.stem: p for p in sorted(layout.folder.glob("*/*/ImageSets/Segmentation/*.txt"))}
    masks = dict(layout.splits[ALL])
    by_name: dict[str, list[Path]] = defaultdict(list)
    for image in (*masks, *layout.unmasked.get(ALL, [])):
        by_name[bare_name(image)].append(image)
    splits: dict[str, list[Pair]] = {}
    unmasked: dict[str, list[Path]] = {}
    for name, path in lists.items():
        if name != "trainval" and not split_of(name):
            continue
        found = {line: _named(line, by_name) for line in _lines(path)}
        if not any(own[0] in masks for own in found.values() if own):
            if found:
                layout.notes.append(f"{path} names none of the pictures with masks, and is not read.")
            continue
        images = {own[0] for own in found.values() if own}
        splits[name] = sorted((image, masks[image]) for image in images if image in masks)
        if missing := sorted(images - set(masks)):
            unmasked[name] = missing
        if lost := next((line for line, own in found.items() if not own), None):
            layout.problems.append(f"{path} names {lost}, and there is no such picture in {layout.folder}.")
        if vague := next((line for line, own in found.items() if len(own) > 1), None):
            one, other = found[vague][:2]
            layout.problems.append(
                f"{path} names {vague}, which may be {one} or {other}; write more of the path there."
            )
    if splits:
        listed = {image for own in splits.values() for image, _ in own} | {i for own in unmasked.values() for i in own}
        layout.unlisted = [image for image in layout.pictures() if image not in listed]
        if layout.unlisted:
            layout.notes.append(
                f"{len(layout.unlisted)} pictures of {layout.folder} are in none of the lists of splits, "
                f"{layout.unlisted[0]} among them."
            )
        layout.splits, layout.unmasked = splits, unmasked


def _lines(path: Path) -> list[str]:
    """The lines of a list that are not empty, as UTF-8 or, with a mark of byte order, UTF-16."""
    content = path.read_bytes()
    text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _named(line: str, by_name: dict[str, list[Path]]) -> list[Path]:
    """The pictures that a line of a list may mean, by as much of the path as it states."""
    for text in (line, line.split()[0]):  # some lists have a second column
        stated = Path(unicodedata.normalize("NFC", text))
        if found := by_name.get(bare_name(stated)):
            same = [_common_end(path.parent, stated.parent) for path in found]
            return [path for path, n in zip(found, same) if n == max(same)]
    return []


def _common_end(one: Path, other: Path) -> int:
    """Number of folders in which two paths end alike."""
    alike = [a == b for a, b in zip(one.parts[::-1], other.parts[::-1])]
    return [*alike, False].index(False)


def _read_names(layout: Layout) -> None:
    """Names and colours of classes, from the files that nnU-Net and VOC's exporters write."""
    described = layout.folder / "dataset.json"
    if described.is_file() and isinstance(read := read_json(described), dict) and isinstance(read.get("labels"), dict):
        labels = read["labels"]
        named = {int(v): k for k, v in labels.items() if isinstance(v, int)}
        named = named or {int(k): v for k, v in labels.items() if k.isdecimal() and isinstance(v, str)}  # version 1
        named = {i: name for i, name in named.items() if name != "ignore"}
        if sorted(named) == list(range(len(named))) and len(named) > 1:
            layout.label_names = [named[i] for i in range(len(named))]
    colors = layout.folder / "labelmap.txt"
    if colors.is_file():
        lines = [line for line in colors.read_text("utf-8", errors="replace").splitlines() if line[:1] not in ("#", "")]
        found = [re.match(r"(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:|$)", line) for line in lines]
        if any(found) and not all(found):
            line = lines[found.index(None)]
            layout.problems.append(f"{colors} has the line {line!r}, and name:red,green,blue:: is expected; repair it.")
        elif found and all(found):
            layout.label_names = [line[1] for line in found if line]
            layout.palette = [[int(line[i]) for i in (2, 3, 4)] for line in found if line]
