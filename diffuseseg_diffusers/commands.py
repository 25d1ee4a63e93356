# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the commands share: arguments, loading, and output folders that are whole or not there."""

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.utils import logging as diffusers_logging

from .hub_errors import explain_hub_error
from .pipeline_diffuseseg import DiffuseSegPipeline


if TYPE_CHECKING:
    from .backbone import BackbonePipeline
    from .data import LabeledImages


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_model_arguments(parser: argparse.ArgumentParser, backbone: bool = False) -> None:
    """`--model`, `--device`, `--dtype`, and where it comes from; `--backbone` in place of the former, if it may be."""
    group = parser.add_argument_group("model")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="Pipeline: a local folder or a Hub name.")
    if backbone:
        which.add_argument(
            "--backbone", help="Vision model of transformers in its place: a local folder or a Hub name."
        )
    group.add_argument("--revision", help="Branch, tag or commit of a pipeline on the Hub.")
    group.add_argument("--device", help="Where to run, such as cuda:1 (default: a GPU if there is one).")
    group.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="Arithmetic. auto: bfloat16 where the hardware multiplies in it (AMX on CPUs), else float32.",
    )


def add_data_arguments(parser: argparse.ArgumentParser, split: str) -> None:
    """Which labelled images to read, and how."""
    from .data import MASK_FORMATS  # here, because segmenting does without the extra `train`

    group = parser.add_argument_group("data")
    group.add_argument("--dataset_name", required=True, help="Labelled images: a local folder or a Hub name.")
    group.add_argument("--dataset_config_name", help="Configuration of the dataset.")
    group.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    group.add_argument("--split", default=split, help="Part of the dataset (default: %(default)s).")
    group.add_argument("--image_column", help="Column of images (default: image, or a usual name).")
    group.add_argument("--mask_column", help="Column of masks (default: mask, or a usual name).")
    group.add_argument("--mask_format", choices=MASK_FORMATS, default="index", help="What the masks hold.")
    group.add_argument("--palette", type=Path, help="JSON file with the colour of each class.")
    group.add_argument(
        "--ignore_index", type=int, help="Mask value without a label (default: 255, or what the model was fitted with)."
    )
    group.add_argument("--cache_dir", help="Where `datasets` keeps downloads.")


def load_data(args: argparse.Namespace, split: str | None = None, ignore_index: int = 255, **kwargs) -> "LabeledImages":
    """The labelled images that the arguments of [`add_data_arguments`] name; `ignore_index` if they name none."""
    from .data import load_labeled_images, read_label_file

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


def default_device() -> torch.device:
    """A GPU if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it at a multiple of float32's speed, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # `get_capabilities` is newer than the oldest PyTorch that we take.
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
        fast = device.type == "cpu" and capabilities.get("amx_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def hardware(device: torch.device) -> str:
    """What a report says it was computed on: the name of the GPU, or of the CPU with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.isfile("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{name}, {device.type}"


def load_pipeline(
    name: str, revision: str | None = None, device: str | torch.device | None = None, dtype: str = "auto"
) -> "DiffuseSegPipeline | BackbonePipeline":
    """Loads a pipeline, with or without a head, ready to run.

    Args:
        name (`str`): Local folder or Hub name; a plain `DDPMPipeline` does. A folder may hold a [`BackbonePipeline`].
        revision (`str`, *optional*): Of a pipeline on the Hub.
        device (`str` or `torch.device`, *optional*): See [`default_device`].
        dtype (`str`, defaults to `"auto"`): A key of `DTYPES`, or see [`default_dtype`].

    Raises:
        ValueError: There is no pipeline of that name, in a folder or on the Hub.
    """
    device = torch.device(device) if device else default_device()
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, "model_index.json")):
        raise ValueError(f"The folder {name} holds no pipeline: it has no model_index.json.")
    if not os.path.isdir(name) and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise ValueError(f"There is no folder {name}.")
    arithmetic = default_dtype(device) if dtype == "auto" else DTYPES[dtype]
    # The head computes in the dtype of the activations whatever its own is, so its weights keep all their digits.
    index = Path(name, "model_index.json")
    if index.is_file() and json.loads(index.read_text(encoding="utf-8")).get("_class_name") == "BackbonePipeline":
        from .backbone import BackbonePipeline

        return BackbonePipeline.from_pretrained(name, dtype={"backbone": arithmetic, "default": torch.float32}).to(
            device
        )
    try:
        pipe = DiffuseSegPipeline.from_pretrained(
            name, revision=revision, dtype={"unet": arithmetic, "default": torch.float32}
        )
    except Exception as error:
        reason = None if os.path.isdir(name) else explain_hub_error(error)
        if reason is None:
            raise
        raise ValueError(f"There is no folder {name}, and the pipeline {name} cannot be loaded: {reason}.") from error
    pipe.unet.to(memory_format=torch.channels_last)  # convolutions are up to a third faster
    return pipe.to(device)


def check_output_folder(path: Path, overwrite: bool) -> None:
    """Raises `FileExistsError` if the folder holds something and is not to be replaced."""
    if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is kept; choose another --output_dir, or pass --overwrite.")


@contextmanager
def output_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """A folder to write to that takes its name only once it is whole; an old one stays until then."""
    check_output_folder(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
    finally:
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, content: dict) -> None:
    """Writes JSON that is whole or not there."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def format_metrics(metrics: dict) -> str:
    """The table that `evaluate` prints."""
    width = max(len(name) for name in [*metrics["per_class_iou"], "pixel accuracy"])
    lines = [f"{'class':<{width}}     IoU"]
    for name, iou in metrics["per_class_iou"].items():
        lines.append(f"{name:<{width}}  {'absent' if iou is None else f'{iou:6.4f}'}")
    lines.append(f"{'mean IoU':<{width}}  {metrics['mean_iou']:6.4f}")
    lines.append(f"{'pixel accuracy':<{width}}  {metrics['pixel_accuracy']:6.4f}")
    lines.append(f"{metrics['num_images']} images, {metrics['seconds_per_image']:.3f} s an image")
    return "\n".join(lines)


def run_command(command: Callable[[], int | None]) -> None:
    """Runs a command and ends the process; errors that users can mend are one sentence, others a traceback."""
    diffusers_logging.disable_progress_bar()
    try:
        status = command()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
