# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many pixels does an object need to be found?

    python benchmarks/bench_objects.py

Drawn pictures of 128 × 128: discs of several diameters, which differ from a ground of noise in texture and a little in
brightness. A head learns from five of them and segments ten others. A disc is found if more than half of its pixels are
labelled so. Heads read the activations of the general model or of its untrained twin, filters, or both, in pictures
as they are or enlarged twice.
"""

from dataclasses import replace

import numpy as np
import torch
from datasets import Dataset, Features, Image
from harness import Result, arguments, fit
from PIL import Image as Pictures

from diffuseseg_diffusers import LabeledImages, load_pipeline
from diffuseseg_diffusers.datasets.drawn_shapes import stationary_noise
from diffuseseg_diffusers.pipelines.general import suited_recipe


SIDE = 128  # of a picture, in pixels
DIAMETERS = (2, 3, 4, 6, 8, 12, 16, 24)  # of discs, in pixels
EACH = 2  # discs of a diameter in a picture
LABELED, OTHERS = 5, 10
HEADS = {  # what it reads, of which model, and how much larger than the picture
    "filters": ("filters", "general", 1),
    "activations": ("activations", "general", 1),
    "of the untrained twin": ("activations", "untrained", 1),
    "enlarged twice": ("activations", "general", 2),
    "both": ("both", "general", 1),
}


def draw(number: int) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray]]]:
    """A picture `[S, S, 3]` uint8, its mask `[S, S]`, and the diameter and the pixels `[S, S]` of each disc."""
    rng = np.random.default_rng(number)
    ground, texture = (stationary_noise(rng, SIDE, exponent) for exponent in (1.2, 0.6))
    y, x = np.mgrid[:SIDE, :SIDE]
    mask, discs = np.zeros((SIDE, SIDE), np.uint8), []
    for diameter in sorted(DIAMETERS * EACH, reverse=True):
        while True:  # until it touches no other
            cy, cx = rng.uniform(diameter / 2 + 1, SIDE - diameter / 2 - 1, 2)
            if not mask[np.hypot(y - cy, x - cx) < diameter / 2 + 3].any():
                break
        inside = np.hypot(y - cy, x - cx) < diameter / 2
        mask[inside] = 1
        discs.append((diameter, inside))
    picture = np.where(mask, 0.58 + 0.10 * texture, 0.45 + 0.10 * ground)[..., None] * np.array([1.0, 0.97, 0.9])
    return (picture.clip(0, 1) * 255).round().astype(np.uint8), mask, discs


def labelled(seed: int) -> LabeledImages:
    pictures = [draw(1000 * seed + i) for i in range(LABELED)]
    columns = {"image": [Pictures.fromarray(p) for p, *_ in pictures], "mask": [m for _, m, _ in pictures]}
    dataset = Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))
    return LabeledImages(dataset, label_names=["ground", "disc"])


def measure(head: str, seed: int) -> dict[str, float]:
    """Share of the discs of each diameter that are found, and of the ground that is taken for disc."""
    reads, model, scale = HEADS[head]
    recipe = replace(suited_recipe("default", "general"), inputs=(reads,))
    pipe = fit(load_pipeline(model), labelled(seed), recipe=recipe, seed=seed, size=(SIDE * scale, SIDE * scale))
    found: dict[int, list[bool]] = {diameter: [] for diameter in DIAMETERS}
    false = []
    for i in range(OTHERS):
        picture, mask, discs = draw(1000 * seed + 500 + i)
        with torch.no_grad():
            mine = pipe.segment(picture, output_type="np").masks[0] == 1
        for diameter, inside in discs:
            found[diameter].append(bool(mine[inside].mean() > 0.5))
        false.append(mine[mask == 0].mean())
    return {str(d): float(np.mean(own)) for d, own in found.items()} | {"false": float(np.mean(false))}


def main() -> None:
    args = arguments(__doc__, None, heads=list(HEADS), seeds=[0, 1, 2])
    columns = {"head": ("head reads", "text")} | {str(d): (f"{d} pixels", "percent") for d in DIAMETERS}
    columns |= {"false": ("ground taken for disc, %", "percent")}
    about = (
        f"Discs that are found, in %, by diameter: {EACH * OTHERS} of each in {OTHERS} drawn pictures, after {LABELED} "
        f"labelled ones; mean over the seeds with its range."
    )
    result = Result(args.name or "objects", columns, args, about)
    for head in args.heads:
        cells = [result.cell(f"{head} | {seed}", lambda h=head, s=seed: measure(h, s)) for seed in args.seeds]
        result.row(head=head, **{key: [cell[key] for cell in cells] for key in cells[0]})
    result.show()


if __name__ == "__main__":
    main()
