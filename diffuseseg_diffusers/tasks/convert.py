# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes a diffusers pipeline of a guided-diffusion checkpoint: `diffuseseg convert`.

    diffuseseg convert lsun_horse.pt --preset lsun_256 --output_dir OUT

Every tensor of the checkpoint is used exactly once, or the command says which does not fit.
"""

import argparse
from pathlib import Path

from diffusers import DDPMPipeline

from diffuseseg_diffusers.arguments import add_output_arguments, inputs_of, run_script
from diffuseseg_diffusers.jobs.files import check_output_folder, output_folder
from diffuseseg_diffusers.jobs.hardware import DTYPES
from diffuseseg_diffusers.paper.guided_diffusion import PRESETS, Flags, convert_checkpoint, read_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="FILE", help="State dict: .pt or .safetensors.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--preset", choices=list(PRESETS), help="Flags of a published checkpoint.")
    which.add_argument("--flags", help='Flags of guided-diffusion\'s scripts, such as "--image_size 64 …".')
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="float32",
        help="Precision of the weights that are saved (default: float32).",
    )
    add_output_arguments(parser, "the pipeline, a plain DDPMPipeline")


def main(args: argparse.Namespace) -> None:
    check_output_folder(args.output_dir, args.overwrite, inputs_of(args))
    flags = PRESETS[args.preset] if args.preset else Flags.parse(args.flags)
    unet, scheduler = convert_checkpoint(read_checkpoint(args.checkpoint), flags, DTYPES[args.dtype])
    with output_folder(args.output_dir, args.overwrite, "convert", inputs_of(args)) as folder:
        DDPMPipeline(unet, scheduler).save_pretrained(folder)
    number = sum(p.numel() for p in unet.parameters())
    print(f"{number / 1e6:.1f} million parameters, {args.dtype}; the pipeline is in {args.output_dir}.")


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
