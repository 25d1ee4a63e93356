# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A plain U-Net trained from scratch on the same labelled images: the alternative without a diffusion model.

Images and masks are flipped, turned, scaled, shifted and lit anew alike; the learning rate is warmed up and annealed
over the images that it sees; in use, it sees the mirror image too.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.datasets.augmentation import IGNORED, augment
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor, default_palette
from diffuseseg_diffusers.pipelines.outputs import SegmentedBatch
from diffuseseg_diffusers.pipelines.segmenter import Segmenter
from diffuseseg_diffusers.students.objective import segmentation_loss


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
        self.down = torch.nn.ModuleList(map(convolutions, [self.planes, *widths], widths))
        self.up = torch.nn.ModuleList(convolutions(sum(w), w[0]) for w in zip(widths, widths[1:]))
        self.out = torch.nn.Conv2d(width, dataset.num_classes, 1)
        self.to(memory_format=torch.channels_last)

    image_size = property(lambda self: self.size)
    in_channels = property(lambda self: self.planes)
    label_names = property(lambda self: self.classes.names)
    palette = property(lambda self: self.classes.palette or default_palette(self.classes.number))

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

    def segment_batch(self, pixels, sizes, class_labels=None, generator=None, return_probabilities=False):
        self.eval()
        straight, mirrored = self(torch.cat([pixels, pixels.flip(-1)])).float().softmax(1).chunk(2)
        mean = (straight + mirrored.flip(-1)) / 2  # [N,C,H,W]
        found = [F.interpolate(one[None], size=size, mode="bilinear")[0] for one, size in zip(mean, sizes)]
        masks = [p.max(0).indices.to(torch.uint8) for p in found]
        return SegmentedBatch(masks, probabilities=found if return_probabilities else None)


def train_unet(dataset: LabeledImages, images: int, seed: int, batch_size: int = 8, rate: float = 2e-3) -> PlainUNet:
    """A U-Net that has seen so many augmented images, its learning rate warmed up and annealed to zero."""
    torch.manual_seed(seed)
    net, generator = PlainUNet(dataset), torch.Generator().manual_seed(seed)
    rows = [dataset[i] for i in range(len(dataset))]
    pixels = net.images.preprocess(net.images.load([r.image for r in rows]), *net.size)  # [n,C,H,W]
    masks = torch.from_numpy(np.stack([r.mask for r in rows])).long()
    masks[masks == dataset.ignore_index] = IGNORED
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2, fused=True)
    net.train()
    for step in range(steps := images // batch_size):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, step / steps / 0.05) * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(rows), (batch_size,), generator=generator)
        lit, moved = augment(pixels[chosen] / 2 + 0.5, masks[chosen], generator)
        segmentation_loss(net(lit * 2 - 1), moved).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net
