# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of fitting a head on 50 images of 256 × 256 with the paper's 8,448 features a pixel.

    python benchmarks/bench_memory.py --recipe fast

The activations have the shapes of the paper's LSUN model (blocks 5, 6, 7, 8, 12 at three timesteps) and random values:
the U-Net itself, half a billion parameters, is left out. The published code keeps every pixel's features in float32.
"""

import argparse
import dataclasses
import json
import resource
import time

import torch
from diffusers import DDPMScheduler, UNet2DModel

from diffuseseg_diffusers import DecoderFeatureExtractor, PixelClassifierEnsemble
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.heads.table import ActivationTable
from diffuseseg_diffusers.heads.training import fit_members


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="fast")
    parser.add_argument("--num_images", type=int, default=50)
    parser.add_argument("--max_steps", type=int, help="End earlier than the recipe does.")
    parser.add_argument("--activation_dir", help="Keep activations in a temporary file here, not in memory.")
    parser.add_argument("--dtype", choices=["float16", "bfloat16"], default="float16")
    args = parser.parse_args()

    with torch.device("meta"):  # shapes only
        unet = UNet2DModel(
            sample_size=256,
            block_out_channels=(256, 256, 512, 512, 1024, 1024),
            layers_per_block=2,
            down_block_types=("DownBlock2D",) * 6,
            up_block_types=("UpBlock2D",) * 6,
        )
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler())
    info = extractor.feature_info()
    features = sum(i.channels for i in info)
    size, classes = (256, 256), 28
    began = time.perf_counter()
    table = ActivationTable(info, args.num_images, size, getattr(torch, args.dtype), args.activation_dir)
    generator = torch.Generator().manual_seed(0)
    for n in range(args.num_images):
        activations = [torch.randn(1, i.channels, i.height, i.width, generator=generator) for i in info]
        table.put(n, activations, torch.randint(classes, (1, *size), dtype=torch.uint8, generator=generator))
    filled = time.perf_counter() - began
    head = PixelClassifierEnsemble(
        num_classes=classes,
        block_channels=[i.channels for i in info[: len(extractor.blocks)]],
        blocks=extractor.blocks,
        timesteps=extractor.timesteps,
        image_size=size,
    )
    recipe = RECIPES[args.recipe]
    if args.max_steps:
        recipe = dataclasses.replace(recipe, max_steps=args.max_steps)
    began = time.perf_counter()
    fit_members(head, table, recipe)
    print(
        json.dumps(
            {
                "features": features,
                "images": args.num_images,
                "table_GiB": round(sum(t.nbytes for t in table.tables.values()) / 2**30, 2),
                "peak_GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                "full_size_float32_GiB": round(args.num_images * 256 * 256 * features * 4 / 2**30, 1),
                "fill_seconds": round(filled, 1),
                "fit_seconds": round(time.perf_counter() - began, 1),
                "threads": torch.get_num_threads(),
                "recipe": dataclasses.asdict(recipe),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
