# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A fitted model in several precisions: pixels on which its masks agree with float32, mean IoU, and speed.

python benchmarks/bench_precision.py --model MODEL --dataset_name DATA --dataset_config_name labeled
"""

import argparse

import numpy as np

from diffuseseg_diffusers import evaluate_segmentation, load_labeled_images, load_pipeline
from diffuseseg_diffusers.jobs.hardware import default_device, default_dtype, hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()

    masks = {}
    print("| precision | pixels as in float32 | mean IoU | s an image |\n|---|---|---|---|")
    for dtype in ["float32", *(d for d in args.dtypes if d != "float32")]:
        pipe = load_pipeline(args.model, dtype=dtype)
        data = load_labeled_images(args.dataset_name, args.dataset_config_name, args.split, classes=pipe.label_names)
        metrics, examples = evaluate_segmentation(pipe, data, args.batch_size, num_examples=len(data))
        masks[dtype] = np.concatenate([example.prediction.ravel() for example in examples])
        same = (masks[dtype] == masks["float32"]).mean()
        print(
            f"| {dtype} | {100 * same:.2f} % | {metrics['mean_iou']:.4f} | {metrics['seconds_per_image']:.3f} |",
            flush=True,
        )
    device = default_device()
    usual = str(default_dtype(device)).removeprefix("torch.")
    print(f"{len(data)} images; {hardware(device)}, whose own precision is {usual}.")


if __name__ == "__main__":
    main()
