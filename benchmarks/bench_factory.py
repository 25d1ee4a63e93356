# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the labels become: the head itself, students of its synthetic data, students of the same labels alone.

    python benchmarks/bench_factory.py --model MODEL --dataset_name DATA --work_dir out/factory

For every seed, a head is fitted on the training split, a dataset is generated with it, and students of the same kind
are trained alike, on that dataset, on the training split, and on both; all are measured on the test split (the protocol
of DatasetDDPM, Baranchuk et al., ICLR 2022, section 4.2). Everything runs through the commands of the package; what is
in the working folder already is not made again.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Diffusion model.")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--sampler", nargs="+", default=["ddim", "50"], help="Name, steps, and 'while' or nothing.")
    parser.add_argument("--dtype", default="auto", help="Precision of generation (default: auto).")
    parser.add_argument("--synthetic_only", action="store_true", help="Of the students, that one alone.")
    parser.add_argument("--unaugmented", action="store_true", help="Also students that see images as they are.")
    parser.add_argument("--student", nargs=argparse.REMAINDER, default=[], help="Further options of train-student.")
    args = parser.parse_args()
    real = ["--dataset_name", args.dataset_name]
    real += ["--dataset_config_name", args.dataset_config_name] if args.dataset_config_name else []
    scheduler, steps, *way = args.sampler
    way_to = [*args.sampler, *([] if args.dtype == "auto" else [args.dtype])]
    label = f"{args.num_samples} synthetic images ({' '.join(way_to)})"

    results: dict[str, list[float]] = {}
    for seed in args.seeds:
        head, measured = args.work_dir / f"head-{seed}", args.work_dir / f"head-{seed}-test"
        synthetic = args.work_dir / f"{args.num_samples}-{'-'.join(way_to)}-{seed}"
        command = ("fit", "--model", args.model, *real, "--recipe", "fast", "--seed", seed, "--output_dir", head)
        run(head / "head_training.json", *command)
        run(measured / "metrics.json", "evaluate", "--model", head, *real, "--output_dir", measured)
        results.setdefault("head", []).append(read(measured / "metrics.json")["mean_iou"])
        run(
            synthetic / "generation.json",
            *("generate", "--model", head, "--num_samples", args.num_samples, "--scheduler", scheduler),
            *("--num_inference_steps", steps, "--seed", seed, "--dtype", args.dtype, "--output_dir", synthetic),
            *(["--masks_while_sampling"] if way else []),
        )
        measured_on = [option.replace("--", "--eval_") for option in real]
        labelled = [option.replace("--", "--train_") for option in real]
        trainings = {
            label: ["--train_dataset_name", synthetic],
            "the labelled images alone": labelled,
            f"{label}, then the labelled ones": [*labelled, "--model", args.work_dir / folder_name(label, seed)],
        }
        if args.unaugmented:
            trainings |= {
                f"{name}, not augmented": [*trainings[name], "--no_augmentation"] for name in list(trainings)[:2]
            }
        for name, train in list(trainings.items())[: 1 if args.synthetic_only else None]:
            student = args.work_dir / folder_name(name, seed)
            command = ("train-student", *args.student, *train, *measured_on, "--seed", seed, "--output_dir", student)
            run(student / "student_training.json", *command)
            score = read(student / "student_training.json")["evaluation"]["mean_iou"]
            results.setdefault(f"student on {name}", []).append(score)
    print(f"\n{'mean IoU on the test split':<60} {'mean':>7}  by seed")
    for name, values in results.items():
        print(f"{name:<60} {np.mean(values):>7.4f}  {' '.join(f'{v:.4f}' for v in values)}")


def folder_name(name: str, seed: int) -> str:
    return re.sub(r"[^a-z0-9+]+", "-", f"student on {name} {seed}")


def run(result: Path, *command) -> None:
    """A command of the package, unless its result is there."""
    if not result.is_file():
        command = [str(Path(sys.executable).parent / "diffuseseg"), *map(str, command)]
        print("$ diffuseseg", *command[1:], flush=True)
        subprocess.run(command, check=True)


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
