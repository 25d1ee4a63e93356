# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of commands that read labelled images."""

import argparse
from pathlib import Path
from typing import Any

from .folders import read_label_file
from .labeled import MASK_FORMATS, LabeledImages, load_labeled_images


def add_data_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    """Which labelled images to read, and how; `split` is the default part of the dataset."""
    group = parser.add_argument_group("data")
    group.add_argument(
        *("--dataset_name", "--train_data_dir"),
        required=True,
        help="Labelled images: a local folder or a name on the Hub.",
    )
    group.add_argument("--dataset_config_name", help="Configuration of the dataset.")
    group.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    group.add_argument("--split", default=split, help="Part of the dataset (default: %(default)s).")
    group.add_argument("--image_column", help="Column of images (default: image, or a usual name).")
    group.add_argument("--mask_column", help="Column of masks (default: mask, or a usual name).")
    group.add_argument("--mask_format", choices=MASK_FORMATS, default="index", help="Content of the masks.")
    group.add_argument("--palette", type=Path, help="JSON file with the colour of each class.")
    group.add_argument(
        "--ignore_index", type=int, help="Mask value without a label (default: 255, or what the model was fitted with)."
    )


def load_data(
    args: argparse.Namespace, split: str | None = None, ignore_index: int = 255, **kwargs: Any
) -> LabeledImages:
    """The labelled images that the arguments of [`add_data_arguments`] and `--cache_dir` name.

    Args:
        args (`argparse.Namespace`): The parsed arguments.
        split (`str`, *optional*): Part of the dataset, in place of `--split`.
        ignore_index (`int`, defaults to 255): Id of pixels without a label, if the arguments name none.
        **kwargs: As in [`load_labeled_images`].
    """
    return load_labeled_images(
        args.dataset_name,
        args.dataset_config_name,
        split or args.split,
        cache_dir=args.cache_dir,
        revision=args.dataset_revision,
        palette=read_label_file(args.palette) if args.palette else None,
        ignore_index=ignore_index if args.ignore_index is None else args.ignore_index,
        mask_format=args.mask_format,
        image_column=args.image_column,
        mask_column=args.mask_column,
        **kwargs,
    )
