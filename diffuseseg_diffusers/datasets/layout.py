# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a folder of pictures and masks holds, and what is said where that cannot be known."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ..images.image_processor import warn_once
from ..jobs.errors import UserError
from .folder_names import split_of


logger = logging.getLogger(__name__)

UNDERSTOOD = (
    "images/ with masks/ (or labels/, annotations/) of the same names; both with folders train/, val/, test/ above or "
    "in them; x.jpg beside x_mask.png, x.npy or a mask x.png; Pascal VOC (JPEGImages, SegmentationClass, ImageSets), "
    "nnU-Net (imagesTr, labelsTr), MMSegmentation (img_dir, ann_dir), Cityscapes (leftImg8bit, gtFine)"
)
ALL = "all"  # the split of a folder without splits
PICTURES = "pictures alone"

Pair: TypeAlias = tuple[Path, Path]


@dataclass
class Layout:
    """What a folder of pictures, and of masks perhaps, holds.

    Args:
        folder (`Path`): Where it is.
        kind (`str`): What it looks like, for people: "images/ and masks/", "pictures alone", ….
        splits (`dict`): Of each split, by the name that it has there, its pictures with their masks, sorted; of a
            folder without splits one that is called "all".
        unmasked (`dict`): Of each split, the pictures without a mask.
        unlisted (`list` of `Path`): Pictures that the lists of splits do not name.
        unused (`list` of `Path`): Masks without a picture, and those of another kind than is read.
        ignored (`dict`): Files of formats that are not read: how many of each suffix.
        notes (`list` of `str`): What was guessed or left out, a line each.
        problems (`list` of `str`): What has no right reading, a sentence each.
        label_names (`list` of `str`, *optional*), palette (`list`, *optional*): Of the classes, where the layout's own
            files name them.
    """

    folder: Path
    kind: str = PICTURES
    splits: dict[str, list[Pair]] = field(default_factory=dict)
    unmasked: dict[str, list[Path]] = field(default_factory=dict)
    unlisted: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    label_names: list[str] | None = None
    palette: list[list[int]] | None = None

    @property
    def has_pairs(self) -> bool:
        """Whether any picture has a mask."""
        return any(self.splits.values())

    @property
    def names(self) -> list[str]:
        """Names of the splits, those of pictures without masks included."""
        return sorted({*self.splits, *self.unmasked})

    def pictures(self, split: str | None = None) -> list[Path]:
        """The pictures of a split, or of all, with and without masks, sorted.

        Raises:
            UserError: There is no such split.
        """
        names = self.names if split is None else [self.split(split)]
        found = [image for name in names for image, _ in self.splits.get(name, [])]
        found += self.unlisted if split is None else []
        return sorted({*found, *(image for name in names for image in self.unmasked.get(name, []))})

    def pairs(self, split: str) -> list[Pair]:
        """The pictures of a split with their masks.

        Raises:
            UserError: There is no such split, or one of its pictures has no mask, or none that is surely its own.
        """
        if self.problems:
            raise UserError(f"{self.problems[0]} {self.advice}")
        name = self.split(split)
        lonely, found = self.unmasked.get(name, []), self.splits.get(name, [])
        if lonely:
            many = f" ({len(lonely)} of {len(lonely) + len(found)} have none)" if len(lonely) > 1 else ""
            raise UserError(
                f"{lonely[0]} has no mask of the same name in {self.folder}, read as {self.kind}{many}; add it, or "
                f"move the picture elsewhere. {self.advice}"
            )
        return found

    def split(self, wanted: str) -> str:
        """The name that a split has in this folder: `val` for `validation`, `train2017` for `train`, ….

        Raises:
            UserError: There is none, or several; names those that there are.
        """
        names = self.names
        same = [name for name in names if name == wanted] or [n for n in names if n.lower() == wanted.lower()]
        same = same or [name for name in names if split_of(wanted) and split_of(name) == split_of(wanted)]
        if len(same) == 1:
            return same[0]
        if not same and ALL in names and (len(names) == 1 or split_of(wanted) == "train"):
            if len(names) == 1 and wanted not in ("train", ALL):
                logger.warning(f"{self.folder} has no splits: all of its images are taken for {wanted!r}.")
            elif len(names) > 1:
                logger.warning(f"The pictures of {self.folder} that are of no split are taken for {wanted!r}.")
            return ALL
        raise UserError(
            f"The dataset {self.folder} has {'several splits' if same else 'no split'} {wanted!r}; it has "
            f"{', '.join(map(repr, same or names))}. {self.advice}"
        )

    @property
    def advice(self) -> str:
        """Where to look, the last sentence of a refusal."""
        return f"`diffuseseg inspect {self.folder}` shows what was understood."

    def refusal(self) -> UserError:
        """The error for a folder without masks that are understood: what is understood, and what was found."""
        found = f"{len(self.pictures())} pictures" + (f" and {len(self.unused)} masks" if self.unused else "")
        found += "".join(f", {number} files {suffix}" for suffix, number in list(self.ignored.items())[:5])
        folders = sorted({p.relative_to(self.folder).parent.as_posix() for p in self._files})
        return UserError(
            f"{self.folder} holds {found} in {', '.join(folders[:8]) or 'no folder'}{', …' * (len(folders) > 8)}, and "
            f"no layout of pictures with masks that is understood: {UNDERSTOOD}; or annotations of other programs "
            f"(--annotations), or a dataset with columns (Parquet, metadata.csv). {self.advice}"
        )

    @property
    def _files(self) -> list[Path]:
        return [*self.pictures(), *self.unused]


def left_out(layout: Layout) -> list[str]:
    """What was guessed or left out of a folder whose pictures are read without their masks, a line each."""
    masks = len(layout.unused) + sum(map(len, layout.splits.values()))
    line = f"{masks} pictures of {layout.folder} are masks ({layout.kind}), and are left out."
    return [line, *layout.notes] if masks else list(layout.notes)


def report(layout: Layout) -> None:
    """Logs what was guessed or left out of such a folder, once."""
    for line in left_out(layout):
        warn_once(line)
