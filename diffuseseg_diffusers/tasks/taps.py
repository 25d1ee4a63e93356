# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lists what can be read of a model: `diffuseseg taps`."""

import argparse
from typing import Any

from ..arguments import add_cache_argument, add_model_options, height_and_width
from ..features.base import FeatureExtractor
from ..heads.fit import recipe_extractor
from ..jobs.errors import UserError
from ..pipelines.loading import load_pipeline
from ..pipelines.segmenter import HeadSegmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="Pipeline: a local folder or a name on the Hub.")
    parser.add_argument(
        "--resolution",
        type=int,
        nargs="+",
        help="Side, or height and width, in pixels at which images are read (default: the model's own).",
    )
    add_model_options(parser.add_argument_group("model"))
    add_cache_argument(parser)


def main(args: argparse.Namespace) -> None:
    size = height_and_width(args.resolution)
    pipe: Any = load_pipeline(args.model, args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(f"{args.model} is a student, which has no features; give the model that it learnt from.")
    print(describe_taps(recipe_extractor(pipe, size=size)))


def describe_taps(extractor: FeatureExtractor) -> str:
    """The table of an extractor's taps: number, module, channels, resolution, stride, share of a pass, bytes an image.

    Args:
        extractor ([`FeatureExtractor`]): Of any family.
    """
    every = extractor.choose(extractor.numbers, extractor.timesteps[:1])
    rows: list[tuple[str, ...]] = [
        ("block", "module", "channels", "resolution", "stride", "share of a pass", "kB a timestep")
    ]
    shares = every.shares()
    for tap, info in zip(every.taps, every.feature_info()):
        share = "" if shares[tap.index] is None else f"{shares[tap.index]:.0%}"
        module = f"{tap.module} (its input)" if tap.of_input else tap.module
        size = 2 * info.channels * info.height * info.width / 1e3
        cells = (tap.index, module, tap.channels, f"{info.height} × {info.width}", tap.stride, share, f"{size:,.0f}")
        rows.append(tuple(map(str, cells)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))) for r in rows]
    height, width = extractor.size
    usual = f"Read by the default recipe: blocks {' '.join(map(str, extractor.blocks))}"
    usual += f"; timesteps {' '.join(map(str, extractor.timesteps))}." if extractor.schedule else "."
    return "\n".join([f"{type(extractor).__name__}, images of {height} × {width} pixels", *lines, usual])
