# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How much memory does fitting take with the paper's 8,448 features a pixel, and segmenting a large picture whole?

    python benchmarks/bench_memory.py
    python benchmarks/bench_memory.py --families   # features of published models; no model is run

Fitting: activations of the shapes of the paper's LSUN model (blocks 5, 6, 7, 8, 12 at three timesteps) with random
values; the U-Net itself, half a billion parameters, is left out. Segmenting: the package's model of 64 × 64, shown
pictures of other sizes whole. Each row is the peak of a process of its own.
"""

import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import PIL.Image
import torch
from diffusers import DDPMScheduler, UNet2DModel
from harness import Result, Task, arguments, fit, in_own_process, own_point, peak_gib, random_head
from tables import ROOT


sys.path.insert(0, str(ROOT))

from diffuseseg_diffusers import DecoderFeatureExtractor  # noqa: E402
from diffuseseg_diffusers.features.families import find_family  # noqa: E402
from diffuseseg_diffusers.heads.optimize import fit_members  # noqa: E402
from diffuseseg_diffusers.heads.recipes import RECIPES  # noqa: E402
from diffuseseg_diffusers.heads.table import ActivationTable  # noqa: E402
from tests.tiny_pipelines import FAMILIES  # noqa: E402


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


def published_shapes() -> dict[str, Callable]:
    """Denoisers of the shapes that are published, on the meta device, in tiny pipelines of their family."""
    xl = dict(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    sd3_shape = dict(sample_size=128, num_layers=24, num_attention_heads=24, attention_head_dim=64)
    sd3_shape |= dict(caption_projection_dim=1536, pos_embed_max_size=192)
    flux_shape = dict(in_channels=64, num_layers=19, num_single_layers=38, guidance_embeds=True)
    pixart_shape = dict(num_layers=28, attention_head_dim=72, num_attention_heads=16, out_channels=8)
    pixart_shape |= dict(caption_channels=4096, cross_attention_dim=1152, in_channels=4)
    wide = {"latent_channels": 16}
    shapes = {
        "Stable Diffusion 1.5": ("Stable Diffusion", dict(sample_size=64, cross_attention_dim=768), {}, 4),
        "SDXL": ("SDXL", xl, {}, 4),
        "DiT-XL/2 256": ("DiT", dict(num_attention_heads=16, attention_head_dim=72, out_channels=8), {}, 4),
        "PixArt-α 512": ("PixArt-α", {**pixart_shape, "sample_size": 64}, {}, 4),
        "PixArt-α 1024": ("PixArt-α", {**pixart_shape, "sample_size": 128}, {}, 4),
        "Sana 1.6B 1024": ("Sana", dict(sample_size=32), {"latent_channels": 32}, 6),
        "Stable Diffusion 3 medium": ("SD3", sd3_shape, wide, 4),
        "Flux.1-dev": ("Flux", flux_shape, wide, 4),
    }

    def make(family: str, denoiser: dict, vae: dict, levels: int) -> object:
        pipe = FAMILIES[family][0]()
        name = "unet" if hasattr(pipe, "unet") else "transformer"
        with torch.device("meta"):
            model = type(getattr(pipe, name))(**denoiser)
        widths = "encoder_block_out_channels" if family == "Sana" else "block_out_channels"
        pipe.vae.register_to_config(**{widths: (8,) * levels, "latent_channels": 4, **vae})  # only its stride counts
        pipe.register_modules(**{name: model})
        return pipe

    return {name: partial(make, *shape) for name, shape in shapes.items()}


def short(block: int | str) -> str:
    """A block's number, or the ends of its name."""
    parts = str(block).split(".")
    return str(block) if len(parts) < 4 else f"{'.'.join(parts[:2])}…{'.'.join(parts[-2:])}"


def families(args: Any) -> None:
    """Bytes of the default recipe's features, and the share of a pass that is done for them."""
    columns = {key: (key, "text") for key in ("model", "images", "blocks", "timesteps", "features")}
    columns |= {"share": ("share of a pass", "text"), "megabytes": ("MB an image", "1")}
    about = "Computed of the models' configurations, in half precision; no model was run."
    result = Result(args.name or "families-memory", columns, args, about)
    default = RECIPES["default"]
    for name, make in published_shapes().items():
        pipe = make()
        extractor = find_family(pipe.components).of(pipe, timesteps=[10])
        timesteps = extractor.default_timesteps(default.timesteps)
        extractor = extractor.choose(extractor.default_blocks(default.blocks), timesteps)
        info, shares = extractor.feature_info(), extractor.shares()
        result.row(
            model=name,
            images=" × ".join(map(str, extractor.size)),
            blocks=" ".join(short(block) for block in extractor.blocks),
            timesteps=" ".join(map(str, extractor.timesteps)),
            features=", ".join(dict.fromkeys(f"{i.channels} at {i.height} × {i.width}" for i in info)),
            share=f"{max(shares[b] for b in extractor.blocks):.0%}".replace("%", " %"),
            megabytes=sum(2 * i.channels * i.height * i.width for i in info) / 1e6,
        )
    result.show()


def main() -> None:
    own_point(measure)
    args = arguments(__doc__, None, images=50, steps=20, sides=[64, 1500, 3000], families=False)
    if args.families:
        return families(args)
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
