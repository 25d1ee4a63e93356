# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A plain U-Net trained from scratch on the same labelled images: what users would do without a diffusion model.

    python benchmarks/bench_unet.py --dataset_name DATA --counts 20 --minutes 3

Images and masks are flipped, turned, scaled, shifted and lit anew alike; the learning rate is warmed up and annealed
over the time that it gets; in use, it sees the mirror image too. The draws of labelled images are those of `diffuseseg
analyze --study labels` with the same seed; where a draw holds all images, seeds alone differ.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from diffuseseg_diffusers import LabeledImages, evaluate_segmentation, load_labeled_images
from diffuseseg_diffusers.datasets.augmentation import IGNORED, augment
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor, default_palette
from diffuseseg_diffusers.paper.labels import label_draws
from diffuseseg_diffusers.pipelines.segmenter import SegmentedBatch, Segmenter
from diffuseseg_diffusers.students.training import segmentation_loss


def convolutions(channels: int, width: int) -> torch.nn.Sequential:
    layers = []
    for inputs in (channels, width):
        layers += [torch.nn.Conv2d(inputs, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width)]
        layers += [torch.nn.ReLU(inplace=True)]
    return torch.nn.Sequential(*layers)


class MirrorSegmenter(Segmenter, torch.nn.Module):
    """A network that gives logits `[N, classes, H, W]`, in use averaged with those of the mirror image."""

    def __init__(self, dataset: LabeledImages, size: tuple[int, int], channels: int):
        torch.nn.Module.__init__(self)
        self.images = DiffuseSegImageProcessor(channels)
        self.size, self.planes, self.classes = size, channels, Classes.of(dataset)

    image_size = property(lambda self: self.size)
    in_channels = property(lambda self: self.planes)
    label_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette or default_palette(self.classes.number))

    def inputs(self, pixels: torch.Tensor):
        """What the network takes, of images `[N, C, H, W]` in [-1, 1]."""
        return pixels

    def segment_batch(self, pixels, sizes, class_labels=None, generator=None, return_probabilities=False):
        self.eval()
        straight, mirrored = self(self.inputs(torch.cat([pixels, pixels.flip(-1)]))).float().softmax(1).chunk(2)
        mean = (straight + mirrored.flip(-1)) / 2  # [N,C,H,W]
        found = [F.interpolate(one[None], size=size, mode="bilinear")[0] for one, size in zip(mean, sizes)]
        masks = [p.max(0).indices.to(torch.uint8) for p in found]
        return SegmentedBatch(masks, probabilities=found if return_probabilities else None)


class PlainUNet(MirrorSegmenter):
    """The U-Net of Ronneberger et al. (2015) with batch norms."""

    def __init__(self, dataset: LabeledImages, width: int, levels: int):
        first = dataset[0].image
        super().__init__(dataset, (first.height, first.width), 1 if first.mode == "L" else 3)
        widths = [width * 2 ** min(i, 3) for i in range(levels)]
        self.down = torch.nn.ModuleList(map(convolutions, [self.planes, *widths], widths))
        self.up = torch.nn.ModuleList(convolutions(sum(w), w[0]) for w in zip(widths, widths[1:]))
        self.out = torch.nn.Conv2d(width, dataset.num_classes, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` in [-1, 1] to logits `[N, classes, H, W]`."""
        skips = []
        with torch.autocast(x.device.type, torch.bfloat16):
            x = x.contiguous(memory_format=torch.channels_last)
            for block in self.down:
                x = block(F.max_pool2d(x, 2) if skips else x)
                skips.append(x)
            skips.pop()
            for block in reversed(self.up):
                skip = skips.pop()
                x = block(torch.cat([skip, F.interpolate(x, size=skip.shape[-2:], mode="bilinear")], dim=1))
            return self.out(x).float()


def train(
    dataset: LabeledImages,
    minutes: float,
    seed: int = 0,
    width: int = 32,
    levels: int = 4,
    batch_size: int = 8,
    rate: float = 2e-3,
) -> PlainUNet:
    """A U-Net trained for that long, its learning rate warmed up and annealed to zero."""
    torch.manual_seed(seed)
    net, generator = PlainUNet(dataset, width, levels), torch.Generator().manual_seed(seed)
    rows = [dataset[i] for i in range(len(dataset))]
    pixels = net.images.preprocess(net.images.load([r.image for r in rows]), *net.size)  # [n,C,H,W]
    masks = torch.from_numpy(np.stack([r.mask for r in rows])).long()
    masks[masks == dataset.ignore_index] = IGNORED
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2, fused=True)
    net.train()
    began = time.perf_counter()
    with tqdm(desc="Training", unit="step", leave=False, mininterval=5) as bar:
        while (part := (time.perf_counter() - began) / (60 * minutes)) < 1:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, part / 0.05) * 0.5 * (1 + np.cos(np.pi * part))
            chosen = torch.randint(len(rows), (batch_size,), generator=generator)
            lit, moved = augment(pixels[chosen] / 2 + 0.5, masks[chosen], generator)
            segmentation_loss(net(lit * 2 - 1), moved).backward()
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
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
    parser.add_argument("--levels", type=int, default=4)
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
            how = args.width, args.levels, args.batch_size, args.learning_rate
            net = train(data.select(images), args.minutes, args.seed + draw, *how)
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
