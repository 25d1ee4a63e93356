# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is one pass worth? Heads on four passes (two timesteps with noise, of the image and of its mirror image), on one
of them, on a clean image, and on a denoiser that was distilled to give in one pass what others give in several.

    python benchmarks/bench_passes.py
    python benchmarks/bench_passes.py --pictures faces64 camvid --readings "four passes" clean distilled --speed

Mean IoU is that of all pixels of up to `--max_test` test pictures. Faces and street scenes have denoisers of their own,
the others are read by `general`: blood cells whole, nuclei in tiles of 128 pixels. `faces64-latent` are faces read by
the denoiser of latents in the folder `--latent`. `distilled` takes the folder of the pictures' name in `--distilled`,
made from the same model by `diffuseseg distil-features`. Masks are computed in `--dtype`. With `--speed` pictures are
segmented in batches of 8 too, the ways in turn, in each precision; `ATEN_CPU_CAPABILITY=avx2` and
`ONEDNN_MAX_CPU_ISA=AVX2` do without AVX-512. All cells stay in the result, whatever was asked for since.
"""

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_fields import Field, compare
from harness import FOLDERS, Result, Task, arguments, in_turn, ratio

from diffuseseg_diffusers import LabeledTiles, fit_segmentation_head, load_pipeline
from diffuseseg_diffusers.datasets.unlabeled import evenly_spread
from diffuseseg_diffusers.evaluation.evaluate import segment_rows
from diffuseseg_diffusers.pipelines.general import GENERAL, suited_recipe


LATENT = "faces64-latent"
PICTURES = {"faces64": (64, 64), "camvid": (96, 128), "blood-cells": (120, 120), "nuclei": (128, 128), LATENT: (64, 64)}
COUNTS = {"camvid": [2, 5, 30]}  # 2, 5, 20 of others
TILED = ("nuclei",)
READINGS: dict[str, dict[str, Any]] = {
    "four passes": {"clean": False},
    "noise, 10": {"clean": False, "timesteps": (10,)},
    "noise, 600": {"clean": False, "timesteps": (600,)},
    "clean": {},
    "distilled": {},
}
FOUR, ONE = "four passes", "clean"


class Pictures:
    """Labelled pictures, how they are read, and a model for them."""

    def __init__(self, name: str, args: Any):
        self.name, self.size, self.distilled = name, PICTURES[name], str(Path(args.distilled, name))
        if name in FOLDERS or name == LATENT:
            task = Task(name.removesuffix("-latent"))
            self.train, self.model = task.train, args.latent if name == LATENT else str(task.model)
            self.test = task.test.select(evenly_spread(len(task.test), args.max_test))
        else:
            field = Field(name, args.max_test)
            self.train, self.test, self.model = field.train, field.test, GENERAL

    def fitted(self, reading: str, count: int, seed: int, dtype: str = "float32") -> Any:
        recipe = suited_recipe("default", self.model)
        if reading == FOUR:
            recipe = replace(recipe, mirror=True, noisy_timesteps=(10, 600))
        data: Any = self.train.select(range(count))
        if self.name in TILED:
            data = LabeledTiles(data, self.size, 1.0, None, 200, seed)
        pipe = load_pipeline(self.distilled if reading == "distilled" else self.model, dtype=dtype)
        how = dict(recipe=recipe, size=self.size, seed=seed)
        pipe.segmentation_head = fit_segmentation_head(pipe, data, **how, **READINGS[reading])
        return pipe

    def measure(self, reading: str, count: int, seed: int, dtype: str) -> dict[str, Any]:
        pipe = self.fitted(reading, count, seed, dtype)
        return compare(lambda row: segment_rows(pipe, [row], 8, tiled=True)[0][0], self.test) | {"dtype": dtype}

    def speed(self, dtype: str, rounds: int) -> dict[str, Any]:
        """Milliseconds an image, of whole images or tiles, in batches of 8."""
        data: Any = LabeledTiles(self.test, self.size, 1.0, None, 8, 0) if self.name in TILED else self.test
        images = [data[i].image for i in range(8)]
        pipes = {reading: self.fitted(reading, 2, 0, dtype) for reading in (FOUR, ONE)}
        sides = {k: lambda p=p: p.segment(images, batch_size=8, output_type="np") for k, p in pipes.items()}
        seconds = in_turn(sides, rounds)
        found = {reading: 1000 * statistics.median(seconds[reading]) / len(images) for reading in sides}
        return found | {"share": 1 / ratio(seconds, FOUR, ONE)}


def main() -> None:
    options: dict[str, Any] = dict(pictures=list(PICTURES), readings=list(READINGS), seeds=[0, 1, 2], counts=[0])
    args = arguments(
        __doc__,
        None,
        **options,
        distilled="distilled",
        latent="latent",
        max_test=50,
        dtype="float32",
        speed=False,
        rounds=5,
    )
    columns = {"pictures": ("pictures", "text"), "labels": ("labels", "int")}
    columns |= {reading: (reading, "percent") for reading in READINGS}
    about = f"Mean IoU in %, mean over the seeds with its range; up to {args.max_test} test pictures."
    result = Result(args.name or "passes", columns, args, about, keep=True)
    columns = {"pictures": ("pictures", "text"), "dtype": ("", "text"), "instructions": ("instructions", "text")}
    columns |= {reading: (f"{reading}, ms", "1") for reading in (FOUR, ONE)} | {"share": ("share of the time", "2")}
    about = f"Segmenting an image in batches of 8; medians of {args.rounds} rounds in turn."
    speed = Result(f"{args.name or 'passes'}-speed", columns, args, about, keep=True)
    for name in args.pictures:
        pictures = Pictures(name, args)
        for seed in args.seeds:
            for count in args.counts if any(args.counts) else COUNTS.get(name, [2, 5, 20]):
                for reading in args.readings:
                    key = f"{name} | {count} | {reading} | {seed}"
                    result.cell(key, partial(pictures.measure, reading, count, seed, args.dtype))
        for dtype in ("float32", "bfloat16") if args.speed else ():
            key = f"{name} | {dtype} | {torch.backends.cpu.get_cpu_capability()}"
            speed.cell(key, partial(pictures.speed, dtype, args.rounds))
    rows: dict[tuple[str, int], dict[str, list]] = {}
    reduced = set()
    for key, cell in result.content["cells"].items():
        name, count, reading, _ = key.split(" | ")
        reduced |= {name} if cell.get("dtype", "float32") != "float32" else set()
        rows.setdefault((name, int(count)), {}).setdefault(reading, []).append(cell["mean_iou"])
    if reduced:
        result.content["about"] += f" All or some in bfloat16: {', '.join(p for p in PICTURES if p in reduced)}."
    for name, count in sorted(rows, key=lambda row: (list(PICTURES).index(row[0]), row[1])):
        result.row(pictures=name, labels=count, **rows[name, count])
    result.show()
    for key, cell in speed.content["cells"].items():
        where = dict(zip(("pictures", "dtype", "instructions"), key.split(" | ")))
        speed.row(**where, **{k: cell[k] for k in (FOUR, ONE, "share")})
    speed.show()


if __name__ == "__main__":
    main()
