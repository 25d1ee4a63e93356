# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A plain U-Net trained from scratch on the same labelled images: the alternative without a diffusion model.

Images are standardised, each by its own mean and deviation. Images and masks, or crops of large ones, are flipped (but
not where a class name tells left from right), turned, scaled, shifted and lit anew alike; the loss is cross-entropy
plus Dice, as in nnU-Net (Isensee et al. 2021); the learning rate is warmed up and annealed over the images or the
minutes that are given; in use, it sees the mirror image too.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from harness import now

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.datasets.augmentation import IGNORED, augment
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor, default_palette
from diffuseseg_diffusers.pipelines.outputs import SegmentedBatch
from diffuseseg_diffusers.pipelines.segmenter import Segmenter
from diffuseseg_diffusers.students.objective import dice_loss, segmentation_loss


def convolutions(channels: int, width: int) -> torch.nn.Sequential:
    layers = []
    for inputs in (channels, width):
        layers += [torch.nn.Conv2d(inputs, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width)]
        layers += [torch.nn.ReLU(inplace=True)]
    return torch.nn.Sequential(*layers)


class PlainUNet(Segmenter, torch.nn.Module):
    """The U-Net of Ronneberger et al. (2015) with batch norms; in use averaged with the mirror image."""

    def __init__(self, dataset: LabeledImages, width: int = 32, levels: int = 4):
        torch.nn.Module.__init__(self)
        first = dataset[0].image
        self.size, self.planes = (first.height, first.width), 1 if first.mode == "L" else 3
        self.images, self.classes = DiffuseSegImageProcessor(self.planes), Classes.of(dataset)
        widths = [width * 2 ** min(i, 3) for i in range(levels)]
        self.multiple = 2 ** (levels - 1)  # of the sides of what it reads
        self.down = torch.nn.ModuleList(map(convolutions, [self.planes, *widths], widths))
        self.up = torch.nn.ModuleList(convolutions(sum(w), w[0]) for w in zip(widths, widths[1:]))
        self.out = torch.nn.Conv2d(width, dataset.num_classes, 1)
        self.to(memory_format=torch.channels_last)

    image_size = property(lambda self: self.size)
    in_channels = property(lambda self: self.planes)
    label_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette or default_palette(self.classes.number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]`, standardised, to logits `[N, classes, H, W]`."""
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

    def pixels(self, image) -> torch.Tensor:
        """`[1, C, H, W]` in [-1, 1], at the image's own size."""
        return self.images.preprocess(self.images.load([image]), image.height, image.width)

    @torch.no_grad()
    def probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """`[N, C, H, W]` in [-1, 1] to `[N, classes, H, W]`."""
        self.eval()
        height, width = pixels.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        x = F.pad((pixels - pixels.mean((1, 2, 3), keepdim=True)) / deviation(pixels), pad, mode="reflect")
        mean = self(x).softmax(1)
        if not self.classes.tell_sides:
            mean = (mean + self(x.flip(-1)).softmax(1).flip(-1)) / 2
        return mean[..., :height, :width]

    def segment_batch(self, pixels, sizes, class_labels=None, generator=None, return_probabilities=False):
        mean = self.probabilities(pixels)
        found = [F.interpolate(one[None], size=size, mode="bilinear")[0] for one, size in zip(mean, sizes)]
        masks = [p.max(0).indices.to(torch.uint8) for p in found]
        return SegmentedBatch(masks, probabilities=found if return_probabilities else None)

    def segment_whole(self, image) -> np.ndarray:
        """The mask `[H, W]` uint8 of an image that is read at its own size."""
        return self.probabilities(self.pixels(image))[0].argmax(0).byte().numpy()


def deviation(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.std((1, 2, 3), keepdim=True).clamp(min=1e-3)


def corner(mask: torch.Tensor, size: list[int], generator: torch.Generator) -> tuple[slice, slice]:
    """Where to crop: half of the time around a pixel of one of the classes of the mask, so that rare ones are seen."""
    own = mask.unique()
    own = own[own != IGNORED]
    if len(own) and torch.rand((), generator=generator) < 0.5:
        places = (mask == own[torch.randint(len(own), (), generator=generator)]).nonzero()
        middle = places[torch.randint(len(places), (), generator=generator)].tolist()
        starts = [min(max(m - s // 2, 0), length - s) for m, s, length in zip(middle, size, mask.shape)]
    else:
        starts = [int(torch.randint(n - s + 1, (), generator=generator)) for n, s in zip(mask.shape, size)]
    return slice(starts[0], starts[0] + size[0]), slice(starts[1], starts[1] + size[1])


def train_unet(
    dataset: LabeledImages,
    seed: int,
    images: int | None = None,
    minutes: float | None = None,
    side: int = 128,
    batch_size: int = 8,
    rate: float = 2e-3,
    width: int = 32,
) -> PlainUNet:
    """A U-Net that has seen so many augmented images, or as many as the minutes allow, its learning rate warmed up and
    annealed to zero; of images beyond `side`, whose sizes may differ, it sees crops."""
    torch.manual_seed(seed)
    net, generator = PlainUNet(dataset, width), torch.Generator().manual_seed(seed)
    rows = [dataset[i] for i in range(len(dataset))]
    pixels = [net.pixels(row.image) for row in rows]  # n times [1,C,H,W]
    masks = [torch.from_numpy(row.mask.astype(np.int64)) for row in rows]
    for mask in masks:
        mask[mask == dataset.ignore_index] = IGNORED
    mean, spread = (torch.cat(x) for x in ([p.mean((1, 2, 3), True) for p in pixels], [deviation(p) for p in pixels]))
    size = [min(side, *lengths) // net.multiple * net.multiple for lengths in zip(*(m.shape for m in masks))]
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2, fused=True)
    net.train()
    step, began = 0, now()
    while (done := step * batch_size / images if images else (now() - began) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, done / 0.05 + 0.01) * 0.5 * (1 + math.cos(math.pi * done))
        chosen = torch.randint(len(rows), (batch_size,), generator=generator)
        crops = [corner(masks[i], size, generator) for i in chosen]
        seen = torch.cat([pixels[i][..., y, x] for i, (y, x) in zip(chosen, crops)])
        truth = torch.stack([masks[i][y, x] for i, (y, x) in zip(chosen, crops)])
        lit, moved = augment(seen / 2 + 0.5, truth, generator, flip=not net.classes.tell_sides)
        logits = net((lit * 2 - 1 - mean[chosen]) / spread[chosen])
        (segmentation_loss(logits, moved) + dice_loss(logits, moved)).backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    return net
