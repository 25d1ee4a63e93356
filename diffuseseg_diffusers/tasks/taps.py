# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lists what can be read of a model: `diffuseseg taps`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..jobs.config import option
from ..jobs.errors import UserError
from .options import MODEL, CachesDownloads, RunsModel, SetsSize


if TYPE_CHECKING:
    from ..features.base import FeatureExtractor


@dataclass(frozen=True, kw_only=True)
class TapsConfig(RunsModel, SetsSize, CachesDownloads):
    """List what can be read of a model."""

    model: str = option(help=MODEL, positional=True, reads=True)


def taps(config: TapsConfig) -> str:
    """Lists the taps of a model: number, module, channels, resolution, stride, share of a pass, bytes an image.

    Returns:
        `str`: The table, which is printed too.

    Raises:
        UserError: The model cannot be loaded, is a student, or cannot read images of this size.

    Examples:
        >>> from diffuseseg_diffusers import TapsConfig, taps
        >>> table = taps(TapsConfig(model="google/ddpm-cat-256"))
    """
    from ..heads.fit import recipe_extractor
    from ..pipelines.general import suited_recipe
    from ..pipelines.loading import load_pipeline
    from ..pipelines.segmenter import HeadSegmenter

    pipe: Any = load_pipeline(config.model, **config.loading())
    if not isinstance(pipe, HeadSegmenter):
        raise UserError(f"{config.model} is a student or several models, with no features; give the diffusion model.")
    table = describe_taps(recipe_extractor(pipe, suited_recipe("default", config.model), size=config.size))
    print(table)
    return table


def describe_taps(extractor: "FeatureExtractor") -> str:
    """The table of an extractor's taps: number, module, channels, resolution, stride, share of a pass, bytes an image.

    Args:
        extractor ([`FeatureExtractor`]): Of any family.
    """
    from ..features.base import ordered

    every = extractor.choose(ordered({*extractor.numbers, *extractor.blocks}), extractor.timesteps[:1])
    rows: list[tuple[str, ...]] = [
        ("block", "module", "channels", "resolution", "stride", "share of a pass", "kB a timestep")
    ]
    shares = every.shares()
    for tap, info in zip(every.taps, every.feature_info()):
        share = "" if shares[tap.index] is None else f"{shares[tap.index]:.0%}"
        module = f"{tap.module} (its input)" if tap.of_input else tap.module
        size = 2 * info.channels * info.height * info.width / 1e3
        number = "by name" if isinstance(tap.index, str) else tap.index
        cells = (number, module, tap.channels, f"{info.height} × {info.width}", tap.stride, share, f"{size:,.0f}")
        rows.append(tuple(map(str, cells)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))) for r in rows]
    height, width = extractor.size
    usual = f"Read by the default recipe: blocks {' '.join(map(str, extractor.blocks))}"
    clean = ", without noise" if extractor.clean else ""
    usual += f"; timesteps {' '.join(map(str, extractor.timesteps))}{clean}." if extractor.schedule else "."
    return "\n".join([f"{type(extractor).__name__}, images of {height} × {width} pixels", *lines, usual])
