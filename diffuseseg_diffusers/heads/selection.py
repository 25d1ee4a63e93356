# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which blocks and timesteps to read, chosen by cross-validation on the labelled images."""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from ..datasets.labeled import LabeledImages
from ..features.base import Block, FeatureExtractor, ordered
from ..jobs.errors import UserError
from .classes import Classes
from .cross_validation import LabeledActivations, cross_validated, entries_of, folds_of, missing_classes, others
from .fit import recipe_extractor
from .recipes import Recipe, find_recipe
from .table import ActivationTable


# Of the paper's schedule of 1,000 steps; denser where images are less noisy, as the informative ones are.
STUDY_TIMESTEPS = (10, 50, 100, 150, 200, 250, 300, 400, 600, 800)


@dataclass(frozen=True)
class Budget:
    """Upper limits on the cost of features; `None` for no limit.

    Args:
        dimensions (`int`, *optional*): Length of a pixel's feature vector.
        bytes (`int`, *optional*): Bytes of an image's activations in half precision.
        milliseconds (`float`, *optional*): Time of the U-Net's passes for an image, estimated as
            timesteps × a pass to the last block.
    """

    dimensions: int | None = None
    bytes: int | None = None
    milliseconds: float | None = None

    def allows(self, cost: dict) -> bool:
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        return all(cost[name] <= limit for name, limit in limits.items())


def cost_of(
    table: ActivationTable, blocks: Sequence[Block], timesteps: Sequence[int], pass_milliseconds: dict[Block, float]
) -> dict:
    """What blocks × timesteps cost, with the keys of [`Budget`]; `pass_milliseconds` are those of [`time_passes`]."""
    info = [table.info[i] for i in entries_of(table, blocks, timesteps)]
    return {
        "dimensions": sum(f.channels for f in info),
        "bytes": sum(2 * f.channels * f.height * f.width for f in info),
        "milliseconds": len(timesteps) * max(pass_milliseconds[block] for block in blocks),
    }


def time_passes(extractor: FeatureExtractor, image: torch.Tensor, repeats: int = 3) -> dict[Block, float]:
    """Median milliseconds per timestep of a pass up to each block of an image `[1, C, H, W]`, after a warm-up."""
    milliseconds = {}
    for block in extractor.blocks:
        one = extractor.choose([block], extractor.timesteps[:3])
        seconds = []
        for _ in range(repeats + 1):
            if image.is_cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            one(image).activations[0].flatten()[0].item()  # waits for a GPU
            seconds.append((time.perf_counter() - began) / len(one.timesteps))
        milliseconds[block] = 1000 * float(np.median(seconds[1:]))
    return milliseconds


def select_features(
    scored: Callable[[Sequence[Block], Sequence[int]], float],
    cost: Callable[[Sequence[Block], Sequence[int]], dict],
    blocks: Sequence[Block],
    timesteps: Sequence[int],
    budget: Budget,
    rival: tuple[Sequence[Block], Sequence[int]] | None = None,
    choose: Sequence[str] = ("blocks", "timesteps"),
    announce: Callable[[int, int], None] = lambda step, count: None,
) -> list[dict]:
    """Greedy forward selection: the best single cell, then one more block or timestep as long as the score rises.

    Args:
        scored, cost (`Callable`): Cross-validated mean IoU of blocks × timesteps, and their cost, see [`cost_of`].
        blocks, timesteps (sequence of `int`): What there is to choose from.
        budget ([`Budget`]): What may not be exceeded.
        rival (two sequences of `int`, *optional*): A choice that competes with what is found, if the budget allows it.
        choose (sequence of `str`): Without `"blocks"` or `"timesteps"`, all of those are taken.
        announce (`Callable`): Called before each step with its number and how many choices it scores.

    Returns:
        `list[dict]`: Every choice that was scored, the best first: `blocks`, `timesteps`, `mean_iou`, `step` (1 for
        single cells, 0 for the rival) and the cost.

    Raises:
        UserError: The budget excludes every choice.
    """
    tried: dict[tuple, dict] = {}

    def attempt(step: int, choices: Iterable[tuple[Sequence[Block], Sequence[int]]]) -> None:
        keys = dict.fromkeys((ordered(b), tuple(sorted(t))) for b, t in choices)
        prices = {key: cost(*key) for key in keys if key not in tried}
        new = {key: price for key, price in prices.items() if budget.allows(price)}
        announce(step, len(new))
        for key, price in new.items():
            tried[key] = {"blocks": key[0], "timesteps": key[1], "mean_iou": scored(*key), "step": step, **price}

    def best() -> dict:
        return max(tried.values(), key=lambda c: c["mean_iou"])

    first_blocks = [[b] for b in blocks] if "blocks" in choose else [blocks]
    first_steps = [[t] for t in timesteps] if "timesteps" in choose else [timesteps]
    attempt(1, itertools.product(first_blocks, first_steps))
    if not tried:
        raise UserError(f"Not even the smallest choice of features stays within the budget {asdict(budget)}; raise it.")
    now, step = None, 1
    while now is not best():
        now, step = best(), step + 1
        more_blocks = [([*now["blocks"], b], now["timesteps"]) for b in ordered(set(blocks) - set(now["blocks"]))]
        more_steps = [(now["blocks"], [*now["timesteps"], t]) for t in sorted(set(timesteps) - set(now["timesteps"]))]
        attempt(step, [*more_blocks, *more_steps])
    if rival is not None:
        attempt(0, [rival])
        if (own := tried.get((ordered(rival[0]), tuple(sorted(rival[1]))))) is not None:
            own["step"] = 0
    return sorted(tried.values(), key=lambda c: -c["mean_iou"])


def choose_features(
    pipe: Any,
    dataset: LabeledImages,
    recipe: str | Recipe = "default",
    blocks: Sequence[Block] | None = None,
    timesteps: Sequence[int] | None = None,
    budget: Budget | None = None,
    folds: int = 5,
    share_noise: bool = True,
    clean: bool | None = None,
    flip: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    show_progress: bool = True,
    size: tuple[int, int] | None = None,
    prompt: str | None = None,
) -> list[dict]:
    """Chooses blocks and timesteps by cross-validation on the labelled images.

    Args:
        pipe ([`DiffuseSegPipeline`] or [`BackbonePipeline`]), dataset ([`LabeledImages`]): The frozen model, and the
            images to fit on.
        recipe (`str` or [`Recipe`], defaults to `"default"`): The one that the head will be fitted with. Every choice
            is measured by [`Recipe.for_studies`] of it, and its own features compete.
        blocks, timesteps (sequence of `int`, *optional*): Taken as they are if given, else chosen.
        budget ([`Budget`], *optional*): As many dimensions as the recipe's own features have, if not given.
        folds (`int`, defaults to 5): As many as there are images, at most.
        share_noise, clean, flip, size, prompt: As in [`fit_segmentation_head`].
        seed (`int`): Of noise, folds, augmented views and classifiers.
        batch_size, cache_dir, show_progress: As in [`extract_activations`].

    Returns:
        `list[dict]`: As [`select_features`]; the first is the choice.

    Raises:
        UserError: There is one image only, or the budget is too small.
    """
    # 1. What there is to choose from, and what the recipe would read.
    reading: dict[str, Any] = dict(share_noise=share_noise, clean=clean, size=size, prompt=prompt)
    reading["noise_seed"] = seed
    usual = recipe_extractor(pipe, recipe, blocks, timesteps, **reading)
    recipe = find_recipe(recipe).for_studies()
    choose = [name for name, given in (("blocks", blocks), ("timesteps", timesteps)) if given is None]
    candidates = (
        ordered({*(blocks or [*usual.numbers, *usual.blocks])}),
        sorted({*(timesteps or [*usual.default_timesteps(STUDY_TIMESTEPS), *usual.timesteps])}),
    )
    held_out = folds_of(len(dataset), min(folds, len(dataset)), seed)
    extractor = usual.choose(*candidates)

    # 2. All of it, extracted once.
    given = (recipe, seed, batch_size, cache_dir, show_progress, flip)
    activations = LabeledActivations.extract(extractor, dataset, *given)
    table, classes = activations.table, Classes.of(dataset)
    passes = time_passes(extractor, torch.zeros(1, extractor.in_channels, *table.size, device=extractor.device))
    rival = (usual.blocks, usual.timesteps)
    budget = budget or Budget(dimensions=cost_of(table, *rival, passes)["dimensions"])
    for what in missing_classes(activations.labels, others(held_out), classes):
        tqdm.write(what)

    # 3. Choice after choice.
    with tqdm(total=0, unit="choice", disable=not show_progress) as bar:

        def announce(step: int, count: int) -> None:
            bar.total = bar.n + count  # how many steps follow is not known
            bar.set_description(f"Choosing features, step {step}" if step else "The recipe's own features")

        def scored(b: Sequence[Block], t: Sequence[int]) -> float:
            result = cross_validated(activations, b, t, classes, held_out, recipe, seed)
            bar.update()
            return result["mean_iou"]

        cost = partial(cost_of, table, pass_milliseconds=passes)
        return select_features(scored, cost, *candidates, budget, rival, choose, announce)


def configured_features(
    config: Any,
    recipe: Recipe,
    pipe: Any,
    dataset: LabeledImages,
    size: tuple[int, int] | None,
    accelerator: Accelerator,
) -> tuple[dict[str, Any], list[dict]]:
    """Which features a `FitConfig` reads, chosen by cross-validation, in the main process, where it says `auto`.

    Returns:
        `dict`: `blocks`, `timesteps`, `up_blocks` and `noise_levels` for [`fit_segmentation_head`].
        `list[dict]`: All choices that were tried, the best first; empty without `auto`.

    Raises:
        UserError: The features take more than the budget.
    """
    given = {name: getattr(config, name) for name in ("blocks", "timesteps", "up_blocks", "noise_levels")}
    reading: dict[str, Any] = dict(size=size, prompt=config.prompt, **config.noising)
    usual = recipe_extractor(pipe, recipe, **{**given, **dict.fromkeys(config.auto)}, **reading)
    if not config.auto:
        taken = sum(2 * i.channels * i.height * i.width for i in usual.feature_info())
        if config.max_bytes is not None and taken > config.max_bytes:
            raise UserError(
                f"The activations of an image take {taken:,} bytes, more than --max_bytes {config.max_bytes:,}; choose "
                f"fewer --blocks or --timesteps, a smaller --resolution, or auto."
            )
        return given, []
    tried: list[Any] = [None]
    if accelerator.is_main_process:  # the measured times differ between processes
        fixed = {name: None if name in config.auto else getattr(usual, name) for name in ("blocks", "timesteps")}
        limits = (config.max_dimensions, config.max_bytes, config.max_milliseconds)
        options: dict[str, Any] = dict(flip=False if config.no_flip else None)
        options |= dict(seed=config.seed, batch_size=config.batch_size, cache_dir=config.activation_dir, **reading)
        budget = Budget(*limits) if any(limits) else None
        tried[0] = choose_features(pipe, dataset, recipe, **fixed, budget=budget, **options)
        print(format_choices(tried[0]))
        print(f"Of {len(tried[0])} choices, cross-validated on {len(dataset)} images, the first is taken.")
    broadcast_object_list(tried)
    best = tried[0][0]
    return {"blocks": list(best["blocks"]), "timesteps": list(best["timesteps"])}, tried[0]


def format_choices(choices: Sequence[dict], count: int = 5) -> str:
    """The table of the best choices that `fit` prints; `choices` as [`select_features`] returns them."""
    lines = [f"{'mean IoU':>8}  {'dimensions':>10}  {'MB':>6}  {'ms':>6}  blocks; timesteps"]
    own = "; the recipe's own"
    for c in choices[:count]:
        where = f"{' '.join(map(str, c['blocks']))}; {' '.join(map(str, c['timesteps']))}"
        costs = f"{c['dimensions']:>10}  {c['bytes'] / 1e6:>6.2f}  {c['milliseconds']:>6.1f}"
        lines.append(f"{c['mean_iou']:>8.4f}  {costs}  {where}{own if c['step'] == 0 else ''}")
    return "\n".join(lines)
