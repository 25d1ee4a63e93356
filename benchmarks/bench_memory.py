# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How much memory does fitting take with the paper's 8,448 features a pixel, and segmenting a large picture whole?

    python benchmarks/bench_memory.py

Fitting: activations of the shapes of the paper's LSUN model (blocks 5, 6, 7, 8, 12 at three timesteps) with random
values; the U-Net itself, half a billion parameters, is left out. Segmenting: the package's model of 64 × 64, shown
pictures of other sizes whole. Each row is the peak of a process of its own.
"""

import dataclasses

import PIL.Image
import torch
from diffusers import DDPMScheduler, UNet2DModel
from harness import Result, Task, arguments, fit, in_own_process, own_point, peak_gib, random_head

from diffuseseg_diffusers import DecoderFeatureExtractor
from diffuseseg_diffusers.heads.optimize import fit_members
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.heads.table import ActivationTable


def measure(recipe: str | None = None, side: int = 0, images: int = 50, steps: int = 0) -> dict[str, float]:
    return whole_picture(side) if side else random_fit(recipe, images, steps)


def random_fit(name: str, images: int, steps: int) -> dict[str, float]:
    """Fits on random activations; returns GiB."""
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
    features, size, classes = sum(i.channels for i in info), (256, 256), 28
    table = ActivationTable(info, images, size, torch.float16, None)
    generator = torch.Generator().manual_seed(0)
    for n in range(images):
        activations = [torch.randn(1, i.channels, i.height, i.width, generator=generator) for i in info]
        table.put(n, activations, torch.randint(classes, (1, *size), dtype=torch.uint8, generator=generator))
    fit_members(random_head(extractor, classes).train(), table, dataclasses.replace(RECIPES[name], max_steps=steps))
    kept = sum(t.nbytes for t in table.tables.values()) / 2**30
    return {"kept": kept, "peak": peak_gib(), "full": images * 256 * 256 * features * 4 / 2**30}


def whole_picture(side: int) -> dict[str, float]:
    """Segments a picture of that side whole; returns GiB."""
    task = Task("drawn")
    pipe = fit(task.pipe("float32"), task.train.select(range(2)), recipe="fast", seed=0)
    picture: PIL.Image.Image = task.test[0].image
    pipe.segment([picture.resize((side, side))], output_type="np")
    return {"peak": peak_gib()}


def main() -> None:
    own_point(measure)
    args = arguments(__doc__, None, images=50, steps=20, sides=[64, 1500, 3000])
    columns = {
        "what": ("", "text"),
        "kept": ("activations kept, GiB", "2"),
        "peak": ("peak of the process, GiB", "2"),
        "full": ("features at full size in float32, GiB", "1"),
    }
    fits = f"Fits on {args.images} images of 256 × 256 with 28 classes, {args.steps} steps"
    about = f"{fits} (the peak does not depend on their number); libraries included."
    result = Result(args.name or "memory", columns, args, about)
    for recipe in ("fast", "paper"):
        found = result.cell(recipe, lambda r=recipe: in_own_process(recipe=r, images=args.images, steps=args.steps))
        result.row(what=f"fit, `--recipe {recipe}`", **found)
    for side in args.sides:
        found = result.cell(f"side {side}", lambda side=side: in_own_process(side=side))
        result.row(what=f"segment a picture of {side:,} × {side:,} whole", **found)
    result.show()


if __name__ == "__main__":
    main()
