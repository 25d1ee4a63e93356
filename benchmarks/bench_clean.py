# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Is noise of use? Activations are read with it, as in training, and without: clean images, the same timesteps.

    python benchmarks/bench_clean.py
    python benchmarks/bench_clean.py --pictures nuclei --models general untrained --seeds 0

Mean IoU is cross-validated on labelled pictures, by pictures: with the default recipe's heads in fewer steps, all on
the same blocks. Test pictures are not looked at. `own` is a model of the same kind of
pictures.
"""

from functools import partial
from typing import Any

from harness import FOLDERS, SHARED, Result, arguments

from diffuseseg_diffusers import Classes, LabeledTiles, load_labeled_images, load_pipeline, recipe_extractor
from diffuseseg_diffusers.datasets.crops import pictures_of
from diffuseseg_diffusers.heads.cross_validation import Folds, LabeledActivations, cross_validated
from diffuseseg_diffusers.heads.recipes import find_recipe


# Labelled pictures, and the size at which they are read: whole, or of tiles.
PICTURES = {
    "faces64": (20, (64, 64), False),
    "camvid": (20, (96, 128), False),
    "blood-cells": (10, (120, 120), False),
    "nuclei": (5, (128, 128), True),
    "neurons": (3, (128, 128), True),
}
READINGS: dict[str, tuple[tuple[int, ...], bool]] = {  # timesteps, and whether without noise
    "noise, 10 and 600": ((10, 600), False),
    "noise, 100": ((100,), False),
    "clean, 0": ((0,), True),
    "clean, 25": ((25,), True),
    "clean, 50": ((50,), True),
    "clean, 200": ((200,), True),
    "clean, 0 and 50": ((0, 50), True),
}
MODELS = ["own", "general", "untrained"]
MOST_TILES, FOLDS = 40, 5


def main() -> None:
    args = arguments(__doc__, None, pictures=list(PICTURES), models=MODELS, seeds=[0], readings=list(READINGS))
    columns = {"pictures": ("pictures", "text"), "model": ("model", "text")}
    columns |= {name: (name, "percent") for name in READINGS}
    about = "Mean IoU in %, cross-validated on labelled pictures, by the timesteps that the denoiser is told of."
    result = Result(args.name or "clean", columns, args, about, keep=True)
    recipe = find_recipe("default").for_studies()

    def measure(name: str, model: str, reading: str, seed: int) -> dict[str, Any]:
        number, size, tiled = PICTURES[name]
        folder, own = FOLDERS.get(name, (f"data/fields/{name}", None))
        data: Any = load_labeled_images(str(SHARED / folder), "labeled", "train")
        data = data.select(range(number))
        data = LabeledTiles(data, size, 1.0, None, MOST_TILES, seed) if tiled else data
        pipe = load_pipeline(str(SHARED / own) if model == "own" else model, dtype="float32")
        timesteps, clean = READINGS[reading]
        extractor = recipe_extractor(pipe, recipe, timesteps=timesteps, clean=clean, noise_seed=seed, size=size)
        activations = LabeledActivations.extract(extractor, data, recipe, seed)
        folds = Folds.of(pictures_of(data), FOLDS, seed).held_out
        chosen = (extractor.blocks, extractor.timesteps, Classes.of(data), folds, recipe, seed)
        return {"mean_iou": float(cross_validated(activations, *chosen)["mean_iou"])}

    for name in args.pictures:
        for model in args.models if name in FOLDERS else [one for one in args.models if one != "own"]:
            for reading in args.readings:
                for seed in args.seeds:
                    result.cell(f"{name} | {model} | {reading} | {seed}", partial(measure, name, model, reading, seed))
    rows: dict[tuple[str, str], dict[str, list]] = {}
    for key, cell in result.content["cells"].items():  # of other commands too
        name, model, reading, _ = key.split(" | ")
        if reading not in READINGS:  # of earlier versions
            continue
        rows.setdefault((name, model), {}).setdefault(reading, []).append(cell["mean_iou"])
    for name, model in sorted(rows, key=lambda row: (list(PICTURES).index(row[0]), MODELS.index(row[1]))):
        result.row(pictures=name, model=f"`{model}`", **rows[name, model])
    result.show()


if __name__ == "__main__":
    main()
