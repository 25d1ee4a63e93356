# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of commands that read labelled images."""

import argparse
from pathlib import Path

from .labeled import MASK_FORMATS


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
