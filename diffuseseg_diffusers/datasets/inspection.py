# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What was understood of a dataset: its pictures, masks, splits, and what does not fit."""

import hashlib
import io
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from tqdm.auto import tqdm

from ..images.channels import to_rgb
from ..images.formats.base import Raster, Window
from ..images.formats.cells import open_cell
from ..images.image_processor import default_palette, unnamed_classes
from ..images.masks import picture_values
from ..jobs.errors import UserError
from ..jobs.files import write_json
from .columns import MissingColumnError, decode_cell, split_names
from .labeled import LabeledImages, load_data
from .layouts import Layout, bare_name, find_layout, is_described
from .unlabeled import evenly_spread, load_unlabeled


READ_WHOLE = 2**26  # pixels up to which a picture is read whole; of larger ones the coarsest level is
LOOKED_AT = 100  # masks whose colours are counted
SHOWN = 512  # longest side of the pictures of a page, in pixels


@dataclass
class Picture:
    """What was read of one image, and of its mask if it has one.

    Args:
        split (`str`), name (`str`): Where it is: its path, or its row.
        height, width, planes (`int`): Its size; height and width in pixels.
        channels (`list[str]`): Names of the channels.
        dtype (`str`): NumPy's name of the type of the values.
        low, high (`float`, *optional*): Least and greatest finite value; of pictures of more than 2^26 pixels, of the
            coarsest level.
        pixel_size (`list[float]`, *optional*): Height and width of a pixel in µm, where the file says it.
        classes (`dict[int, int]`): Pixels of each class id of the mask, ignored ones included.
        notes (`list[str]`): What the reader guessed, dropped or changed.
        error (`str`): Why the image or its mask cannot be used; empty if both can.
        digest (`str`): SHA-256 of the decoded pixels.
    """

    split: str
    name: str
    height: int = 0
    width: int = 0
    planes: int = 1
    channels: list[str] = field(default_factory=list)
    dtype: str = ""
    low: float | None = None
    high: float | None = None
    pixel_size: list[float] | None = None
    classes: dict[int, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    digest: str = ""

    @property
    def size(self) -> str:
        """Width × height, and planes if there are several, for people."""
        return f"{self.width} × {self.height}" + (f" × {self.planes} planes" if self.planes > 1 else "")

    @property
    def kind(self) -> str:
        """Type and channels, for people."""
        return f"{self.dtype} {'+'.join(self.channels)}"


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
        lonely_images, lonely_masks (`list[str]`): Images without a mask, and masks without an image.
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
    lonely_masks: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    by_value: bool = False
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def splits(self) -> dict[str, int]:
        """Number of images of each split."""
        return dict(Counter(picture.split for picture in self.pictures))

    @property
    def classes(self) -> list[ClassShare]:
        """How much of the masks each class covers."""
        counted: Counter[int] = Counter()
        for picture in self.pictures:
            counted.update(picture.classes)
        labelled = sum(n for i, n in counted.items() if i != self.ignore_index)
        return [
            ClassShare(i, name, counted[i], counted[i] / max(1, labelled), sum(i in p.classes for p in self.pictures))
            for i, name in enumerate(self.label_names)
            if counted[i] or not self.by_value
        ]

    @property
    def ignored_share(self) -> float:
        """Share of all pixels of masks that have no label, 0 to 1."""
        every = sum(sum(p.classes.values()) for p in self.pictures)
        return sum(p.classes.get(self.ignore_index, 0) for p in self.pictures) / max(1, every)

    @property
    def duplicates(self) -> list[list[str]]:
        """Images of the same content: `split/name` of each."""
        by_digest: dict[str, list[str]] = {}
        for picture in self.pictures:
            if picture.digest:
                by_digest.setdefault(picture.digest, []).append(f"{picture.split}: {picture.name}")
        return [names for names in by_digest.values() if len(names) > 1]

    @property
    def warnings(self) -> list[str]:
        """What does not fit or was guessed, a sentence each; refusals first."""
        found = list(self.refusals)
        found += [picture.error for picture in self.pictures if picture.error]
        across = [d for d in self.duplicates if len({name.partition(": ")[0] for name in d}) > 1]
        within = [d for d in self.duplicates if d not in across]
        for where, groups in (("is in several splits", across), ("comes twice", within)):
            found += [f"The same image {where}: {_some([' = '.join(d) for d in groups])}."] * bool(groups)
        if self.lonely_images:
            found.append(f"{_number(self.lonely_images, 'image')} without a mask: {_some(self.lonely_images)}.")
        absent = [c.name for c in self.classes if not c.images]
        if absent and len(absent) < len(self.label_names):
            found.append(f"No mask shows {_some(absent, 10)}.")
        notes = Counter(note for picture in self.pictures for note in dict.fromkeys(picture.notes))
        return found + self.notes + list(notes)

    def split_facts(self) -> dict[str, tuple[str, ...]]:
        """For people, of each split: number of images, sizes, kinds, values, and sizes of pixels."""
        facts: dict[str, tuple[str, ...]] = {}
        for split, number in self.splits.items():
            own = [p for p in self.pictures if p.split == split and p.dtype]
            lows, highs = [p.low for p in own if p.low is not None], [p.high for p in own if p.high is not None]
            values = f"values {min(lows):g} to {max(highs):g}" if lows else ""
            sizes = sorted({tuple(p.pixel_size) for p in own if p.pixel_size})
            pixels = "pixels of " + _some([f"{h:g} × {w:g} µm" for h, w in sizes]) if sizes else ""
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
        if self.label_names:
            kind = f"{self.mask_format}, by value" if self.by_value else self.mask_format
            lines.append(f"  masks: {kind}; {self.ignored_share:.1%} of pixels without a label")
            width = max(len(c.name) for c in self.classes)
            lines += [
                f"    {c.id:>3} {c.name:<{width}} {c.share:7.2%} of pixels, in {c.images} images" for c in self.classes
            ]
        elif self.pictures:
            lines.append("  masks: none is read" if self.refusals else "  no masks")
        if self.refusals:
            lines.append("`diffuseseg fit` refuses this as it stands:")
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
    layout = None
    if os.path.isdir(name) and not is_described(Path(name)):
        layout = find_layout(Path(name))
        found.layout, found.left_out, found.notes = layout.kind, layout.ignored, list(layout.notes)
        found.refusals = list(layout.problems)
        found.lonely_images = [str(p) for own in layout.unmasked.values() for p in own] if layout.has_pairs else []
        found.lonely_masks = list(map(str, layout.unused))
    views: list[View] = []
    splits: dict[str, LabeledImages] = {}
    for split in _split_names(config, layout):
        try:
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
    return sorted(names, key=lambda name: (not name.lower().startswith("train"), name))


def _labelled(
    config: Any, layout: Layout | None, split: str, before: Mapping[str, LabeledImages]
) -> LabeledImages | None:
    """The images of a split with their masks, with as many classes as those of the first; `None` without masks.

    Raises:
        UserError: `fit` would refuse them.
    """
    if layout is not None and not layout.has_pairs and not layout.problems:
        return None
    how: dict[str, Any] = {"axes": config.axes, "slice_axis": config.slice_axis}
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
        plain = replace(config, mask_format="index", palette=None, label_names=names, ignore_index=256)
        found = load_data(plain, split, axes=config.axes, slice_axis=config.slice_axis)
        found[0]  # raises for masks in colour
        return found
    except UserError:
        return None


def _colors(config: Any, split: str) -> str:
    """The commonest colours of the first masks, with their shares; empty if masks have none."""
    found: Counter[str] = Counter()
    try:
        labelled = load_data(replace(config, mask_format="instances", palette=None), split)
        for cell in labelled.dataset[:LOOKED_AT][labelled.mask_column]:
            values = picture_values(decode_cell(cell, "")[0], colors=True)  # [H,W,3]
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
        return View(Picture(split, _named(cell, where), error=str(error)), np.zeros((0, 0, 3), np.uint8), None)
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


def write_clean_copy(splits: Mapping[str, LabeledImages], found: Inspection, folder: Path) -> None:
    """Writes images as they are and masks of class ids: `SPLIT/images`, `SPLIT/masks`, and `id2label.json`.

    Masks have the suffix of their image's format: palette PNGs for plain pictures.

    Args:
        splits (mapping of `str` to [`LabeledImages`]), found ([`Inspection`]): From [`inspect_dataset`].
        folder (`Path`): An empty folder.

    Raises:
        UserError: An image or mask cannot be read.
    """
    for split, labelled in splits.items():
        images, masks = (folder / split / name for name in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir()
        taken: set[str] = set()
        for i in tqdm(range(len(labelled)), f"Writing {split}", unit="image", leave=False, disable=None):
            cell, where = labelled.dataset[i][labelled.image_column], f"row {i}"
            name = _free(bare_name(Path(_named(cell, f"{i:05d}"))), taken)
            with open_cell(cell, where, labelled.axes, labelled.slice_axis) as raster:
                _copy_picture(cell, raster, images, name)
                labels = partial(_window_of, _mask_planes(labelled, i, raster))
                raster.write_labels(masks / (name + raster.mask_suffix), labels, np.dtype(np.uint8), found.palette)
    write_json(folder / "id2label.json", dict(enumerate(found.label_names)))


def _window_of(planes: np.ndarray, plane: int, window: Window) -> np.ndarray:
    return planes[plane][window.slices]


def _mask_planes(labelled: LabeledImages, i: int, raster: Raster) -> np.ndarray:
    """A whole mask, `[planes, H, W]` uint8."""
    if raster.planes == 1:
        return labelled[i].mask[None]
    planes = np.empty((raster.planes, raster.height, raster.width), np.uint8)
    for plane, window, part in labelled.mask_parts(i):
        planes[plane][window.slices] = part
    return planes


def _copy_picture(cell: object, raster: Raster, folder: Path, name: str) -> None:
    """Copies the file, folder or bytes of a cell."""
    path, data = (cell.get("path"), cell.get("bytes")) if isinstance(cell, Mapping) else (cell, None)
    if data is None and isinstance(path, str) and os.path.exists(path):
        suffix = Path(path).name[len(bare_name(Path(path))) :]
        copy = shutil.copytree if os.path.isdir(path) else shutil.copyfile
        copy(path, folder / (name + suffix))
    elif isinstance(data, bytes):
        with PIL.Image.open(io.BytesIO(data)) as image:
            suffix = "." + (image.format or "png").lower().replace("jpeg", "jpg")
        (folder / (name + suffix)).write_bytes(data)
    else:
        raise UserError(f"{raster.name} is not stored as a file, and cannot be copied; leave --fix out.")


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number behind it if another differs from it by case alone or not at all."""
    free = next(n for n in chain([name], (f"{name}_{k}" for k in count(2))) if n.lower() not in taken)
    taken.add(free.lower())
    return free


def _named(cell: object, where: str) -> str:
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return path if isinstance(path, str) else where


def _read_mask(picture: Picture, labelled: LabeledImages, i: int) -> np.ndarray:
    """Counts the classes of a mask; returns every so many rows and columns of it, of volumes the middle plane."""
    counts, step = np.zeros(256, np.int64), _step(picture)
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


def read_picture(cell: object, split: str, where: str, axes: str | None, slice_axis: str) -> tuple[Picture, np.ndarray]:
    """What a cell of an image column holds, opened as `segment` opens it, and a small rendering, `[H, W, 3]` uint8.

    Values that are not eight-bit are stretched in the rendering, from their 0.5th to their 99.5th percentile.

    Raises:
        UserError: It cannot be read.
    """
    with open_cell(cell, where, axes, slice_axis) as raster:
        level = 0 if raster.height * raster.width <= READ_WHOLE else len(raster.levels) - 1
        down, middle = raster.levels[level], raster.planes // 2
        window = Window(0, 0, max(1, int(raster.height / down)), max(1, int(raster.width / down)))
        digest, limits = hashlib.sha256(), []
        for plane in range(raster.planes):
            values = raster.read(plane, window, level)  # [C,h,w]
            digest.update(repr((values.shape, values.dtype.str)).encode())
            digest.update(values.tobytes())
            finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
            if finite.size:
                limits += [float(finite.min()), float(finite.max())]
            if plane == middle:
                rendering = _rendered(values, raster)
        picture = Picture(
            split=split,
            name=raster.name,
            height=raster.height,
            width=raster.width,
            planes=raster.planes,
            channels=list(raster.channels),
            dtype=str(raster.dtype),
            low=min(limits, default=None),
            high=max(limits, default=None),
            pixel_size=list(raster.pixel_size) if raster.pixel_size else None,
            notes=list(raster.notes),
            digest=digest.hexdigest(),
        )
    return picture, rendering


def _rendered(values: np.ndarray, raster: Raster) -> np.ndarray:
    step = _step(raster)
    shown = values[[i for i, name in enumerate(raster.channels) if name != "alpha"]]
    if values.dtype != np.uint8:
        shown = shown.astype(np.float32)
        low, high = np.nanpercentile(shown, (0.5, 99.5)) if np.isfinite(shown).any() else (0.0, 1.0)
        shown = np.nan_to_num((shown - low) / max(high - low, 1e-12)).clip(0, 1) * 255
    image = PIL.Image.fromarray(to_rgb(shown.astype(np.float32) / 255))
    return np.asarray(image.resize((-(-raster.width // step), -(-raster.height // step)), PIL.Image.Resampling.BOX))


def _step(size: Picture | Raster) -> int:
    """Every how many rows and columns a view has one; a power of two, as the parts of masks are."""
    return 2 ** max(0, math.ceil(math.log2(max(size.height, size.width) / SHOWN)))


def _counts(values: Iterable[str]) -> str:
    counted = Counter(values).most_common()
    if len(counted) < 2:
        return counted[0][0] if counted else ""
    rest = f", {len(counted) - 3} more" if len(counted) > 3 else ""
    return ", ".join(f"{value} ({number})" for value, number in counted[:3]) + rest


def _number(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
