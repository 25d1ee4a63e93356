# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which choice of the default recipe brings what? Cross-validation on the labelled images; no test image is looked at.

    python benchmarks/bench_recipe.py --task faces64 --variants default "ten members" "mirror images in use"
    python benchmarks/bench_recipe.py --task faces64 --blocks

Each seed draws some of the labelled images, fits every variant on them and measures it on all others, clean and under
shift (mean of the four). Draws differ more than variants do, hence the difference from the default on the same draw.
`--blocks` reads each decoder block alone at each of `--timesteps`, as `diffuseseg analyze` does.
"""

import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from harness import SHIFTS, Result, Shifted, Task, arguments, fit, mean_iou

from diffuseseg_diffusers.features.pixel_unet import PAPER_BLOCKS
from diffuseseg_diffusers.heads.fit import recipe_extractor
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.paper.blocks_timesteps import blocks_timesteps
from diffuseseg_diffusers.paper.labels import label_draws
from diffuseseg_diffusers.paper.study import Study


DEFAULT = RECIPES["default"]
PUBLISHED = replace(DEFAULT, blocks=PAPER_BLOCKS)  # at their relative depth


def head(recipe: Any = DEFAULT, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """A variant: another recipe, or other features, which may depend on the pipeline."""
    return recipe, changes


VARIANTS = {
    "default": head(),
    "paper": head("paper"),
    "fast": head("fast"),
    "features: timestep 0": head(timesteps=(0,)),
    "features: timesteps 0 50": head(timesteps=(0, 50)),
    "features: with noise, 10 600": head(clean=False),
    "features: with noise, 50 150 250": head(timesteps=(50, 150, 250), clean=False),
    "features: the paper's blocks": head(blocks=lambda pipe: recipe_extractor(pipe, PUBLISHED).blocks),
    "features: outputs of up-blocks": head(blocks=lambda pipe: recipe_extractor(pipe, "paper").blocks),
    "features: all decoder blocks": head(blocks=lambda pipe: range(len(pipe.features().taps))),
    "features: fresh noise": head(share_noise=False),
    "augmented views: none": head(replace(DEFAULT, augmented_images=0)),
    "augmented views: 80 images": head(replace(DEFAULT, augmented_images=80)),
    "augmented views: 320 images": head(replace(DEFAULT, augmented_images=320)),
    "mirror images in use": head(replace(DEFAULT, mirror=True)),
    "no mirrored views": head(flip=False),
    "two members": head(replace(DEFAULT, num_members=2)),
    "ten members": head(replace(DEFAULT, num_members=10)),
    "hard votes": head(replace(DEFAULT, voting="hard")),
    "equal weights of classes": head(replace(DEFAULT, balance=0.0)),
    "weights by the fourth root": head(replace(DEFAULT, balance=0.25)),
    "weights by the square root": head(replace(DEFAULT, balance=0.5)),
    "no standardising": head(replace(DEFAULT, standardize=False)),
    "batches of 256": head(replace(DEFAULT, batch_size=256)),
    "2,000 steps": head(replace(DEFAULT, max_steps=2000)),
}


def each_block(task: Task, pipe: Any, args: Any) -> None:
    """One classifier on one block at one timestep, five folds."""
    args.seeds = args.seeds[:1]
    columns = {"block": ("block", "int")} | {f"t{t}": (f"t = {t}", "percent") for t in args.timesteps}
    about = f"Cross-validated mean IoU in %, {len(task.train)} labelled images, five folds; block 0 is the deepest."
    result = Result(args.name or f"blocks-{args.task}", columns, args, about, pipe.unet.dtype)

    def measure(timestep: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            study = Study(pipe, task.train, Path(folder), "fast", timesteps=[timestep], seed=args.seeds[0])
            return {str(row["block"]): row["mean_iou"] for row in blocks_timesteps(study).rows}

    found = {t: result.cell(str(t), lambda t=t: measure(t)) for t in args.timesteps}
    for block in found[args.timesteps[0]]:
        result.row(block=int(block), **{f"t{t}": found[t][block] for t in args.timesteps})
    result.show()


def main() -> None:
    options = dict(counts=[2, 10], seeds=[0, 1, 2], variants=list(VARIANTS), dtype="auto")
    args = arguments(__doc__, **options, blocks=False, timesteps=[10, 50, 150, 250, 400, 600])
    task = Task(args.task)
    pipe = task.pipe(args.dtype)
    if args.blocks:
        return each_block(task, pipe, args)
    kinds = [f"{kind}_{count}" for kind in ("clean", "shifted") for count in args.counts]
    columns = {"variant": ("", "text")}
    for kind in kinds:
        name, count = kind.split("_")
        columns |= {kind: (f"{name}, {count} labels", "text")}
    about = "Mean IoU in % on the labelled images that were not drawn; in brackets the difference from the default."
    result = Result(args.name or f"recipe-{args.task}", columns, args, about, pipe.unet.dtype)

    def measure(variant: str, count: int, seed: int) -> dict[str, float]:
        own = label_draws(len(task.train), count, seed + 1)[seed]
        others = task.train.select([i for i in range(len(task.train)) if i not in own])
        recipe, changes = VARIANTS[variant]
        features = {k: v(pipe) if callable(v) else v for k, v in changes.items()}
        fit(pipe, task.train.select(own), recipe=recipe, seed=seed, **features)
        shifted = statistics.mean(mean_iou(pipe, Shifted(others, shift)) for shift in SHIFTS)
        return {"clean": mean_iou(pipe, others), "shifted": shifted}

    found = {
        (v, n, s): result.cell(f"{v}; {n}; {s}", lambda v=v, n=n, s=s: measure(v, n, s))
        for s in args.seeds
        for v in args.variants
        for n in args.counts
    }
    for variant in args.variants:
        row = {"variant": variant}
        for kind in kinds:
            name, count = kind.split("_")
            own, usual = (
                100 * np.array([found[v, int(count), s][name] for s in args.seeds]) for v in (variant, args.variants[0])
            )
            spread = f" ± {(own - usual).std(ddof=1):.1f}" if len(own) > 1 else ""
            change = f" ({(own - usual).mean():+.1f}{spread})" if variant != args.variants[0] else ""
            row[kind] = f"{own.mean():.1f}{change}"
        result.row(**row)
    result.show()


if __name__ == "__main__":
    main()
