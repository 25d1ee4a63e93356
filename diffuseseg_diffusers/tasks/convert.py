# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes a diffusers pipeline of a published checkpoint: `diffuseseg convert`."""

from dataclasses import dataclass
from pathlib import Path

from ..jobs.config import exclusive, option
from ..jobs.errors import UserError
from ..jobs.files import check_output_folder, output_folder
from .options import DTYPES, WritesFolder, needs


PRESETS = ("lsun_256", "lsun_256_nodropout", "ffhq_256", "imagenet_64", "imagenet_256", "imagenet_256_uncond")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(WritesFolder):
    """Convert a checkpoint of guided-diffusion or DiffuseSeg to a pipeline."""

    checkpoint: Path = option(help="State dict: .pt or .safetensors.", positional=True, reads=True)
    preset: str | None = option(None, "Flags of a published checkpoint.", choices=PRESETS)
    flags: str | None = option(None, 'Flags of guided-diffusion\'s scripts, such as "--image_size 64 …".')
    model_config: Path | None = option(
        None, "config.yaml of a checkpoint of DiffuseSeg, in place of flags.", reads=True
    )
    members: tuple[Path, ...] = option(
        (), "Pixel MLPs of DiffuseSeg, mlp_1_best.pt and so on: the pipeline's segmentation head.", reads=True
    )
    dtype: str = option("float32", "Precision of the weights that are saved.", choices=DTYPES[1:])

    def check(self) -> None:
        super().check()
        exclusive(self, "preset", "flags", "model_config")
        if self.preset is None and self.flags is None and self.model_config is None:
            raise UserError("One of --preset, --flags and --model_config is needed; give it.")
        needs(self, "model_config", "members")


def convert(config: ConvertConfig) -> None:
    """Saves a checkpoint as a plain `DDPMPipeline`, or with `members` as a [`DiffuseSegPipeline`].

    Every tensor of the checkpoint is used exactly once.

    Raises:
        UserError: A tensor of the checkpoint does not fit; names it.

    Examples:
        >>> from diffuseseg_diffusers import ConvertConfig, convert
        >>> convert(ConvertConfig(checkpoint="lsun_horse.pt", preset="lsun_256", output_dir="out/horse"))
    """
    from diffusers import DDPMPipeline

    from ..jobs.hardware import DTYPES
    from ..paper.diffuseseg import convert_members, convert_unet
    from ..paper.guided_diffusion import PRESETS, Flags, convert_checkpoint, read_checkpoint
    from ..pipelines.pixel import DiffuseSegPipeline

    check_output_folder(config.output_dir, config.overwrite, config.inputs())
    state, dtype = read_checkpoint(config.checkpoint), DTYPES[config.dtype]
    if config.model_config is not None:
        unet, scheduler = convert_unet(state, config.model_config, dtype)
    else:
        flags = PRESETS[config.preset] if config.preset else Flags.parse(config.flags)
        unet, scheduler = convert_checkpoint(state, flags, dtype)
    pipe = DDPMPipeline(unet, scheduler)
    if config.members:
        head = convert_members([read_checkpoint(path) for path in config.members], unet)
        pipe = DiffuseSegPipeline(unet, scheduler, head)
    with output_folder(config.output_dir, config.overwrite, "convert", config.inputs()) as folder:
        pipe.save_pretrained(folder)
    number = sum(p.numel() for p in unet.parameters())
    print(f"{number / 1e6:.1f} million parameters, {config.dtype}; the pipeline is in {config.output_dir}.")
