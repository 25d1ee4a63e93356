# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which student is trained: U-Nets of diffusers and networks of `transformers`, by name."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError

from ..jobs.errors import UserError
from ..jobs.files import read_json
from ..pipelines.auto import is_pixel_index
from ..pipelines.composed import INDEX
from .networks import DEFAULT_STUDENT, make_processor, make_student
from .student import Student, StudentSegmenter
from .unets import RECORD, UNetStudent, new_unet, unet_from_denoiser


UNET = "unet"  # as a name: a new U-Net of about 2 million weights
SMALL = 128  # pixels: images up to this side get a U-Net by default
RATES = {"unet": 2e-3, "denoiser": 5e-4, "transformers": 3e-4}  # highest learning rates that go with the networks


def new_student(
    name: str | None,
    label_names: Sequence[str],
    size: tuple[int, int],
    in_channels: int = 3,
    palette: Sequence[Sequence[int]] | None = None,
    from_scratch: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> tuple[Student, str]:
    """A student before its training.

    Args:
        name (`str`, *optional*): `"unet"`; a folder of a diffusion pipeline on pixels, whose denoiser it becomes; a
            folder of a student, which is trained on; a Hub name, folder or JSON config of a network of `transformers`.
            If not given, `"unet"` for images of up to 128 pixels a side, else SegFormer-B0.
        label_names, size, in_channels, palette: As in [`Student`]; networks of `transformers` take 3 channels.
        from_scratch (`bool`, defaults to `False`): Fresh weights, though there are trained ones.
        cache_dir (`str` or path, *optional*): Folder in which downloads are kept.

    Returns:
        The student, and its kind, a key of `RATES`.

    Raises:
        UserError: There is no such network, or it does not fit the images or the classes.
    """
    name = name or (UNET if max(size) <= SMALL else DEFAULT_STUDENT)
    if name == UNET:
        return new_unet(label_names, size, in_channels, palette), "unet"
    if _has(name, INDEX):
        student = unet_from_denoiser(_denoiser(name, from_scratch), label_names, palette=palette)
    elif _has(name, RECORD):
        student = UNetStudent.from_pretrained(name)
        if student.label_names != list(label_names):
            raise UserError(
                f"The student in {name} has the classes {', '.join(student.label_names)}, but the dataset has "
                f"{', '.join(label_names)}."
            )
        model = type(student.model).from_config(student.model.config) if from_scratch else student.model
        student = UNetStudent(model, label_names, student.timestep, palette or student.palette)
    else:
        model = make_student(name, label_names, from_scratch, cache_dir)
        return StudentSegmenter(model, make_processor(name, size, cache_dir=cache_dir), palette), "transformers"
    if student.image_size != tuple(size):
        raise UserError(
            f"The U-Net in {name} reads images of {student.image_size[0]} x {student.image_size[1]}, not of {size[0]} "
            f"x {size[1]}; leave --resolution at its size."
        )
    return student, "denoiser" if student.timestep else "unet"


def student_size(name: str | None, images: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which a student of this name reads images of the given size: its own, if it has one, or for
    a new U-Net the nearest multiples of 8."""
    if name == UNET or (name is None and max(images) <= SMALL):
        return (max(8, round(images[0] / 8) * 8), max(8, round(images[1] / 8) * 8))
    if name and _has(name, INDEX):
        path = Path(name, "unet", "config.json")
    elif name and _has(name, RECORD):
        path = Path(name, "config.json")
    else:
        return images
    size = (read_json(path).get("sample_size") if path.parent.is_dir() else None) or images
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@torch.no_grad()
def check_reads(student: Student) -> None:
    """Raises [`UserError`] if an untrained student cannot read an empty image of its size."""
    height, width = student.image_size
    try:
        student.model.eval()
        student.logits(torch.zeros(1, student.in_channels, height, width, device=student.device))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The student cannot read images of {height} x {width} ({str(error).splitlines()[0]}); give another "
            f"--resolution, or --model {UNET}."
        ) from error


def _has(name: str, file: str) -> bool:
    return os.path.isfile(os.path.join(name, file))


def _denoiser(name: str, from_scratch: bool) -> UNet2DModel:
    """The denoiser of a pipeline of diffusers on pixels."""
    reason = f"{name} has no U-Net on pixels that could become a student"
    if not is_pixel_index(read_json(Path(name, INDEX))):
        raise UserError(f"{reason}; give a DDPM, or another --model.")
    try:
        unet = UNet2DModel.from_pretrained(name, subfolder="unet", use_safetensors=True)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{reason}: {error}") from error
    return UNet2DModel.from_config(unet.config) if from_scratch else unet
