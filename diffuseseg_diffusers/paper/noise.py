# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Choices of the noise that images are given (paper, section 4, "stochastic feature extraction")."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from ..features.base import Block
from ..features.pixel_unet import DecoderFeatureExtractor
from ..heads.cross_validation import LabeledActivations, fit_groups, others, score
from ..heads.ensemble import PixelClassifierEnsemble
from ..heads.fit import recipe_extractor
from ..jobs.errors import UserError
from .study import Study, StudyReport


NAME = "noise"
NOISES = ("none", "one", "per timestep", "fresh", "averaged")
NUM_MEMBERS = 5


class NoiseVariant(DecoderFeatureExtractor):
    """Feature extraction with another choice of noise.

    Args:
        *args, **kwargs: As in [`DecoderFeatureExtractor`], but for `share_noise` and `clean`, which `noise` says.
        noise (`str`): `"none"`, clean images; `"one"` for all images and timesteps, as [`DecoderFeatureExtractor`] does
            by default; `"per timestep"`: one for each timestep, the same for all images; `"fresh"` for every image and
            timestep; `"averaged"`: activations averaged over several fresh ones.
        draws (`int`, defaults to 5): How many, for `"averaged"`.
    """

    def __init__(self, *args: Any, noise: str, draws: int = 5, **kwargs: Any):
        told = {"share_noise": noise in ("none", "one", "per timestep"), "clean": noise == "none"}
        super().__init__(*args, **{**kwargs, **told})
        self.noise, self.draws = noise, draws if noise == "averaged" else 1

    def choose(
        self, blocks: Sequence[Block] | None = None, timesteps: Sequence[int] | None = None, **options: Any
    ) -> "NoiseVariant":
        chosen = super().choose(blocks, timesteps, **{"noise": self.noise, "draws": self.draws, **options})
        return cast(NoiseVariant, chosen)

    def draw_noise(
        self, images: torch.Tensor, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> torch.Tensor:
        if self.noise != "per timestep":
            return super().draw_noise(images, generator)
        n, *shape = images.shape
        seeded = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(len(self.timesteps), *shape, generator=seeded)
        return noise.repeat_interleave(n, dim=0).to(images.device)  # [T*N,C,H,W]

    def run(self, images: torch.Tensor, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        total = super().run(images, *args, **kwargs)
        for _ in range(self.draws - 1):
            total = [a + b for a, b in zip(total, super().run(images, *args, **kwargs))]
        return [a / self.draws for a in total]


def check_noise(study: Study) -> None:
    """Refuses models without noise, and more folds than images, before the long work."""
    study.held_out()
    if not isinstance(study.extractor, DecoderFeatureExtractor):
        what = f"is for diffusion U-Nets on pixels, and {type(study.pipe).__name__} holds none"
        raise UserError(f"The study of noise {what}; choose another --study.")
    if not study.extractor.sees_noise:
        raise UserError("This denoiser was distilled to see no noise; choose another --study.")


def noise(study: Study) -> StudyReport:
    """Mean IoU of the variants of noise, trained and tested in all combinations, cross-validated."""
    chosen = (study.pipe, study.recipe, study.blocks, study.timesteps)
    extractor, held_out = recipe_extractor(*chosen, noise_seed=study.seed, clean=False), study.held_out()
    read = {"blocks": list(extractor.blocks), "timesteps": list(extractor.timesteps)}
    settings = study.settings | {"folds": study.folds, **read, "draws": study.draws}
    results = study.results(NAME, settings)
    pairs = [(trained, tested) for trained in NOISES for tested in NOISES]
    tables: dict[str, LabeledActivations] = {}
    heads: dict[str, list[PixelClassifierEnsemble]] = {}
    if any(f"{trained} / {tested}" not in results.by_key for trained, tested in pairs):
        study.say_missing_classes(study.labels())
        for kind in tqdm(NOISES, "Noise", unit="kind"):
            how = dict(noise_seed=study.seed, noise=kind, draws=study.draws)
            tables[kind] = study.activations(NoiseVariant.of(study.pipe, **read, **how))

    def compute(trained: str, tested: str) -> dict:
        if trained not in heads:
            how = (study.classes, others(held_out), study.short_recipe, NUM_MEMBERS, study.seed)
            heads[trained] = fit_groups(tables[trained], extractor.blocks, extractor.timesteps, *how)
        return score(heads[trained], tables[tested], held_out, study.classes)

    rows = []
    for trained, tested in tqdm(pairs, "Trained / tested", unit="pair"):
        result = results.get(f"{trained} / {tested}", partial(compute, trained, tested))
        rows.append({"trained": trained, "tested": tested, **result})
    summary = [f"{'trained with':<14}" + "".join(f"{n:>14}" for n in NOISES)]
    for trained in NOISES:
        values = [r["mean_iou"] for r in rows if r["trained"] == trained]
        summary.append(f"{trained:<14}" + "".join(f"{v:>14.4f}" for v in values))
    return StudyReport(rows, settings, summary)
