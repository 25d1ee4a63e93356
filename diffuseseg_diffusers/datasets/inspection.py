# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What was understood of a dataset: its pictures, masks, splits, and what does not fit."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..images.channels import full_range
from ..images.image_processor import default_palette, unnamed_classes
from ..images.masks import picture_values
from ..jobs.errors import UserError
from .columns import MissingColumnError, cell_name, decode_cell, split_names
from .find_labeled import find_annotated, load_data
from .folder_names import split_of
from .labeled import LabeledImages
from .layout import UNDERSTOOD, Layout
from .layouts import find_layout, is_described
from .picture import READ_WHOLE, Picture, read_picture, view_step
from .unlabeled import evenly_spread, load_unlabeled


LOOKED_AT = 100  # masks whose colours are counted
SAID = 3  # errors of pictures that are said; the others are counted
VALUES = 12  # values of refused masks that are listed
FEW = 0.125  # share of the range of a type, below which its values are told to be few
REFUSED = "`diffuseseg fit` refuses this as it stands:"
RARE = 253  # stands for pixels without a label where all other values are shown, 255 too


@dataclass
class View:
    """A small rendering of an image and its mask.

    Args:
        picture ([`Picture`]): What it shows.
        image (`np.ndarray`): `[H, W, 3]` uint8.
        mask (`np.ndarray`, *optional*): `[H, W]` uint8 class ids.
    """

    picture: Picture
    image: np.ndarray
    mask: np.ndarray | None


@dataclass
class ClassShare:
    """How much of the masks a class covers.

    Args:
        id (`int`), name (`str`): The class.
        pixels (`int`): Its pixels.
        share (`float`): Its share of all pixels with a label, 0 to 1.
        images (`int`): Images that show it.
    """

    id: int
    name: str
    pixels: int
    share: float
    images: int


@dataclass
class Inspection:
    """What was understood of a dataset.

    Args:
        dataset (`str`), layout (`str`): Its name, and how its files are arranged.
        mask_format (`str`): How masks were read; empty without masks.
        pictures (`list` of [`Picture`]): All images, split after split.
        label_names (`list[str]`), palette (`list[list[int]]`): Names of the classes and their colours; empty without
            masks.
        ignore_index (`int`): Id of pixels without a label.
        lonely_images, unused_masks (`list[str]`): Images without a mask, and masks that are not read.
        left_out (`dict[str, int]`): Suffixes of files that were not read, and their number.
        by_value (`bool`): Whether masks are refused, and their values stand in for classes.
        refusals (`list[str]`): Why `fit` would refuse a split.
        notes (`list[str]`): What else was guessed or noticed of the dataset as a whole.
    """

    dataset: str
    layout: str = ""
    mask_format: str = ""
    pictures: list[Picture] = field(default_factory=list)
    label_names: list[str] = field(default_factory=list)
    palette: list[list[int]] = field(default_factory=list)
    ignore_index: int = 255
    lonely_images: list[str] = field(default_factory=list)
    unused_masks: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    by_value: bool = False
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split."""
        return dict(Counter(picture.split for picture in self.pictures))

    @property
    def unions(self) -> dict[str, list[str]]:
        """Splits that hold what others hold together, such as `trainval` of Pascal VOC, and those others."""
        held = {s: {(p.name, p.digest) for p in self.pictures if p.split == s and p.digest} for s in self.splits}
        found = {}
        for split, own in held.items():
            parts = [other for other, theirs in held.items() if theirs and theirs < own]
            if parts and own == set().union(*(held[part] for part in parts)):
                found[split] = parts
        return found

    @property
    def _counted(self) -> list[Picture]:
        """The images, each once: without those of splits that hold what others hold."""
        twice = self.unions
        return [picture for picture in self.pictures if picture.split not in twice]

    @property
    def classes(self) -> list[ClassShare]:
        """How much of the masks each class covers; empty if none could be read."""
        counted: Counter[int] = Counter()
        own = self._counted
        for picture in own:
            counted.update(picture.classes)
        labelled = sum(n for i, n in counted.items() if i != self.ignore_index)
        if not counted:
            return []
        return [
            ClassShare(i, name, counted[i], counted[i] / max(1, labelled), sum(i in p.classes for p in own))
            for i, name in enumerate(self.label_names)
            if not self.by_value or (counted[i] and i != self.ignore_index)
        ]

    @property
    def ignored_share(self) -> float:
        """Share of all pixels of masks that have no label, 0 to 1."""
        own = self._counted
        every = sum(sum(p.classes.values()) for p in own)
        return sum(p.classes.get(self.ignore_index, 0) for p in own) / max(1, every)

    @property
    def duplicates(self) -> list[list[str]]:
        """Images of the same content: `split/name` of each."""
        by_digest: dict[str, list[str]] = {}
        for picture in self._counted:
            if picture.digest:
                by_digest.setdefault(picture.digest, []).append(f"{picture.split}: {picture.name}")
        return [names for names in by_digest.values() if len(names) > 1]

    @property
    def refused(self) -> bool:
        """Whether `fit` refuses the masks, or one of the images."""
        return bool(self.refusals or (self.label_names and any(picture.error for picture in self.pictures)))

    @property
    def warnings(self) -> list[str]:
        """What does not fit or was guessed, a sentence each; refusals first."""
        found = list(self.refusals)
        errors = list(dict.fromkeys(picture.error for picture in self.pictures if picture.error))
        found += errors[:SAID]
        found += [f"{_number(errors[SAID:], 'more image')} cannot be used."] * (len(errors) > SAID)
        across = [d for d in self.duplicates if len({name.partition(": ")[0] for name in d}) > 1]
        within = [d for d in self.duplicates if d not in across]
        for where, groups in (("is in several splits", across), ("comes twice", within)):
            found += [f"The same image {where}: {_some([' = '.join(d) for d in groups])}."] * bool(groups)
        if self.lonely_images:
            found.append(f"{_number(self.lonely_images, 'image')} without a mask: {_some(self.lonely_images)}.")
        absent = [c.name for c in self.classes if not c.images]
        if absent and len(absent) < len(self.label_names):
            found.append(f"No mask shows {_some(absent, 10)}.")
        found += [
            f"{split} holds the images of {' and '.join(of)}, which count once." for split, of in self.unions.items()
        ]
        found += self._intensity_warnings()
        notes = Counter(note for picture in self.pictures for note in dict.fromkeys(picture.notes))
        return found + self.notes + list(notes)

    def _intensity_warnings(self) -> list[str]:
        """Types of values that have no range of their own, or fill little of it, and what to type."""
        found = []
        for dtype in sorted({p.dtype for p in self.pictures if p.dtype}):
            own = [p for p in self.pictures if p.dtype == dtype and p.low is not None and p.high is not None]
            low, high = min((p.low for p in own), default=0.0), max((p.high for p in own), default=1.0)
            said = f"Values of {dtype} from {low:g} to {high:g}"
            advice = "pass --intensity_percentiles 0.5 99.5, or --intensity_window LOW HIGH, to `fit` and `train-ddpm`."
            full = full_range(dtype)
            if full is None and not (np.dtype(dtype).kind == "f" and 0 <= low <= high <= 1):
                found.append(f"{said} have no range of their own: {advice}")
            elif full is not None and np.dtype(dtype).itemsize > 1 and high - low < FEW * (full[1] - full[0]):
                share = (high - low) / (full[1] - full[0])
                found.append(f"{said} fill {share:.1%} of the range, and the model sees little contrast: {advice}")
        return found

    def split_facts(self) -> dict[str, tuple[str, ...]]:
        """For people, of each split: number of images, sizes, kinds, values, and sizes of pixels."""
        facts: dict[str, tuple[str, ...]] = {}
        for split, number in self.splits.items():
            own = [p for p in self.pictures if p.split == split and p.dtype]
            lows, highs = [p.low for p in own if p.low is not None], [p.high for p in own if p.high is not None]
            values = f"values {min(lows):g} to {max(highs):g}" if lows else ""
            sizes = sorted({tuple(p.pixel_size) for p in own if p.pixel_size})
            pixels = "pixels of " + _some([_length(h, w) for h, w in sizes]) if sizes else ""
            facts[split] = (str(number), _counts(p.size for p in own), _counts(p.kind for p in own), values, pixels)
        return facts

    def as_json(self) -> dict:
        """Everything, as JSON holds it."""
        own = asdict(self)
        derived = ("splits", "duplicates", "warnings", "ignored_share")
        return own | {name: getattr(self, name) for name in derived} | {"classes": [asdict(c) for c in self.classes]}

    def as_text(self) -> str:
        """A summary for people, a line for each fact."""
        lines = [f"{self.dataset}: {self.layout}".rstrip(": ")]
        for split, (number, *facts) in self.split_facts().items():
            lines.append(
                f"  {split}: {number} image{'s' * (number != '1')}; {'; '.join(fact for fact in facts if fact)}"
            )
        if self.classes:
            kind = f"{self.mask_format}, by value" if self.by_value else self.mask_format
            lines.append(f"  masks: {kind}; {self.ignored_share:.1%} of pixels without a label")
            width, most = max(len(c.name) for c in self.classes), VALUES if self.by_value else len(self.classes)
            lines += [
                f"    {c.id:>3} {c.name:<{width}} {c.share:7.2%} of pixels, in {c.images} image{'s' * (c.images != 1)}"
                for c in self.classes[:most]
            ]
            lines += [f"        and {len(self.classes) - most} more values"] * (len(self.classes) > most)
        elif self.pictures:
            lines.append("  masks: none is read" if self.refused else f"  no masks, which `fit` needs: {UNDERSTOOD}")
        if self.refused:
            lines.append(REFUSED)
        return "\n".join([*lines, *(f"! {line}" for line in self.warnings)])


def inspect_dataset(config: Any, num_examples: int) -> tuple[Inspection, list[View], dict[str, LabeledImages]]:
    """Reads all images and masks of a dataset, as `segment` and `fit` read them.

    Args:
        config (`Config`): With the fields of `tasks.inspect.InspectConfig`.
        num_examples (`int`): Views of each split to keep, evenly spread.

    Returns:
        `(found, views, splits)`: what was understood, some of the pictures, and the splits that have masks.

    Raises:
        UserError: There is no such dataset or split.
    """
    name, found = config.dataset_name, Inspection(config.dataset_name)
    layout = annotated = None
    if os.path.isdir(name) and (config.annotations is not None or not is_described(Path(name))):
        layout = find_layout(Path(name))
        try:
            annotated = find_annotated(layout, config.annotations, config.annotation_format)
            layout = annotated.layout if annotated is not None else layout
        except UserError as error:
            layout.problems.append(str(error))
        found.layout, found.left_out, found.notes = layout.kind, layout.ignored, list(layout.notes)
        found.refusals = list(layout.problems)
        if layout.unused and not layout.has_pairs and annotated is None and not layout.problems:
            found.refusals.append(str(layout.refusal()).removesuffix(layout.advice).strip())
        found.lonely_images = [str(p) for own in layout.unmasked.values() for p in own] if layout.has_pairs else []
        found.unused_masks = list(map(str, layout.unused))
    views: list[View] = []
    splits: dict[str, LabeledImages] = {}
    for split in _split_names(config, layout):
        try:
            if config.split is None and annotated is None and layout is not None and _is_unlabelled(layout, split):
                found.notes.append(f"No image of {split} has a mask: it can be segmented, not fitted or measured.")
                labelled = None
            else:
                labelled = _labelled(config, layout, split, splits)
        except UserError as error:
            refusal = str(error).removesuffix(layout.advice).strip() if layout else str(error)
            found.refusals += [refusal] * (refusal not in found.refusals)
            labelled = _by_value(config, split)
            found.by_value = labelled is not None
            if labelled is None and (colors := _colors(config, split)):
                found.notes.append(f"Colours of the masks of {split}: {colors}.")
        if labelled is not None:
            splits[split] = labelled
            images, column = labelled.dataset, labelled.image_column
        else:
            images, column = _unlabelled(config, layout, split)
        if layout is None:
            found.layout = f"a dataset with the columns {column}" + (f" and {labelled.mask_column}" if labelled else "")
        shown = set(evenly_spread(len(images), num_examples))
        for i in tqdm(range(len(images)), f"Reading {split}", unit="image", leave=False, disable=None):
            view = _view(images[i][column], split, f"row {i}", config, labelled, i)
            found.pictures.append(view.picture)
            if i in shown and view.image.size:
                views.append(view)
    _add_classes(found, config, splits)
    found.mask_format = annotated.format if annotated is not None else found.mask_format
    return found, views, splits


def _split_names(config: Any, layout: Layout | None) -> list[str]:
    """The splits to read, those for training first."""
    if config.split is not None:
        return [config.split]
    if layout is not None and layout.names:
        names = layout.names
    else:
        kept = {"cache_dir": config.cache_dir, "revision": config.dataset_revision}
        names = split_names(config.dataset_name, config.dataset_config_name, **kept)
    return sorted(names, key=lambda name: (split_of(name) != "train", name))


def _is_unlabelled(layout: Layout, split: str) -> bool:
    """Whether a split has no mask at all while others have, as `imagesTs` of nnU-Net: `fit` does not read it."""
    return layout.has_pairs and not layout.problems and not layout.splits.get(split)


def _labelled(
    config: Any, layout: Layout | None, split: str, before: Mapping[str, LabeledImages]
) -> LabeledImages | None:
    """The images of a split with their masks, with as many classes as those of the first; `None` without masks.

    Raises:
        UserError: `fit` would refuse them.
    """
    if layout is not None and not layout.has_pairs and not layout.problems:
        return None
    how: dict[str, Any] = {}
    if before:
        how["num_classes"] = next(iter(before.values())).num_classes
    try:
        return load_data(config, split, **how)
    except MissingColumnError:
        if config.mask_column is not None:
            raise
        return None


def _by_value(config: Any, split: str) -> LabeledImages | None:
    """The images of a split with masks of which every value is shown as if it were a class; `None` if none is read."""
    try:
        names = [f"value {i}" for i in range(256)]
        plain = replace(config, mask_format="index", palette=None, nearest_color=False, ignore_index=RARE)
        found = load_data(plain, split, label_names=names)
        found[0]  # raises for masks in colour
        return found
    except UserError:
        return None


def _colors(config: Any, split: str) -> str:
    """The commonest colours of the first masks, with their shares; empty if masks have none."""
    found: Counter[str] = Counter()
    try:
        plain = replace(config, mask_format="instances", palette=None, nearest_color=False)
        labelled = load_data(plain, split, label_names=["background", "object"])
        for cell in labelled.dataset[:LOOKED_AT][labelled.mask_column]:
            values = picture_values(decode_cell(cell, "")[0], colors=True)
            if values.ndim < 3 or values.dtype != np.uint8:
                continue
            colors, counts = np.unique(values.reshape(-1, values.shape[-1]), axis=0, return_counts=True)
            found.update({"#" + bytes(c.tolist()).hex(): int(n) for c, n in zip(colors[:, :3], counts)})
    except UserError:
        return ""
    return ", ".join(f"{color} {n / found.total():.1%}" for color, n in found.most_common(20))


def _unlabelled(config: Any, layout: Layout | None, split: str) -> tuple[Any, str]:
    """The images of a split, and the name of their column."""
    if layout is not None:
        return [{"image": str(path)} for path in layout.pictures(split)], "image"
    where = (config.dataset_name, config.dataset_config_name, split)
    kept = {"cache_dir": config.cache_dir, "revision": config.dataset_revision}
    return load_unlabeled(*where, image_column=config.image_column, **kept)


def _view(cell: object, split: str, where: str, config: Any, labelled: LabeledImages | None, i: int) -> View:
    """What one image and its mask are; of those that cannot be read, why."""
    try:
        picture, image = read_picture(cell, split, where, config.axes, config.slice_axis)
    except UserError as error:
        return View(Picture(split, cell_name(cell, where), error=str(error)), np.zeros((0, 0, 3), np.uint8), None)
    mask = None
    if labelled is not None:
        try:
            mask = _read_mask(picture, labelled, i)
        except UserError as error:
            picture.error = str(error)
    return View(picture, image, mask)


def _add_classes(found: Inspection, config: Any, splits: Mapping[str, LabeledImages]) -> None:
    """Names and colours of the classes, and how masks were read."""
    if not splits:
        return
    first = next(iter(splits.values()))
    found.label_names = first.label_names or unnamed_classes(first.num_classes)
    found.palette = first.palette or default_palette(first.num_classes)
    found.mask_format, found.ignore_index = config.mask_format, first.ignore_index


def _read_mask(picture: Picture, labelled: LabeledImages, i: int) -> np.ndarray:
    """Counts the classes of a mask; returns every so many rows and columns of it, of volumes the middle plane."""
    counts, step = np.zeros(256, np.int64), view_step(picture)
    if picture.planes == 1 and picture.height * picture.width <= READ_WHOLE:
        whole = labelled[i].mask
        counts += np.bincount(whole.ravel(), minlength=256)
        shown = whole[::step, ::step]
    else:
        shown = np.full((-(-picture.height // step), -(-picture.width // step)), labelled.ignore_index, np.uint8)
        for plane, window, part in labelled.mask_parts(i):
            counts += np.bincount(part.ravel(), minlength=256)
            if plane == picture.planes // 2:
                few = part[::step, ::step]
                top, left = window.top // step, window.left // step
                shown[top : top + few.shape[0], left : left + few.shape[1]] = few
    picture.classes = {id: int(n) for id, n in enumerate(counts) if n}
    return shown


def _counts(values: Iterable[str]) -> str:
    counted = Counter(values).most_common()
    if len(counted) < 2:
        return counted[0][0] if counted else ""
    rest = f", {len(counted) - 3} more" if len(counted) > 3 else ""
    return ", ".join(f"{value} ({number})" for value, number in counted[:3]) + rest


def _length(height: float, width: float) -> str:
    """The size of a pixel of micrometres in a unit that suits it."""
    longest = max(height, width)
    unit, scale = ("m", 1e6) if longest >= 1e5 else ("mm", 1e3) if longest >= 100 else ("µm", 1.0)
    return f"{height / scale:g} × {width / scale:g} {unit}"


def _number(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
