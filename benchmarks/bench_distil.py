# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What does it cost to distil a denoiser's features into one clean pass, and how many pictures does it take?

    python benchmarks/bench_distil.py
    python benchmarks/bench_distil.py --numbers 0 100 12823 --seeds 0

Copies of the model for faces learn for the same number of steps on so many pictures without labels, passes in
bfloat16; 0 is the model as it is, read in one clean pass too. Heads are fitted on `--labels` labelled pictures and
tested on `--max_test` others.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from bench_passes import Pictures
from harness import FOLDERS, SHARED, Result, arguments, in_own_process, now, own_point, peak_gib

from diffuseseg_diffusers import DistilFeaturesConfig, distil_features


HELD_OUT = 16


def measure(number: int, steps: int, folder: str) -> dict[str, float]:
    """Distils on the first pictures; minutes, and GiB at the most."""
    data, model = FOLDERS["faces64"]
    began = now()
    distil_features(
        DistilFeaturesConfig(
            model=str(SHARED / model),
            dataset_name=str(SHARED / data),
            dataset_config_name="unlabeled",
            split=f"train[:{number}]",
            random_flip=True,
            max_train_steps=steps,
            mixed_precision="bf16",
            num_validation_images=HELD_OUT,
            dataloader_num_workers=0,
            output_dir=Path(folder),
        )
    )
    return {"minutes": (now() - began) / 60, "memory": peak_gib()}


def main() -> None:
    own_point(measure)
    numbers = dict(numbers=[0, 100, 400, 1600, 12823], labels=[5, 20], seeds=[0, 1, 2])
    args = arguments(__doc__, None, **numbers, steps=200, max_test=50)
    columns = {"number": ("pictures", "int"), "minutes": ("minutes", "1"), "memory": ("memory, GiB", "1")}
    columns |= {f"labels {count}": (f"mean IoU, {count} labels", "percent") for count in args.labels}
    about = f"{args.steps} steps of eight faces; mean over the seeds with its range; {args.max_test} test faces."
    result = Result("distil-faces64", columns, args, about, keep=True)

    def curve(number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            distilled = Path(folder, "faces64")
            point = dict(number=number, steps=args.steps, folder=str(distilled))
            found = in_own_process(**point) if number else {}
            pictures = Pictures("faces64", argparse.Namespace(distilled=folder, max_test=args.max_test))
            for count in args.labels:
                reading = "distilled" if number else "clean"
                scores = [pictures.measure(reading, count, seed, "bfloat16")["mean_iou"] for seed in args.seeds]
                found[f"labels {count}"] = scores
            return found

    for number in args.numbers:
        result.cell(str(number), partial(curve, number))
    for number, cell in sorted(result.content["cells"].items(), key=lambda one: int(one[0])):
        shown = {key: cell[key] for key in columns if key in cell}
        result.row(number=int(number), **shown)
    result.show()


if __name__ == "__main__":
    main()
