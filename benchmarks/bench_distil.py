# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What does it cost to distil a denoiser's features into one clean pass, and how many pictures does it take?

    python benchmarks/bench_distil.py
    python benchmarks/bench_distil.py --numbers 0 100 12823 --seeds 0

Copies of the model for faces learn for the same number of steps on so many pictures without labels, in float32 or
bfloat16 as `diffuseseg distil-features` chooses; 0 is the model as it is, read in one clean pass too. Heads are fitted
on `--labels` labelled pictures and tested on `--max_test` others. The second table has what a step costs, by model.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench_passes import LATENT, PICTURES, Pictures
from harness import FOLDERS, SHARED, Result, arguments, in_own_process, now, own_point, peak_gib

from diffuseseg_diffusers import DistilFeaturesConfig, distil_features
from diffuseseg_diffusers.pipelines.general import GENERAL


HELD_OUT = 16
FEW = 12  # steps, two of which are left out, where only their time is asked for


def measure(name: str, number: int, steps: int, folder: str) -> dict[str, float]:
    """Distils on the first pictures; minutes of all, seconds of a step, and GiB at the most."""
    data, model = FOLDERS.get(name, (f"data/fields/{name}", None))
    began = now()
    state = distil_features(
        DistilFeaturesConfig(
            model=str(SHARED / model) if model else GENERAL,
            dataset_name=str(SHARED / data),
            dataset_config_name="unlabeled",
            split=f"train[:{number}]",
            resolution=PICTURES[name],
            random_flip=True,
            max_train_steps=steps,
            num_validation_images=HELD_OUT,
            dataloader_num_workers=0,
            output_dir=Path(folder),
        )
    )
    return {"minutes": (now() - began) / 60, "step": state["seconds"] / state["step"], "memory": peak_gib()}


def main() -> None:
    own_point(measure)
    numbers = dict(numbers=[0, 100, 400, 1600, 12823], labels=[5, 20], seeds=[0, 1, 2])
    args = arguments(
        __doc__, None, **numbers, steps=200, max_test=50, pictures=[name for name in PICTURES if name != LATENT]
    )
    columns = {"number": ("pictures", "int"), "minutes": ("minutes", "1")}
    columns |= {f"labels {count}": (f"mean IoU, {count} labels", "percent") for count in args.labels}
    about = f"{args.steps} steps of eight faces; mean over the seeds with its range; {args.max_test} test faces."
    result = Result("distil-faces64", columns, args, about, keep=True)
    costs = {"pictures": ("pictures", "text"), "size": ("size", "text"), "step": ("seconds a step of eight", "1")}
    costs |= {"memory": ("memory, GiB", "1")}
    about = f"Means of {FEW} steps, in a process of its own."
    cost = Result("distil-cost", costs, args, about, keep=True)

    def curve(number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            distilled = Path(folder, "faces64")
            point = dict(name="faces64", number=number, steps=args.steps, folder=str(distilled))
            found = in_own_process(**point) if number else {}
            pictures = Pictures("faces64", argparse.Namespace(distilled=folder, max_test=args.max_test))
            for count in args.labels:
                reading = "distilled" if number else "clean"
                scores = [pictures.measure(reading, count, seed, "bfloat16")["mean_iou"] for seed in args.seeds]
                found[f"labels {count}"] = scores
            return found

    def step(name: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return in_own_process(name=name, number=40, steps=FEW, folder=str(Path(folder, name)))

    for number in args.numbers:
        result.cell(str(number), partial(curve, number))
    for name in args.pictures:
        cost.cell(name, partial(step, name))
    for number, cell in sorted(result.content["cells"].items(), key=lambda one: int(one[0])):
        shown = {key: cell[key] for key in columns if key in cell}
        result.row(number=int(number), **shown)
    result.show()
    for name, cell in cost.content["cells"].items():
        cost.row(pictures=name, size=" × ".join(map(str, PICTURES[name])), step=cell["step"], memory=cell["memory"])
    cost.show()


if __name__ == "__main__":
    main()
