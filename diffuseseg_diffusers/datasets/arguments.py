# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Arguments of commands that read labelled images."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..images.channels import InputChannels
from ..images.lengths import micrometres
from ..jobs.errors import UserError
from .crops import Pictures, measure_windows
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


def add_reading_arguments(group: argparse._ArgumentGroup) -> None:
    """Which channels of pictures are read, between which values, and at which scale large ones are cut."""
    group.add_argument(
        "--input_channels", nargs="+", help="Names or numbers of channels, in the model's order (default: all)."
    )
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--intensity_window",
        type=float,
        nargs="+",
        metavar="VALUE",
        help="Values that are black and white: low and high, for all channels or for each.",
    )
    how.add_argument(
        "--intensity_percentiles",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="The same as percentiles of the pictures, such as 0.5 99.5.",
    )
    size = group.add_mutually_exclusive_group()
    size.add_argument("--scale", type=float, help="The model's pixels for one of the picture (default: 1).")
    size.add_argument(
        "--pixel_size", type=micrometres, help="Side of what the model takes for a pixel, in µm, or with a unit: 10m."
    )
    group.add_argument("--axes", help="Axes of TIFFs that do not say them: a letter each, such as CYX or ZYX.")
    group.add_argument(
        "--slice_axis", choices=("z", "y", "x"), default="z", help="Axis that slices of volumes lie along (default: z)."
    )


def check_reading_arguments(args: argparse.Namespace) -> None:
    """Refuses scales and pixel sizes that are none."""
    for name in ("scale", "pixel_size"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} must be above 0, got {value:g}.")


def read_channels(args: argparse.Namespace, pictures: Callable[[], Pictures], known: InputChannels) -> InputChannels:
    """What the arguments of [`add_reading_arguments`] say of channels and intensities.

    Args:
        args (`argparse.Namespace`): The parsed arguments.
        pictures (`Callable`): Gives the pictures that percentiles are taken of.
        known ([`InputChannels`]): Of the model, which hold where the arguments say nothing.
    """
    names = tuple(args.input_channels) if args.input_channels else known.names
    if args.intensity_percentiles:
        found = measure_windows(pictures(), names, tuple(args.intensity_percentiles), args.seed)
        said = ", ".join(f"{low:g} to {high:g}" for low, high in found.windows)
        print(f"Percentiles {args.intensity_percentiles[0]:g} and {args.intensity_percentiles[1]:g}: {said}.")
        return found
    values = args.intensity_window
    if values is None:
        return InputChannels(names, known.windows)
    if len(values) % 2:
        raise UserError(f"--intensity_window is pairs of a low and a high value, got {len(values)} values.")
    return InputChannels(names, tuple(zip(values[::2], values[1::2])))
