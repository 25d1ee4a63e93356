# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Diffusion models side by side: denoising loss on images that none of them saw, and mean IoU of heads on them.

    python benchmarks/compare_ddpms.py --models MODEL OTHER_MODEL --dataset_name DATA --dataset_config_name labeled

The loss is of the predicted noise, over ten ranges of timesteps, on every labelled image: the same noise for all
models. Heads are fitted on the split `train` with the default recipe, one for each seed, and measured on `--split`.
"""

import argparse

import torch

from diffuseseg_diffusers import evaluate_segmentation, fit_segmentation_head, load_labeled_images
from diffuseseg_diffusers.datasets.unlabeled import to_pixels
from diffuseseg_diffusers.diffusion.objective import denoising_losses
from diffuseseg_diffusers.features.pixel_unet import image_size
from diffuseseg_diffusers.pipelines.loading import load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noises", type=int, default=4, help="Noises of each image and range of timesteps.")
    parser.add_argument("--blocks", type=int, nargs="+", help="Decoder blocks (default: as `fit`).")
    args = parser.parse_args()
    train, test = (
        load_labeled_images(args.dataset_name, args.dataset_config_name, split) for split in ("train", args.split)
    )
    for name in args.models:
        pipe = load_pipeline(name, dtype="float32")
        size, channels = image_size(pipe.unet), pipe.unet.config.in_channels
        pixels = torch.stack([to_pixels(d[i].image, size, channels) for d in (train, test) for i in range(len(d))])
        losses = torch.stack(
            [denoising_losses(pipe.unet, pipe.scheduler, pixels, seed=seed) for seed in range(args.noises)]
        )
        pipe = load_pipeline(name)
        scores = []
        for seed in args.seeds:
            pipe.segmentation_head = None
            pipe.segmentation_head = fit_segmentation_head(pipe, train, blocks=args.blocks, recipe="fast", seed=seed)
            scores.append(evaluate_segmentation(pipe, test)[0]["mean_iou"])
        print(f"\n{name}: {sum(p.numel() for p in pipe.unet.parameters()) / 1e6:.1f} million parameters")
        print(f"denoising loss on {len(pixels)} images: {losses.mean():.5f}")
        print("  by range:", " ".join(f"{x:.4f}" for x in losses.mean(0)))
        print(f"mean IoU on {len(test)}: {sum(scores) / len(scores):.4f} ({', '.join(f'{s:.4f}' for s in scores)})")


if __name__ == "__main__":
    main()
