# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students that are U-Nets: small ones, and the denoiser of a diffusion model itself.

At 64 pixels the strides of vision transformers leave 16 x 16 places of an image; a U-Net keeps all of them. A denoiser
is one already, with weights that know what images are made of: with an output for each class in place of the noise, it
is trained end to end.
"""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from huggingface_hub import hf_hub_download
from torch import nn

from ..features.pixel_unet import default_class_labels, image_size
from ..images.palettes import is_color
from ..jobs.errors import UserError
from ..jobs.files import read_json, write_json
from .networks import loading_errors
from .plain_unet import PlainUNet
from .student import Student


RECORD = "student.json"  # what a U-Net's own config does not hold: classes, colours, timestep
WIDTHS = (16, 32, 64, 128)


class UNetStudent(Student):
    """A drop-in replacement for [`DiffuseSegPipeline`] in segmenting: a U-Net with an output for each class.

    It reads images as they are, without noise, at one timestep.

    Args:
        model ([`UNet2DModel`] or [`PlainUNet`]): The student; its `sample_size` is the size at which it reads images.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`, *optional*): As in [`Student`].
        timestep (`int`, defaults to 0): That it is told.

    Raises:
        UserError: The U-Net has another number of outputs than there are classes, or no `sample_size`.
    """

    def __init__(
        self,
        model: UNet2DModel | PlainUNet,
        label_names: Sequence[str],
        timestep: int = 0,
        palette: Sequence[Sequence[int]] | None = None,
    ):
        if model.config.out_channels != len(label_names):
            raise UserError(
                f"The U-Net has {model.config.out_channels} outputs for {len(label_names)} classes; it is no student "
                f"for these."
            )
        model = model.to(memory_format=torch.channels_last)
        super().__init__(model, label_names, image_size(model), model.config.in_channels, palette)
        self.timestep = timestep

    def identity(self) -> dict[str, str]:
        return super().identity() | {"timestep": str(self.timestep)}

    def logits(self, pixels: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
        labels = default_class_labels(self.model, pixels.shape[0], pixels.device)  # a symbol in export
        # A plain U-Net casts by itself, behind the standardisation.
        dtype = pixels.dtype if isinstance(self.model, PlainUNet) else self.model.dtype
        pixels = (pixels * 2 - 1).to(dtype, memory_format=torch.channels_last)  # [N,C,H,W]
        network = self.model if model is None else model  # a compiled model has no truth value
        return network(pixels, self.timestep, class_labels=labels, return_dict=False)[0]

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, dtype: torch.dtype = torch.float32, revision: str | None = None, **kwargs: Any
    ) -> "UNetStudent":
        """Loads a student that is a U-Net of diffusers.

        Args:
            name (`str` or path), dtype (`torch.dtype`), revision (`str`, *optional*): As in [`StudentSegmenter`].
            **kwargs: As in [`ModelMixin.from_pretrained`], such as `cache_dir`.

        Raises:
            UserError: It cannot be loaded, or is a U-Net but no student; says why.

        Examples:
            >>> student = UNetStudent.from_pretrained("out/student")
        """
        name = os.fspath(name)
        where = {k: v for k, v in kwargs.items() if k in ("cache_dir", "force_download", "local_files_only", "token")}
        where["revision"] = revision or "main"
        with loading_errors(name):
            if not os.path.isdir(name):
                path = hf_hub_download(name, RECORD, **where)
            elif not os.path.isfile(path := os.path.join(name, RECORD)):
                raise UserError(f"{name} holds a U-Net but no {RECORD}: it is no student that train-student left.")
            record = _read_record(path)
            options = {"use_safetensors": True, "output_loading_info": True, **kwargs, **where}
            try:
                config = UNet2DModel.load_config(name, **where)
                kind = {"PlainUNet": PlainUNet}.get(config.get("_class_name"), UNet2DModel)
                model, info = kind.from_pretrained(name, dtype=dtype, **options)
            except (TypeError, RuntimeError, NotImplementedError, KeyError, AssertionError) as error:
                raise UserError(
                    f"{name} cannot be loaded: its config.json does not fit its weights ({error})."
                ) from error
        if info["missing_keys"]:
            raise UserError(f"{name} is no whole student: its weights lack {sorted(info['missing_keys'])[0]}.")
        if not _is_size(model.config.sample_size):
            raise UserError(f"{name} cannot be loaded: its config.json says no `sample_size`, but height and width.")
        student = cls(model.eval(), record["label_names"], record["timestep"], record["palette"])
        return student.restore(record, name)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves the U-Net as diffusers does, and `student.json` beside it."""
        self.model.save_pretrained(folder)
        record = {"label_names": self.label_names, "timestep": self.timestep, **self.extras()}
        write_json(Path(folder, RECORD), record)


def new_unet(
    label_names: Sequence[str], size: tuple[int, int], in_channels: int, palette: Sequence[Sequence[int]] | None = None
) -> UNetStudent:
    """A U-Net of about 2 million random weights for small images; arguments as in [`Student`].

    Raises:
        UserError: The size is no multiple of 8.
    """
    if size[0] % 8 or size[1] % 8:
        near = " ".join(str(max(8, round(x / 8) * 8)) for x in size)
        raise UserError(
            f"The U-Net takes sizes that are multiples of 8, got {size[0]} x {size[1]}; use --resolution {near}."
        )
    model = UNet2DModel(
        sample_size=size,
        in_channels=in_channels,
        out_channels=len(label_names),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * len(WIDTHS),
        up_block_types=("UpBlock2D",) * len(WIDTHS),
        add_attention=False,
        norm_num_groups=8,
    )
    return UNetStudent(model, label_names, palette=palette)


def plain_unet(
    label_names: Sequence[str],
    size: tuple[int, int],
    in_channels: int,
    palette: Sequence[Sequence[int]] | None = None,
    mirror: bool = False,
) -> UNetStudent:
    """A [`PlainUNet`] of random weights that reads images of a size; other arguments as in [`Student`]."""
    model = PlainUNet(sample_size=size, in_channels=in_channels, out_channels=len(label_names), mirror=mirror)
    return UNetStudent(model, label_names, palette=palette)


def unet_from_denoiser(
    unet: UNet2DModel,
    label_names: Sequence[str],
    timestep: int = 10,
    palette: Sequence[Sequence[int]] | None = None,
    size: tuple[int, int] | None = None,
) -> UNetStudent:
    """A copy of the U-Net of a diffusion model with a new output layer, for training end to end.

    `timestep` is what it is told: images without noise are nearest to those of low timesteps. `size` is the height and
    width at which it reads images, by default its own. The other arguments are those of [`UNetStudent`].

    Raises:
        UserError: Its config has no `sample_size`.
    """
    model = copy.deepcopy(unet).float()
    old = model.conv_out
    model.conv_out = nn.Conv2d(old.in_channels, len(label_names), old.kernel_size, padding=old.padding)
    model.register_to_config(out_channels=len(label_names), sample_size=size or unet.config.sample_size)
    return UNetStudent(model, label_names, timestep, palette)


def _read_record(path: str) -> dict[str, Any]:
    """The record of a student. Raises [`UserError`] if it lacks what the network needs."""
    record = read_json(path)
    record = {"label_names": None, "timestep": None, "palette": None, **(record if isinstance(record, dict) else {})}
    names, timestep, palette = record["label_names"], record["timestep"], record["palette"]
    wrong = None
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        wrong = "label_names, a name for each class"
    elif not isinstance(timestep, int) or not 0 <= timestep < 10_000:
        wrong = "timestep, a number from 0 on"
    elif palette is not None and not (
        isinstance(palette, list) and len(palette) == len(names) and all(map(is_color, palette))
    ):
        wrong = "palette, a colour [red, green, blue] for each class"
    if wrong:
        raise UserError(f"{path} is no record of a student: it lacks {wrong}; restore it, or train the student again.")
    return record


def _is_size(given: Any) -> bool:
    sides = [given] * 2 if isinstance(given, int) else given
    return isinstance(sides, (list, tuple)) and len(sides) == 2 and all(isinstance(x, int) and x > 0 for x in sides)
