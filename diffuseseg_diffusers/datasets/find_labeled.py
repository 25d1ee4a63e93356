# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Finds labelled images: a dataset of the Hub, a folder of any layout, or annotations of other programs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Value

from ..images.image_processor import unnamed_classes, warn_once
from ..jobs.errors import UserError
from .annotations.reading import AUTO, Annotated, read_annotations, unread_annotations
from .columns import load_split
from .folder_names import split_of
from .label_names import read_label_names
from .labeled import LabeledImages
from .layout import ALL, Layout
from .layouts import find_layout, is_described


def load_labeled_images(
    name: str | os.PathLike,
    config_name: str | None = None,
    split: str = "train",
    label_names: Sequence[str] | None = None,
    cache_dir: str | None = None,
    token: str | None = None,
    revision: str | None = None,
    classes: Sequence[str] | None = None,
    annotations: str | os.PathLike | None = None,
    annotation_format: str = AUTO,
    **kwargs,
) -> LabeledImages:
    """Loads labelled images by Hub name or from a local folder.

    A folder may be of any layout that [`find_layout`] understands (`images/` and `masks/`, masks beside their pictures,
    Pascal VOC, nnU-Net, …), have annotations of another program (COCO, labelme, CVAT, Label Studio, QuPath, YOLO,
    Supervisely), or be anything that `datasets` reads: Parquet, or an image folder with a `metadata.csv` of `file_name`
    and `mask_file_name`.

    Args:
        name (`str` or path): Hub dataset or local folder.
        config_name (`str`, *optional*): Configuration of the dataset.
        split (`str`, defaults to `"train"`): Which part of it.
        label_names (sequence of `str`, *optional*): Names of the classes; from the dataset's `id2label.json` if there
            is one.
        cache_dir, token, revision: As in `datasets.load_dataset`.
        classes (sequence of `str`, *optional*): Those of a model that the images are for, in place of `label_names`;
            a dataset with other names is refused.
        annotations (`str` or path, *optional*): File or folder of annotations of the pictures in the folder; found
            there if it has no masks.
        annotation_format (`str`, defaults to `"auto"`): Their format; by content if `"auto"`.
        **kwargs: As in [`LabeledImages`].

    Returns:
        [`LabeledImages`]

    Raises:
        UserError: There is no such dataset or split, it has no images, its masks are not as expected, or it has other
            classes than `classes`.

    Examples:
        >>> from diffuseseg_diffusers import load_labeled_images
        >>> dataset = load_labeled_images("my/labelled/images")
        >>> dataset[0].image.size, dataset[0].mask.shape, dataset.num_classes
    """
    name = os.fspath(name)
    local = os.path.isdir(name)
    if label_names is None:
        label_names = read_label_names(name, local, cache_dir, token, revision)
    stated = label_names
    if classes is not None:
        _check_classes(name, label_names, classes)
        label_names = list(classes)
    dataset = layout = None
    if annotations is not None and not local:
        raise UserError(f"Annotations are of pictures in a folder, and {name} is none.")
    if local and (annotations is not None or not is_described(Path(name))):
        layout, split = _layout_with(Path(name), split)
        given = stated if classes is None or list(classes) == unnamed_classes(len(classes)) else classes
        dataset, names = read_annotated(layout, split, annotations, annotation_format, given, **kwargs)
        if dataset is None:
            dataset, names = read_folder(layout, split), layout.label_names
            if kwargs.get("palette") is None:
                kwargs["palette"] = layout.palette
        elif classes is not None:
            _check_classes(name, names, classes)
        label_names = label_names or names
    if dataset is None:
        dataset = load_split(name, config_name, split, cache_dir=cache_dir, token=token, revision=revision)
    try:
        return LabeledImages(dataset, label_names=label_names, **kwargs)
    except UserError as error:
        if layout is None:
            raise
        raise UserError(f"{error} {layout.advice}") from error


def _layout_with(folder: Path, split: str) -> tuple[Layout, str]:
    """The layout of a folder, and the split in it: a folder of its name is one, although it is no usual name."""
    layout, own = find_layout(folder), folder / split
    usual = split in layout.names or split_of(split) is not None
    if not usual and own.is_dir() and own.parent == folder and split != "..":
        return find_layout(own), ALL
    return layout, split


def _check_classes(name: str, found: Sequence[str] | None, classes: Sequence[str]) -> None:
    """Raises [`UserError`] if a dataset has other classes than a model; without names their number counts."""
    unnamed = list(classes) == unnamed_classes(len(classes))
    if found and (len(found) != len(classes) if unnamed else list(found) != list(classes)):
        raise UserError(
            f"{name} has the classes {', '.join(found)}, but the model has {', '.join(classes)}; they have to be the "
            f"same, in the same order."
        )


def read_annotated(
    layout: Layout,
    split: str,
    annotations: str | os.PathLike | None = None,
    annotation_format: str = AUTO,
    names: Sequence[str] | None = None,
    mask_format: str = "index",
    ignore_index: int = 255,
    **_: Any,
) -> tuple[Dataset | None, list[str] | None]:
    """The pictures of a split with annotations of other programs, as paths and shapes, and the names of the classes.

    Both are `None` where the folder has masks, or no annotations, and none are named.

    Raises:
        UserError: They cannot be read; see [`read_annotations`].
    """
    found = find_annotated(layout, annotations, annotation_format, names, ignore_index)
    if found is None:
        return None, None
    if mask_format != "index":
        raise UserError(f"--mask_format {mask_format} is for masks, and {layout.folder} is read by its annotations.")
    return annotated_rows(found, split), found.names


def find_annotated(
    layout: Layout,
    annotations: str | os.PathLike | None = None,
    annotation_format: str = AUTO,
    names: Sequence[str] | None = None,
    ignore_index: int = 255,
) -> Annotated | None:
    """The annotations of a folder that are read: those that are named, or, of a folder without masks, that are there.

    Raises:
        UserError: They cannot be read; see [`read_annotations`].
    """
    place = None if annotations is None else Path(annotations)
    if place is None and annotation_format == AUTO and layout.has_pairs:
        if (unread := unread_annotations(layout.folder)) is not None:
            warn_once(
                f"The masks of {layout.folder} are read ({layout.kind}), not {unread}; name that by --annotations."
            )
        return None
    return read_annotations(layout, place, annotation_format, names, ignore_index)


def annotated_rows(found: Annotated, split: str) -> Dataset:
    """The pictures of a split as paths, with the shapes in them."""
    images, cells = found.rows(split)
    for note in found.layout.notes:
        warn_once(note)
    features = Features({"image": Image(decode=False), "mask": Value("large_string")})
    return Dataset.from_dict({"image": images, "mask": cells}, features=features)


def read_folder(layout: Layout, split: str) -> Dataset | None:
    """The pictures of a split of a folder with their masks, as paths; `None` for what only `datasets` can read.

    Raises:
        UserError: There is no such split, a picture has no mask, or no layout is understood.
    """
    pictures = layout.pictures()
    if not pictures and not layout.unused:
        return None
    if not layout.has_pairs and not layout.problems:
        raise layout.refusal()
    for note in layout.notes:
        warn_once(note)
    images, masks = zip(*((str(image), str(mask)) for image, mask in layout.pairs(split)))
    if wrong := next((p for p in (*images, *masks) if not _is_text(p)), None):
        raise UserError(f"The name of {wrong!r} is no UTF-8 text, which `datasets` cannot hold; rename the file.")
    arrays = any(mask.endswith(".npy") for mask in masks)
    features = Features({"image": Image(decode=False), "mask": Value("string") if arrays else Image(decode=False)})
    return Dataset.from_dict({"image": list(images), "mask": list(masks)}, features=features)


def _is_text(path: str) -> bool:
    """Whether a path is valid UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def load_data(config: Any, split: str | None = None, ignore_index: int = 255, **kwargs: Any) -> LabeledImages:
    """The labelled images that a configuration with the fields of `tasks.options.ReadsLabels` names.

    Args:
        config (`Config`): The configuration.
        split (`str`, *optional*): Part of the dataset, in place of its `split`.
        ignore_index (`int`, defaults to 255): Id of pixels without a label, if the configuration names none.
        **kwargs: As in [`load_labeled_images`]; `label_names` go before those of the configuration.
    """
    return load_labeled_images(
        config.dataset_name,
        config.dataset_config_name,
        split or config.split,
        cache_dir=config.cache_dir,
        revision=config.dataset_revision,
        image_column=config.image_column,
        mask_column=config.mask_column,
        annotations=config.annotations,
        annotation_format=config.annotation_format,
        axes=config.axes,
        slice_axis=config.slice_axis,
        **config.masks(ignore_index) | kwargs,
    )


def load_labels(config: Any) -> tuple[LabeledImages, LabeledImages | None]:
    """Labelled images to fit on, and those to measure on, if any.

    Args:
        config (`Config`): With the fields of `tasks.fit.FitConfig`.

    Raises:
        UserError: There are no such images, or both are the same.
    """
    dataset = load_data(config)
    if config.validation_fraction is not None:
        return dataset.split(config.validation_fraction, config.seed)
    if not config.validation_split:
        return dataset, None
    validation = load_data(config, config.validation_split, num_classes=dataset.num_classes)
    if validation.same_images(dataset):
        raise UserError(
            f"--split {config.split} and --validation_split {config.validation_split} of {config.dataset_name} are the "
            f"same images; hold some of them out with --validation_fraction."
        )
    return dataset, validation
