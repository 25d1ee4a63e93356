# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A plain U-Net trained from scratch on the same labelled images: what users would do without a diffusion model.

    python benchmarks/bench_unet.py --dataset_name DATA --counts 20 --minutes 3

Pictures and masks are flipped, turned, scaled, shifted and lit anew alike; the learning rate is warmed up and annealed
over the time that it gets; weights are averaged. The draws of labelled images are those of `diffuseseg analyze --study
labels` with the same seed; where a draw holds all images, seeds alone differ.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, load_labeled_images
from diffuseseg_diffusers.analysis import label_draws
from diffuseseg_diffusers.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.pipeline_diffuseseg import DiffuseSegPipelineOutput
from diffuseseg_diffusers.student import IGNORED, augment, segmentation_loss


class PlainUNet:
    """A U-Net that gives classes, in the seat of the pipeline."""

    def __init__(self, dataset: LabeledImages, width: int):
        first = dataset[0].image
        self.channels = 1 if first.mode == "L" else 3
        self.size = (first.height, first.width)
        self.images = DiffuseSegImageProcessor(self.channels)
        self.label_names = dataset.label_names or [f"class {c}" for c in range(dataset.num_classes)]
        self.unet = UNet2DModel(
            sample_size=self.size,
            in_channels=self.channels,
            out_channels=dataset.num_classes,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            down_block_types=("DownBlock2D",) * 4,
            up_block_types=("UpBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=8,
            add_attention=False,
            dropout=0.1,
        )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` in [-1, 1] to logits `[N, classes, H, W]`."""
        return self.unet(pixels, 0).sample

    @torch.no_grad()
    def segment(self, pictures, batch_size: int = 8, output_type: str = "np") -> DiffuseSegPipelineOutput:
        self.unet.eval()
        masks = []
        for picture in self.images.load(pictures):
            logits = self(self.images.preprocess([picture], *self.size))
            logits = torch.nn.functional.interpolate(logits, size=self.images.sizes([picture])[0], mode="bilinear")
            masks.append(logits[0].max(0).indices.to(torch.uint8).numpy())
        return DiffuseSegPipelineOutput(images=list(pictures), masks=masks)


def train(dataset: LabeledImages, minutes: float, seed: int, width: int, batch_size: int, rate: float) -> PlainUNet:
    torch.manual_seed(seed)
    net, generator = PlainUNet(dataset, width), torch.Generator().manual_seed(seed)
    rows = [dataset[i] for i in range(len(dataset))]
    pixels = net.images.preprocess(net.images.load([r.image for r in rows]), *net.size)  # [n,C,H,W]
    masks = torch.from_numpy(np.stack([r.mask for r in rows])).long()
    masks[masks == dataset.ignore_index] = IGNORED
    optimizer = torch.optim.AdamW(net.unet.parameters(), lr=rate, weight_decay=1e-2)
    average = EMAModel(net.unet.parameters(), decay=0.99)
    net.unet.train()
    began = time.perf_counter()
    with tqdm(desc="Training", unit="step", leave=False) as bar:
        while (part := (time.perf_counter() - began) / (60 * minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, part / 0.05) * 0.5 * (1 + np.cos(np.pi * part))
            chosen = torch.randint(len(rows), (batch_size,), generator=generator)
            lit, moved = augment(pixels[chosen] / 2 + 0.5, masks[chosen], generator)
            loss = segmentation_loss(net(lit * 2 - 1), moved)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.step(net.unet.parameters())
            bar.update()
    average.copy_to(net.unet.parameters())
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, help="JSON file for the rows.")
    args = parser.parse_args()
    data = load_labeled_images(args.dataset_name, args.dataset_config_name, args.split)
    names = {"label_names": data.label_names, "num_classes": data.num_classes}
    test = load_labeled_images(args.dataset_name, args.dataset_config_name, args.test_split, **names)
    print(f"{torch.get_num_threads()} threads, {args.minutes} minutes each")
    rows = []
    for count in args.counts:
        scores = []
        for draw, images in enumerate(label_draws(len(data), count, args.draws, args.seed)):
            net = train(
                data.select(images), args.minutes, args.seed + draw, args.width, args.batch_size, args.learning_rate
            )
            scores.append(evaluate_segmentation(net, test, show_progress=False)[0]["mean_iou"])
            print(f"{count} labelled, draw {draw}: {scores[-1]:.4f}", flush=True)
        rows.append({"labelled_images": count, "mean_iou": scores, "mean": float(np.mean(scores))})
    print("labelled  mean IoU  (each)")
    for row in rows:
        each = ", ".join(f"{s:.4f}" for s in row["mean_iou"])
        print(f"{row['labelled_images']:>8}  {row['mean']:>8.4f}  ({each})")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
