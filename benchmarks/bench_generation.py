# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Samplers side by side: seconds an image with its mask, and how masks from the denoising steps agree with the others.

    python benchmarks/bench_generation.py --model MODEL

Every row starts from the same noise. "Agreement" is of the two ways to get the masks of the same images: from the
finished image, noised anew (as the paper does it), and from the denoising steps. `--reference` adds the sampler of the
published pipeline, 1,000 steps of DDPM.
"""

import argparse
import time

import numpy as np
import torch

from diffuseseg_diffusers.factory.sampling import scheduler_for
from diffuseseg_diffusers.heads.ensemble import image_uncertainty
from diffuseseg_diffusers.pipelines.loading import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--num_samples", type=int, default=64, help="Number of images (default: 64).")
    parser.add_argument("--batch_size", type=int, default=16, help="Images at once (default: 16).")
    parser.add_argument("--reference", action="store_true", help="Also 1,000 steps of DDPM.")
    args = parser.parse_args()
    pipe = load_pipeline(args.model)
    pipe.set_progress_bar_config(disable=True)
    original = pipe.scheduler
    samplers = [("ddim", 50), ("ddim", 20), ("dpmsolver++", 50), ("dpmsolver++", 20)]
    if args.reference:
        samplers.insert(0, ("ddpm", 1000))
    print(f"{torch.get_num_threads()} threads, {pipe.unet.dtype}, {args.num_samples} images in batches")
    print("sampler      steps  s an image  masks while sampling  agreement  uncertainty (from image, while sampling)")
    pipe(args.batch_size, num_inference_steps=2)  # warm-up
    for name, steps in samplers:
        pipe.scheduler = scheduler_for(name, original)
        seconds, masks, scores = ([], []), ([], []), ([], [])
        for start in range(0, args.num_samples, args.batch_size):
            for way in (False, True):
                noise = [torch.Generator().manual_seed(i) for i in range(start, start + args.batch_size)]
                began = time.perf_counter()
                output = pipe(args.batch_size, noise, steps, "np", masks_while_sampling=way)
                seconds[way].append((time.perf_counter() - began) / args.batch_size)
                masks[way].append(output.masks)
                scores[way].append(image_uncertainty(torch.from_numpy(output.uncertainty)))
        agreement = np.mean(np.concatenate(masks[0]) == np.concatenate(masks[1]))
        uncertainty = [float(torch.cat(s).mean()) for s in scores]
        times = "  ".join(f"{np.median(s):>{width}.3f}" for s, width in zip(seconds, (10, 20)))
        scored = ", ".join(f"{u:.4f}" for u in uncertainty)
        print(f"{name:<11}  {steps:>5}  {times}  {agreement:>9.4f}  {scored}", flush=True)


if __name__ == "__main__":
    main()
