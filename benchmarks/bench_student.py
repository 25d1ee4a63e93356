# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Seconds an image: the diffusion model with its head against a student, in PyTorch and as an ONNX file.

    python benchmarks/bench_student.py --model MODEL --student STUDENT --dataset_name DATA [--onnx student.onnx]

All segment the same images in batches of the same size, in turn, from the decoded image to the mask at its
size; medians over rounds.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.pipelines.loading import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--student", required=True)
    parser.add_argument("--onnx")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    data = load_labeled_images(args.dataset_name, args.dataset_config_name, args.split)
    images = [data[i].image for i in range(args.batch_size)]
    pipe = load_pipeline(args.model, dtype=args.dtype)
    models = {f"head ({pipe.unet.dtype})": pipe, "student": load_pipeline(args.student, dtype=args.dtype)}
    if args.onnx:
        models["student, ONNX (float32)"] = load_pipeline(args.onnx)
    sides = {name: partial(model.segment, images, args.batch_size, output_type="np") for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(args.rounds + 1):  # the first one warms up
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if round_number:
                seconds[name].append((time.perf_counter() - began) / len(images))
    first = np.median(next(iter(seconds.values())))
    print(f"{torch.get_num_threads()} threads, batches of {args.batch_size}, {args.rounds} rounds")
    for name, values in seconds.items():
        print(f"{name:<26} {1000 * np.median(values):8.2f} ms an image  {first / np.median(values):6.1f}×")


if __name__ == "__main__":
    main()
