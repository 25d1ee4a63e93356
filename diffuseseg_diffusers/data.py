# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labelled images from the Hub or from disk, checked as they are read."""

import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
from datasets import Dataset, Features, Image, IterableDataset, Value, get_dataset_config_names, load_dataset
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from .hub_errors import LOG_IN, explain_hub_error
from .image_processor import open_image


IMAGE_COLUMNS = ("image", "img", "pixel_values")
MASK_COLUMNS = ("mask", "label", "annotation", "labels", "segmentation_mask")
MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations", "annotation")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
MASK_FORMATS = ("index", "binary", "rgb")
_PICTURES = tuple(PIL.Image.registered_extensions())


@dataclass
class LabeledImage:
    """A picture with its mask.

    Args:
        image (`PIL.Image.Image`): The picture, `W` × `H`, any mode.
        mask (`np.ndarray`): `[H, W]` uint8, class ids; the dataset's `ignore_index` where there is no label.
        name (`str`): Where it came from, for messages: its path, or its row.
    """

    image: PIL.Image.Image
    mask: np.ndarray
    name: str


class LabeledImages:
    """A sequence of [`LabeledImage`] over a `datasets.Dataset`; decodes and checks one at a time.

    Args:
        dataset (`datasets.Dataset`): With a column of images and one of masks (images, or paths of `.npy` files).
        num_classes (`int`, *optional*): Number of classes; from `label_names`, else read from all the masks.
        label_names (sequence of `str`, *optional*): Names of the classes.
        palette (sequence of `[red, green, blue]`, *optional*): Their colours; needed for masks in colour.
        ignore_index (`int`, defaults to 255): Id of pixels without a label.
        mask_format (`str`, defaults to `"index"`):
            `"index"`: pixel values are class ids. `"binary"`: anything but 0 is class 1. `"rgb"`: colours of the
            palette, others are ignored.
        image_column, mask_column (`str`, *optional*): Columns to use; the usual names are found.

    Raises:
        ValueError: A column is missing, or the masks are not what `mask_format` says.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_classes: int | None = None,
        label_names: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = 255,
        mask_format: str = "index",
        image_column: str | None = None,
        mask_column: str | None = None,
    ):
        if mask_format not in MASK_FORMATS:
            raise ValueError(f"`mask_format` is one of {', '.join(MASK_FORMATS)}, got {mask_format!r}.")
        if mask_format == "rgb" and palette is None:
            raise ValueError("Masks in colour need the palette of the classes (`--palette`).")
        if isinstance(dataset, Mapping):
            raise ValueError(
                f"Give one split of the dataset, such as dataset[{next(iter(dataset))!r}]; it has several."
            )
        if not isinstance(dataset, Dataset):
            raise ValueError(f"Labelled images are a `datasets.Dataset`, not streamed; got {type(dataset).__name__}.")
        dataset = dataset.with_format(None)  # decoding and conversion are ours
        if len(dataset) == 0:
            raise ValueError("The dataset is empty: it has no images.")
        columns = dataset.column_names
        self.image_column = find_column(columns, image_column, IMAGE_COLUMNS, "image")
        self.mask_column = find_column(columns, mask_column, MASK_COLUMNS, "mask")
        for column in (self.image_column, self.mask_column):
            if isinstance(dataset.features[column], Image):
                dataset = dataset.cast_column(column, Image(decode=False))  # so that errors can say where
        self.dataset = dataset
        self.label_names = list(label_names) if label_names else None
        self.palette = [list(c) for c in palette] if palette is not None else None
        self.ignore_index = ignore_index
        self.mask_format = mask_format
        if num_classes is None and label_names:
            num_classes = len(label_names)
        if num_classes is None and mask_format == "rgb":
            num_classes = len(palette)
        if num_classes is None and mask_format == "binary":
            num_classes = 2
        self.num_classes = num_classes or self._count_classes()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> LabeledImage:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = self.dataset[index]
        image, name = decode_picture(row[self.image_column], f"row {index}")
        mask, mask_name = self._mask(row[self.mask_column], f"the mask of row {index}")
        if mask.shape != (image.height, image.width):
            raise ValueError(
                f"Image and mask differ in size: {name} is {image.width} × {image.height}, but {mask_name} is "
                f"{mask.shape[1]} × {mask.shape[0]} (width × height)."
            )
        wrong = np.setdiff1d(mask, [*range(self.num_classes), self.ignore_index])
        if len(wrong):
            hint = ""
            if set(np.unique(mask)) <= {0, 255}:
                hint = ' It looks like a binary mask: pass mask_format="binary" (`--mask_format binary`).'
            raise ValueError(
                f"The mask value {', '.join(map(str, wrong[:10]))} in {mask_name} is outside of the classes 0 to "
                f"{self.num_classes - 1} (and {self.ignore_index} for ignored pixels).{hint}"
            )
        return LabeledImage(image=image, mask=mask, name=name)

    def split(self, fraction: float, seed: int = 0) -> "tuple[LabeledImages, LabeledImages]":
        """Two parts at random, the second with `fraction` of the images (at least one in each).

        Raises:
            ValueError: There are not enough images, or the fraction is not between 0 and 1.
        """
        held_out = max(1, round(fraction * len(self)))
        if not 0 < fraction < 1 or held_out >= len(self):
            raise ValueError(f"Cannot hold out a fraction of {fraction} of {len(self)} images.")
        order = np.random.default_rng(seed).permutation(len(self))
        return self.select(sorted(order[held_out:])), self.select(sorted(order[:held_out]))

    def select(self, indices: Sequence[int]) -> "LabeledImages":
        """The images at these indices."""
        return LabeledImages(
            self.dataset.select(indices),
            self.num_classes,
            self.label_names,
            self.palette,
            self.ignore_index,
            self.mask_format,
            self.image_column,
            self.mask_column,
        )

    def _mask(self, value, where: str) -> tuple[np.ndarray, str]:
        """Decodes a mask to `[H, W]` uint8 class ids."""
        if isinstance(value, str) and value.endswith(".npy"):
            mask, where = _load_npy(value), value
        elif isinstance(value, (list, np.ndarray)):
            mask = np.asarray(value)
        else:
            image, where = decode_picture(value, where)
            # Modes "P" and "L" hold numbers; anything else in colour is for the palette to read.
            mask = np.asarray(image.convert("RGB") if self.mask_format == "rgb" else image)
        if self.mask_format == "rgb":
            return self._from_colors(mask, where), where
        if mask.ndim == 3 and (mask[..., :1] == mask).all() and mask.shape[-1] in (1, 3):
            mask = mask[..., 0]  # numbers saved as a grey RGB picture
        if mask.ndim != 2:
            raise ValueError(
                f"{where} has {mask.shape[-1]} channels, but masks have one, of class ids; for masks in colour pass "
                f'mask_format="rgb" with a palette (`--mask_format rgb --palette FILE`).'
            )
        if self.mask_format == "binary":
            return (mask != 0).astype(np.uint8), where
        if mask.dtype != bool and (mask.min() < 0 or mask.max() > 255 or (mask != mask.astype(np.uint8)).any()):
            raise ValueError(
                f"{where} holds values from {mask.min()} to {mask.max()}; class ids are integers 0 to 255."
            )
        return mask.astype(np.uint8), where

    def _from_colors(self, mask: np.ndarray, where: str) -> np.ndarray:
        keys = mask.astype(np.int64) @ [65536, 256, 1]  # [H,W]
        ids = np.full(keys.shape, self.ignore_index, np.uint8)
        for i, color in enumerate(self.palette):
            ids[keys == np.dot(color, [65536, 256, 1])] = i
        if (ids == self.ignore_index).all():
            found = [f"#{k:06x}" for k in np.unique(keys)[:10]]
            raise ValueError(f"No colour of {where} is in the palette; it has {', '.join(found)}.")
        return ids

    def _count_classes(self) -> int:
        found = set()
        for i, value in enumerate(self.dataset[self.mask_column]):
            found |= set(np.unique(self._mask(value, f"the mask of row {i}")[0]).tolist())
        if found <= {0, 255} and 255 in found:
            raise ValueError(
                'The masks hold only 0 and 255, which looks like binary masks: pass mask_format="binary" '
                "(`--mask_format binary`), or the names of the classes if 255 means ignored."
            )
        found.discard(self.ignore_index)
        count = max(found, default=0) + 1
        if count < 2 or len(found) < count / 2:
            raise ValueError(
                f"The masks hold the values {', '.join(map(str, sorted(found)))}, which are not class ids 0, 1, 2, …; "
                f"give the names of the classes (id2label.json) or convert the masks (`--mask_format`)."
            )
        return count


def load_labeled_images(
    name: str | os.PathLike,
    config_name: str | None = None,
    split: str = "train",
    label_names: Sequence[str] | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    **kwargs,
) -> LabeledImages:
    """Loads labelled images by Hub name or from a local folder.

    A folder may be anything `datasets` reads (Parquet, an image folder with a `metadata.csv` of `file_name` and
    `mask_file_name`), the published layout of the paper's datasets (images beside `.npy` masks of the same name), or
    two folders `images` and `masks`; the last two with or without a folder for each split above them.

    Args:
        name (`str` or path): Hub dataset or local folder.
        config_name (`str`, *optional*): Configuration of the dataset.
        split (`str`, defaults to `"train"`): Which part of it.
        label_names (sequence of `str`, *optional*): Names of the classes; from the dataset's `id2label.json` if there
            is one.
        cache_dir, token, revision: As in `datasets.load_dataset`.
        **kwargs: As in [`LabeledImages`].

    Returns:
        [`LabeledImages`]

    Raises:
        ValueError: There is no such dataset or split, it has no pictures, or its masks are not as expected.
    """
    name = os.fspath(name)
    local = os.path.isdir(name)
    if label_names is None:
        label_names = _label_names(name, local, cache_dir, token, revision)
    dataset = _from_folder(Path(name), split) if local else None
    if dataset is None:
        dataset = load_split(name, config_name, split, cache_dir=cache_dir, token=token, revision=revision)
    return LabeledImages(dataset, label_names=label_names, **kwargs)


def load_split(name: str, config_name: str | None, split: str, **kwargs) -> Dataset | IterableDataset:
    """`datasets.load_dataset` for one split of a Hub dataset or local folder, with errors that say what to do.

    Raises:
        ValueError: There is no such dataset, configuration or split.
    """
    local = os.path.isdir(name)
    if not local and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"There is no folder {name}.")
    if local and not any(Path(name).rglob("*.*")):
        raise ValueError(f"The folder {name} has no pictures in it.")
    try:
        return load_dataset(name, config_name, split=split, **kwargs)
    except Exception as error:
        reason = None if local else explain_hub_error(error)
        if reason is None and not local and isinstance(error, DatasetNotFoundError):
            reason = f"{str(error).splitlines()[0].rstrip('.')}; to see private and gated ones, {LOG_IN}"
        if reason is None and not isinstance(error, (ValueError, OSError)):
            raise
        where = "" if local else f"There is no folder {name}, and "
        raise ValueError(
            f"{where}{'T' if local else 't'}he dataset {name} cannot be loaded: {reason or error}."
        ) from error


def describe_dataset(name: str, config_name: str | None, split: str | None) -> dict:
    """What a report says about the dataset it is about: the name on the Hub, or that of the local folder alone."""
    local = os.path.isdir(name)
    name = os.path.basename(os.path.abspath(name)) if local else name
    return {"name": name, "on_hub": not local, "config": config_name, "split": split}


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
    """
    splits = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name in SPLITS] or ["train"]
    found = {split: dataset for split in splits if (dataset := _from_folder(folder, split)) is not None}
    features = Features({"image": Image(decode=False), "mask": Image(decode=False)})
    for split, dataset in found.items():
        rows = []
        for image, row in zip(dataset["image"], LabeledImages(dataset, label_names=_label_names(str(folder), True))):
            mask = io.BytesIO()
            PIL.Image.fromarray(row.mask).save(mask, "png")
            picture = {"bytes": Path(image["path"]).read_bytes(), "path": os.path.basename(image["path"])}
            rows.append({"image": picture, "mask": {"bytes": mask.getvalue(), "path": None}})
        written = Dataset.from_list(rows, features=features).cast(Features({"image": Image(), "mask": Image()}))
        (target / "data").mkdir(parents=True, exist_ok=True)
        written.to_parquet(target / "data" / f"{split}-00000-of-00001.parquet")
    if found and (folder / "id2label.json").is_file():
        shutil.copy(folder / "id2label.json", target)
    return target if found else None


def read_label_file(path: str | os.PathLike) -> list:
    """Reads `id2label.json`, or a palette in the same form: a list, or an object from class id to name or colour.

    Raises:
        ValueError: The ids are not 0, 1, 2, … without gaps.
    """
    with open(path, encoding="utf-8") as file:
        labels = json.load(file)
    if isinstance(labels, Mapping):
        labels = {int(k): v for k, v in labels.items()}
        if sorted(labels) != list(range(len(labels))):
            raise ValueError(f"{path} must name the classes 0 to {len(labels) - 1}, found the ids {sorted(labels)}.")
        labels = [labels[i] for i in range(len(labels))]
    return labels


def _label_names(name: str, local: bool, cache_dir=None, token=None, revision=None) -> list[str] | None:
    if local:
        path = os.path.join(name, "id2label.json")
        return read_label_file(path) if os.path.isfile(path) else None
    try:
        path = hf_hub_download(
            name, "id2label.json", repo_type="dataset", cache_dir=cache_dir, token=token, revision=revision
        )
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None  # names are a nicety; whether the dataset itself can be had, `load_dataset` says
    return read_label_file(path)


def _from_folder(folder: Path, split: str) -> Dataset | None:
    """A dataset of paths, for the layouts that `datasets` does not know; `None` for those that it does."""
    splits = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name in SPLITS)
    for root in (folder / split, folder):
        pairs = _npy_pairs(root) or _folder_pairs(root)
        if pairs and root == folder and splits:  # all splits together is not what was asked for
            raise ValueError(f"The dataset {folder} has no split {split!r}; it has {', '.join(map(repr, splits))}.")
        if pairs:
            images, masks = zip(*pairs)
            mask = Value("string") if masks[0].endswith(".npy") else Image(decode=False)
            features = Features({"image": Image(decode=False), "mask": mask})
            return Dataset.from_dict({"image": list(images), "mask": list(masks)}, features=features)
    return None


def _npy_pairs(root: Path) -> list[tuple[str, str]]:
    """The published layout: images with `.npy` masks beside them, anywhere below the folder."""
    if not root.is_dir() or not any(root.rglob("*.npy")):
        return []
    images = find_pictures(root)
    lonely = [str(p) for p in images if not p.with_suffix(".npy").is_file()]
    if lonely:
        raise ValueError(f"{lonely[0]} has no mask {Path(lonely[0]).with_suffix('.npy').name} beside it.")
    if not images:
        raise ValueError(f"The folder {root} has .npy masks but no pictures in it.")
    return [(str(p), str(p.with_suffix(".npy"))) for p in images]


def _folder_pairs(root: Path) -> list[tuple[str, str]]:
    """Two folders of pictures, `images` and `masks`, whose files have the same names up to the suffix."""
    masks = next((root / m for m in MASK_FOLDERS if (root / m).is_dir()), None)
    if masks is None or not (root / "images").is_dir():
        return []
    images = find_pictures(root / "images")
    if not images:
        raise ValueError(f"The folder {root / 'images'} has no pictures in it.")
    by_name = {p.relative_to(masks).with_suffix(""): p for p in find_pictures(masks)}
    lonely = [p for p in images if p.relative_to(root / "images").with_suffix("") not in by_name]
    if lonely:
        raise ValueError(f"{lonely[0]} has no mask of the same name in {masks}.")
    return [(str(p), str(by_name[p.relative_to(root / "images").with_suffix("")])) for p in images]


def find_pictures(folder: Path) -> list[Path]:
    """Picture files anywhere below a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES and p.is_file())


def find_column(columns: Sequence[str], wanted: str | None, aliases: Sequence[str], kind: str) -> str:
    """The column that was asked for, or the first of the usual names that there is.

    Raises:
        ValueError: There is none; names the columns.
    """
    candidates = [wanted] if wanted else aliases
    found = next((c for c in candidates if c in columns), None)
    if found is None:
        raise ValueError(
            f"The dataset has no column {' or '.join(repr(c) for c in candidates)}; it has "
            f"{', '.join(map(repr, columns))}. Name the column of {kind}s with `--{kind}_column`."
        )
    return found


def decode_picture(value, where: str) -> tuple[PIL.Image.Image, str]:
    """Opens a cell of an image column; returns the picture with where it came from.

    Raises:
        ValueError: It cannot be read; names its path, or `where`.
    """
    if isinstance(value, PIL.Image.Image):
        return value, where
    if isinstance(value, str):
        return open_image(value), value
    if not isinstance(value, Mapping):
        raise ValueError(f"There is no picture in {where}, but {value!r:.40}.")
    path, data = value.get("path"), value.get("bytes")
    if data is None:
        return open_image(path), path
    where = f"{path} ({where})" if path else where
    try:
        return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))), where
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"The picture in {where} cannot be read ({error}); repair or remove it.") from error


def _load_npy(path: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy array ({error}); repair or remove it.") from error
