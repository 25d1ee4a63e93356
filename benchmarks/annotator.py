# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A simulated annotator, who knows the true mask and asks a rule where to draw.

Strokes are three pixels wide, along the middle of the region under the pointer. Rules choose the picture, and five
places at a time in it:

* `random`: a random picture, random places.
* `uncertain`: a random picture, the places where the head is least certain, not next to each other.
* `typical`: the picture that stands for most that no labelled picture stands for, as in ours; random places.
* `margin`: as ilastik shows it: picture and places with the smallest margin between the two best classes.
* `doubt`: as ours, without counting strokes and without seeking classes: doubt over the share of its classes.
* `ours`: the rule of `labeling/suggestions.py`, as the app uses it.
"""

from collections import deque
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label as components
from skimage.morphology import medial_axis

from diffuseseg_diffusers import recipe_extractor
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.labeling.features import Basis, PictureFeatures, places, sample_pixels
from diffuseseg_diffusers.labeling.live import PIXELS, LiveHead, Sampled
from diffuseseg_diffusers.labeling.regions import sparse_pixels
from diffuseseg_diffusers.labeling.suggestions import Advice, Rule


WIDTH = 3  # pixels, of a stroke
LENGTH = 24  # pixels, of its longest path
RULES = ["random", "uncertain", "typical", "margin", "doubt", "ours"]
MARKS = (5, 10, 20, 50, 60, 80, 100, 140, 200)
AT_ONCE = 5  # strokes before the head is fitted again
RAREST = 0.01  # share below which a class does not get rarer, for `doubt`


def true_stroke(mask: np.ndarray, y: int, x: int, length: int = LENGTH) -> tuple[np.ndarray, int] | None:
    """The stroke that an annotator draws who is asked about a pixel.

    Args:
        mask (`np.ndarray`): `[H, W]` uint8, the true class ids, 255 where there is none.
        y, x (`int`): The pixel.
        length (`int`): Of the path along the medial axis of the connected region around the pixel.

    Returns:
        Boolean `[H, W]`, the pixels of the stroke, all of one true class, and that class; `None` where the truth says
        nothing.
    """
    label = int(mask[y, x])
    if label == 255:
        return None
    own = components(mask == label, connectivity=1)
    region = own == own[y, x]
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    box = (slice(top, rows[-1] + 2), slice(left, columns[-1] + 2))
    # The border of the picture is a border of the region: strokes do not run along it.
    padded = np.pad(region[box], 1)
    axis = medial_axis(padded, rng=0)[1:-1, 1:-1]
    points = np.argwhere(axis)
    start = points[((points - (y - top, x - left)) ** 2).sum(1).argmin()]
    path = _walk(axis, tuple(start), length)
    stroke = np.zeros_like(axis)
    reach = WIDTH // 2
    for py, px in path:
        stroke[max(py - reach, 0) : py + reach + 1, max(px - reach, 0) : px + reach + 1] = True
    result = np.zeros(mask.shape, bool)
    result[box] = stroke & region[box]
    return result, label


def _walk(axis: np.ndarray, start: tuple[int, int], length: int) -> list[tuple[int, int]]:
    """The `length` points of an axis that are nearest to a point along it."""
    seen, queue = {start}, deque([start])
    while queue and len(seen) < length:
        y, x = queue.popleft()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                near = (y + dy, x + dx)
                inside = 0 <= near[0] < axis.shape[0] and 0 <= near[1] < axis.shape[1]
                if inside and axis[near] and near not in seen and len(seen) < length:
                    seen.add(near)
                    queue.append(near)
    return list(seen)


class Data:
    """Pictures to label and pictures to measure on, with their features."""

    def __init__(self, pool: list, test: list, num_classes: int, pipe: Any):
        extractor = recipe_extractor(pipe)
        processor = DiffuseSegImageProcessor(extractor.in_channels)

        @torch.no_grad()
        def activations(image):
            return extractor(processor.preprocess(processor.load([image]), *extractor.size)).activations

        basis = Basis.of([activations(image) for image, _ in pool[:: max(1, -(-len(pool) // 16))]])
        self.num_classes = num_classes
        self.pool = [PictureFeatures.of(basis.reduce(activations(image))[0]) for image, _ in pool]
        self.test = [basis.reduce(activations(image))[0] for image, _ in test]
        self.masks, self.truth = [m for _, m in pool], [m for _, m in test]
        self.all = self.pool, self.masks

    def choose(self, seed: int) -> None:
        """Takes random four fifths of the pictures to label, so that seeds differ in more than the head's weights."""
        pool, masks = self.all
        chosen = np.random.default_rng(seed).permutation(len(pool))[: -(-4 * len(pool) // 5)]
        self.pool, self.masks = [pool[i] for i in chosen], [masks[i] for i in chosen]
        self.rule = Rule([f.probes for f in self.pool])
        each = max(8, 4096 // len(chosen))
        self.unlabeled = torch.cat([f.pixels[:each] for f in self.pool]).float()

    def measure(self, head: LiveHead | None) -> list[float]:
        """Mean IoU, and the least IoU of a class, on the test split."""
        if head is None:
            return [0.0, 0.0]
        c = self.num_classes
        counts = torch.zeros(c, c)
        for grid, truth in zip(self.test, self.truth):
            mean, _ = head.predict(grid.flatten(1).T)
            maps = mean.T.unflatten(1, grid.shape[1:])[None]
            maps = F.interpolate(maps, truth.shape, mode="bilinear") if maps.shape[2:] != truth.shape else maps
            found = torch.tensor(head.classes)[maps[0].argmax(0)]
            own = torch.from_numpy(truth).long()
            known = own != 255
            counts += torch.bincount(own[known] * c + found[known], minlength=c * c).view(c, c)
        union = counts.sum(0) + counts.sum(1) - counts.diag()
        iou = (counts.diag() / union)[union > 0]
        return [float(iou.mean()), float(iou.min())]


class Annotation:
    """One annotator with one rule, who draws `each` strokes in a picture."""

    def __init__(self, data: Data, rule: str, seed: int, each: int = 20):
        self.data, self.rule, self.seed, self.each = data, rule, seed, each
        self.random = np.random.default_rng(seed)
        self.order = self.random.permutation(len(data.pool)).tolist()
        self.features, self.labels, self.strokes, self.around = [], [], [], []
        self.head: LiveHead | None = None
        self.results: dict[int, list[float]] = {}

    def run(self, pictures: int) -> dict[int, list[float]]:
        done: list[int] = []
        while len(done) < pictures:
            done.append(self.choose([i for i in self.order if i not in done], done))
            drawn = np.zeros(self.data.masks[done[-1]].shape, bool)
            for _ in range(self.each // AT_ONCE):
                self.draw(done[-1], drawn)
        return self.results

    def choose(self, left: list[int], done: list[int]) -> int:
        """The next picture."""
        if self.rule in ("typical", "doubt", "ours"):
            gains = self.data.rule.picture_gains(torch.tensor(done).long())
            return max(left, key=lambda i: float(gains[i]))
        if self.rule == "margin" and self.head is not None:
            return min(left, key=lambda i: float(self.margin(i).mean()))
        return left[0]

    def draw(self, i: int, drawn: np.ndarray) -> None:
        """Five strokes where the rule says, then the head again."""
        mask = self.data.masks[i]
        for y, x in self.places(i, drawn):
            found = true_stroke(mask, y, x)
            while found is None:  # the truth says nothing there: somewhere else
                y, x = (int(self.random.integers(n)) for n in mask.shape)
                found = true_stroke(mask, y, x)
            number = len(self.strokes) + 1
            ids = np.where(found[0], found[1], 255).astype(np.uint8)
            pixels, labels, strokes = sparse_pixels(ids, np.full(ids.shape, number, np.int32), PIXELS)
            drawn |= found[0]
            grid, at = self.data.pool[i].grid, torch.from_numpy(pixels)
            self.features.append(sample_pixels(grid, at, mask.shape))
            self.around.append(sample_pixels(places(grid), at, mask.shape))
            self.labels.append(torch.from_numpy(labels))
            self.strokes.append(torch.from_numpy(strokes))
        known = self.known()
        if len(known.labels.unique()) > 1:
            self.head = LiveHead.fit(known, self.data.unlabeled, self.seed)
        if len(self.strokes) in MARKS:
            self.results[len(self.strokes)] = self.data.measure(self.head)

    def known(self) -> Sampled:
        columns = zip(self.features, self.labels, self.strokes, self.around)
        return Sampled.together([Sampled(*column) for column in columns])

    def places(self, i: int, drawn: np.ndarray) -> list[tuple[int, int]]:
        height, width = drawn.shape
        somewhere = [(int(self.random.integers(height)), int(self.random.integers(width))) for _ in range(AT_ONCE)]
        if self.rule in ("doubt", "ours"):
            names = {label: str(label) for label in range(self.data.num_classes)}
            advice = Advice(self.data.rule, self.head, self.known(), torch.zeros(0).long(), names)
            if self.rule == "doubt" and self.head is not None:
                mean, doubt = self.head.predict(self.data.rule.points)
                advice.weights = doubt.square() * (mean / self.head.shares.clamp(min=RAREST)).sum(1)
            return [(y, x) for y, x, _ in advice.places(places(self.data.pool[i].grid), drawn, AT_ONCE)]
        if self.rule in ("random", "typical") or self.head is None:
            return somewhere
        grid = self.data.pool[i].grid
        doubt = -self.margin(i) if self.rule == "margin" else self.head.predict(grid.flatten(1).T)[1]
        doubt = F.interpolate(doubt.view(1, 1, *grid.shape[1:]), drawn.shape, mode="bilinear")[0, 0].numpy().copy()
        doubt[drawn] = -np.inf
        found = []
        for _ in range(AT_ONCE):
            y, x = (int(n) for n in np.unravel_index(doubt.argmax(), doubt.shape))
            found.append((y, x))
            apart = max(2, height // 16)
            doubt[max(0, y - apart) : y + apart + 1, max(0, x - apart) : x + apart + 1] = -np.inf
        return found

    def margin(self, i: int) -> torch.Tensor:
        best = self.head.predict(self.data.pool[i].grid.flatten(1).T)[0].topk(2, dim=1).values
        return best[:, 0] - best[:, 1]
