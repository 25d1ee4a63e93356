# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is a suggestion worth? A simulated annotator asks different rules where to draw.

    python benchmarks/bench_suggestions.py --task faces64
    python benchmarks/bench_suggestions.py --task drawn

The annotator labels `--pictures` pictures, 20 strokes in each. A rule chooses the picture, and five places at a time in
it; at each the annotator draws the stroke of the true class there (`annotator.py`). After every five strokes
the live head is fitted again, as in `diffuseseg app`; it is measured on the test split. Rules:

* `random`: a random picture, random places.
* `uncertain`: a random picture, the places where the head is least certain, not next to each other.
* `typical`: the picture that stands for most that no labelled picture stands for, as in ours; random places.
* `margin`: as ilastik shows it: picture and places with the smallest margin between the two best classes.
* `ours`: the rule of `labeling/suggestions.py`, as the app uses it.

Seeds are paired: each gives four fifths of the pictures to label from, the order of random pictures, random places and
the head's random weights. The table has the mean over the seeds; the area under the curve (trapezoids over the numbers
of strokes, divided by their range) of each rule minus that of `random`, with the 95 % interval of a paired t-test; and
the least IoU of a class at the end.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from annotator import true_stroke
from harness import Result, Task, arguments, drawn_faces
from scipy import stats

from diffuseseg_diffusers import recipe_extractor
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.labeling.features import Basis, PictureFeatures, places, sample_pixels
from diffuseseg_diffusers.labeling.live import PIXELS, LiveHead, Sampled
from diffuseseg_diffusers.labeling.regions import sparse_pixels
from diffuseseg_diffusers.labeling.suggestions import Advice, Rule


RULES = ["random", "uncertain", "typical", "margin", "ours"]
MARKS = (5, 10, 20, 40, 60, 80, 100, 140, 200)
EACH, AT_ONCE = 20, 5  # strokes in a picture, and before the head is fitted again


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
    """One annotator with one rule."""

    def __init__(self, data: Data, rule: str, seed: int):
        self.data, self.rule, self.seed = data, rule, seed
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
            for _ in range(EACH // AT_ONCE):
                self.draw(done[-1], drawn)
        return self.results

    def choose(self, left: list[int], done: list[int]) -> int:
        """The next picture."""
        if self.rule in ("typical", "ours"):
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
        labels = torch.cat(self.labels)
        if len(labels.unique()) > 1:
            known = Sampled(torch.cat(self.features), labels, torch.cat(self.strokes), torch.cat(self.around))
            self.head = LiveHead.fit(known, self.data.unlabeled, self.seed)
        if len(self.strokes) in MARKS:
            self.results[len(self.strokes)] = self.data.measure(self.head)

    def places(self, i: int, drawn: np.ndarray) -> list[tuple[int, int]]:
        height, width = drawn.shape
        somewhere = [(int(self.random.integers(height)), int(self.random.integers(width))) for _ in range(AT_ONCE)]
        if self.rule == "ours":
            labelled = torch.cat(self.around) if self.around else torch.zeros(0, 1)
            advice = Advice(self.data.rule, self.head, labelled, torch.zeros(0).long(), {})
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


def main() -> None:
    args = arguments(__doc__, seeds=list(range(10)), rules=RULES, pictures=10, test_every=1, dtype="auto")
    task = Task(args.task)
    pool = drawn_faces(range(200)) if args.task == "drawn" else task.train
    pairs = [[(rows[i].image, rows[i].mask) for i in range(len(rows))] for rows in (pool, task.test)]
    data = Data(pairs[0], pairs[1][:: args.test_every], pool.num_classes, task.pipe(args.dtype))
    marks = [m for m in MARKS if m <= EACH * args.pictures]
    columns = {"rule": ("rule", "text")} | {f"at_{m}": (f"{m} strokes", "percent") for m in marks}
    columns |= {"area": ("area, against random", "text"), "worst": ("worst class at the end", "percent")}
    about = f"Mean IoU in %; {len(pool)} pictures to label, {len(data.test)} to measure on."
    result = Result(args.name or f"suggestions-{args.task}", columns, args, about)

    def annotate(rule: str, seed: int) -> list[list[float]]:
        data.choose(seed)
        found = Annotation(data, rule, seed).run(args.pictures)
        return [found[m] for m in marks]

    found = {
        rule: np.array([result.cell(f"{rule} {s}", lambda r=rule, s=s: annotate(r, s)) for s in args.seeds])
        for rule in args.rules
    }  # [seeds,marks,2]
    base = found[args.rules[0]][..., 0]
    for rule, curve in found.items():
        gains = 100 * np.trapezoid(curve[..., 0] - base, marks, axis=1) / (marks[-1] - marks[0])
        spread = f" ± {stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains):.1f}" if len(gains) > 1 else ""
        row = {f"at_{m}": float(value) for m, value in zip(marks, curve[..., 0].mean(0))}
        area = "" if rule == args.rules[0] else f"{gains.mean():+.1f}{spread}"
        result.row(rule=rule, area=area, worst=float(curve[:, -1, 1].mean()), **row)
    result.show()


if __name__ == "__main__":
    main()
