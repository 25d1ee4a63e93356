# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is it worth to start one's own denoiser from the general one? Both sides train for the same minutes.

    python benchmarks/bench_pretrained.py --field blood-cells --minutes 10

A U-Net of the same make, from the weights of the general model and from nothing, on the unlabelled pictures of a field:
its denoising loss on pictures that are held out, and the mean IoU of the default recipe on its features, beside those
of its start.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import SHARED, Result, arguments, fit, mean_iou

from diffuseseg_diffusers import load_labeled_images, load_pipeline
from diffuseseg_diffusers.jobs.files import read_json


SIDES = {"--pretrained": "from {}", "--model_config": "from nothing"}


def main() -> None:
    start = "general"
    args = arguments(__doc__, None, field="blood-cells", minutes=10.0, labels=5, start=start, resolution=64, seed=0)
    data = SHARED / "data" / "fields" / args.field
    train = load_labeled_images(str(data), "labeled", "train")
    names = {"label_names": train.label_names, "num_classes": train.num_classes}
    test = load_labeled_images(str(data), "labeled", "test", **names)
    train = train.select(range(args.labels))
    columns = {"side": ("", "text"), "iou": ("mean IoU", "percent"), "loss": ("denoising loss", "4")}
    about = f"{args.minutes:g} minutes on {args.field}, whole pictures at {args.resolution} × {args.resolution}; "
    about += f"{args.labels} labelled images, {len(test)} test images."
    result = Result(args.name or f"pretrained-{args.field}", columns, args, about)

    def score(model: str) -> float:
        pipe, size = load_pipeline(model, dtype="float32"), (args.resolution, args.resolution)
        return mean_iou(fit(pipe, train, size=size, seed=args.seed), test)

    def measure(option: str) -> dict[str, float]:
        with TemporaryDirectory() as scratch:
            command = [sys.executable, "-m", "diffuseseg_diffusers", "train-ddpm", option, args.start]
            command += ["--dataset_name", data, "--dataset_config_name", "unlabeled", "--random_flip"]
            command += ["--resolution", args.resolution, "--max_train_minutes", args.minutes, "--seed", args.seed]
            command += [
                "--train_batch_size",
                16,
                "--use_ema",
                "--num_samples",
                0,
                "--output_dir",
                Path(scratch, "ddpm"),
            ]
            subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
            losses = read_json(Path(scratch, "ddpm", "training_state.json"))["denoising_loss"]["validation"]
            return {"iou": score(str(Path(scratch, "ddpm"))), "loss": sum(losses) / len(losses)}

    for option, side in SIDES.items():
        result.row(side=side.format(args.start), **result.cell(option, lambda option=option: measure(option)))
    for name in dict.fromkeys((args.start, "untrained")):
        result.row(side=f"{name}, not trained on", iou=result.cell(name, lambda name=name: score(name)), loss=None)
    result.show()


if __name__ == "__main__":
    main()
