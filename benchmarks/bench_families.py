# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What do features of each family of denoisers cost beside the least that they can cost?

    python benchmarks/bench_families.py            # tiny models of every family
    python benchmarks/bench_families.py --full     # a U-Net and an autoencoder of Stable Diffusion 1.5's shape
    python benchmarks/bench_families.py --memory   # bytes of features an image, of published shapes; no model is run

The floor is one encoding of the image, and the denoiser's own forward pass at all noise levels, left behind the last
tap; both are called as the family's pipeline calls them, with random weights. Beside it stand the extraction of the
default recipe's features and the whole of `segment`.
"""

import contextlib
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from harness import Result, arguments, in_turn, random_head, ratio
from tables import ROOT


sys.path.insert(0, str(ROOT))

from diffuseseg_diffusers import AutoDiffuseSegPipeline, recipe_extractor  # noqa: E402
from diffuseseg_diffusers.features.base import LastTapReached  # noqa: E402
from diffuseseg_diffusers.features.denoiser import DenoiserFeatureExtractor  # noqa: E402
from diffuseseg_diffusers.features.families import find_family  # noqa: E402
from diffuseseg_diffusers.heads.recipes import RECIPES  # noqa: E402
from tests.tiny_pipelines import FAMILIES, clip, stable_diffusion  # noqa: E402


def full_size() -> object:
    """Stable Diffusion 1.5's U-Net and autoencoder with random weights, beside a tiny text encoder of its width."""
    pipe = stable_diffusion()
    with torch.device("cpu"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
        )
    text_encoder, tokenizer = clip(768)
    pipe.register_modules(unet=unet.eval(), vae=vae.eval(), text_encoder=text_encoder, tokenizer=tokenizer)
    return pipe


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


def memory(args) -> None:
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
            blocks=" ".join(map(str, extractor.blocks)),
            timesteps=" ".join(map(str, extractor.timesteps)),
            features=", ".join(dict.fromkeys(f"{i.channels} at {i.height} × {i.width}" for i in info)),
            share=f"{max(shares[b] for b in extractor.blocks):.0%}".replace("%", " %"),
            megabytes=sum(2 * i.channels * i.height * i.width for i in info) / 1e6,
        )
    result.show()


@torch.no_grad()
def floor(extractor: DenoiserFeatureExtractor, images: torch.Tensor) -> None:
    """One encoding and one pass to the last tap, by hand."""
    latents = extractor.vae.encode(images)
    latents = latents.latent_dist.mode() if hasattr(latents, "latent_dist") else list(latents.values())[0]
    steps = torch.tensor(extractor.timesteps).repeat_interleave(len(images))
    condition = {k: v.expand(len(steps), *v.shape[1:]) for k, v in extractor.condition().items()}
    arguments = extractor.arguments(latents.repeat(len(extractor.timesteps), 1, 1, 1), steps, condition)
    tap = {t.index: t for t in extractor.taps}[max(extractor.blocks, key=lambda b: extractor.shares()[b])]
    module = extractor.model.get_submodule(tap.module)

    def leave(*_):
        raise LastTapReached

    hook = module.register_forward_pre_hook(leave) if tap.of_input else module.register_forward_hook(leave)
    with hook, contextlib.suppress(LastTapReached):
        extractor.model(**arguments, return_dict=False)


def main() -> None:
    args = arguments(__doc__, None, full=False, memory=False, size=128, rounds=5)
    if args.memory:
        return memory(args)
    columns = {
        "family": ("family", "text"),
        "floor": ("floor, ms", "ms"),
        "features": ("features, ms", "ms"),
        "features_ratio": ("ratio", "2"),
        "segment": ("segment, ms", "ms"),
        "segment_ratio": ("ratio", "2"),
    }
    sizes = f"Images of {args.size} × {args.size}, DiT 16 × 16, SD3 32 × 32"
    about = f"{sizes}; float32, medians of {args.rounds} rounds in turn."
    result = Result(args.name or f"families{'-full' if args.full else ''}", columns, args, about)
    makes = {"SD 1.5's shape": full_size} if args.full else {n: make for n, (make, _) in FAMILIES.items()}
    for name, make in makes.items():
        if name == "consistency":  # on pixels
            continue
        pipe = AutoDiffuseSegPipeline.from_pipe(make())
        size = (32, 32) if name == "SD3" else (16, 16) if name == "DiT" else (args.size, args.size)  # what they take
        extractor = recipe_extractor(pipe, "default", size=size)
        pipe.segmentation_head = random_head(extractor, 6, num_members=RECIPES["default"].num_members, voting="soft")
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        sides = {
            "floor": partial(floor, extractor, pixels),
            "features": partial(extractor, pixels),
            "segment": partial(pipe.segment, [image], output_type="np"),
        }
        seconds = in_turn(sides, args.rounds)
        ratios = {f"{side}_ratio": 1 / ratio(seconds, "floor", side) for side in ("features", "segment")}
        result.row(family=name, **seconds, **ratios)
    result.show()


if __name__ == "__main__":
    main()
