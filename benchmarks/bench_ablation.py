# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Cross-validates every choice of the default recipe on the labelled images themselves; no test image is looked at.

    python benchmarks/bench_ablation.py --model MODEL --dataset_name DATA --dataset_config_name labeled \\
        --unlabeled_config_name unlabeled --output_dir OUT

Each seed draws 2 and 10 of the labelled images, fits every variant on them and measures it on all others: the
default recipe with one thing changed, and what it was held against (`spatial context`: two 3 × 3 convolutions on the
same features; `adapted U-Net`: low-rank adapters in the whole U-Net, which needs `peft`). The same command
line resumes where it was cut off.
"""

import argparse
import copy
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from bench_labels import SHIFTS, Shifted
from bench_unet import MirrorSegmenter
from datasets import Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image
from tqdm.auto import tqdm

from diffuseseg_diffusers import (
    DiffuseSegPipeline,
    LabeledImages,
    evaluate_segmentation,
    fit_segmentation_head,
    load_labeled_images,
)
from diffuseseg_diffusers.datasets.augmentation import IGNORED, augment
from diffuseseg_diffusers.features.pixel_unet import PAPER_BLOCKS
from diffuseseg_diffusers.heads import extraction
from diffuseseg_diffusers.heads.fit import recipe_extractor
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.jobs.files import write_json
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.jobs.run import Results
from diffuseseg_diffusers.paper.labels import label_draws
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.students.training import segmentation_loss


DEFAULT = RECIPES["default"]
PUBLISHED = replace(DEFAULT, blocks=PAPER_BLOCKS)  # at their relative depth
UNLABELED: list[Dataset] = []  # filled by `main`


class Network(MirrorSegmenter):
    """A network trained on whole labelled images, in place of the pipeline."""

    def __init__(self, pipe: DiffuseSegPipeline, dataset: LabeledImages):
        extractor = recipe_extractor(pipe, DEFAULT)
        super().__init__(dataset, extractor.size, extractor.in_channels)
        self.dataset = dataset

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [self.dataset[i] for i in range(len(self.dataset))]
        pixels = self.images.preprocess(self.images.load([r.image for r in rows]), *self.size)  # [n,C,H,W]
        masks = torch.from_numpy(np.stack([r.mask for r in rows])).long()
        masks[masks == self.dataset.ignore_index] = IGNORED
        return pixels, masks

    def train_for(self, steps: int, rate: float, batch, generator: torch.Generator) -> "Network":
        """Adam on a one-cycle schedule; `batch` gives what the network takes, and its masks."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
        self.train()
        for _ in tqdm(range(steps), "Training", unit="step", leave=False, mininterval=5):
            inputs, masks = batch(generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = self(inputs)
            segmentation_loss(logits.float(), masks).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return self.eval()


class SpatialContext(Network):
    """The default features, a linear layer at their own resolution, and two 3 × 3 convolutions at that of the image."""

    def __init__(self, pipe: DiffuseSegPipeline, dataset: LabeledImages, seed: int, width: int = 64):
        super().__init__(pipe, dataset)
        self.extractor = recipe_extractor(pipe, DEFAULT, noise_seed=seed)
        channels = [i.channels for i in self.extractor.feature_info()]
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(c, affine=False) for c in channels)
        self.first = torch.nn.ModuleList(torch.nn.Conv2d(c, width, 1, bias=False) for c in channels)
        layers = [torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
        for _ in range(2):
            layers += [torch.nn.Dropout2d(0.1), torch.nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [torch.nn.BatchNorm2d(width), torch.nn.ReLU()]
        self.rest = torch.nn.Sequential(*layers, torch.nn.Conv2d(width, dataset.num_classes, 1))

    def inputs(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return self.extractor(pixels).activations

    def forward(self, activations: list[torch.Tensor]) -> torch.Tensor:
        hidden = [first(norm(a.float())) for a, norm, first in zip(activations, self.norms, self.first)]
        return self.rest(sum(F.interpolate(h, size=self.size, mode="bilinear") for h in hidden))

    def fit(self, seed: int) -> "Network":
        generator = torch.Generator().manual_seed(seed)
        pixels, masks = self.tensors()
        views = DEFAULT.augmented_images // len(pixels)
        pixels, masks = pixels.repeat(views, 1, 1, 1), masks.repeat(views, 1, 1)
        lit, masks = augment(pixels / 2 + 0.5, masks, generator, p=0.5)
        kept = [self.inputs(part * 2 - 1) for part in lit.split(8)]
        kept = [torch.cat(parts) for parts in zip(*kept)]

        def batch(generator):
            chosen = torch.randint(len(masks), (8,), generator=generator)
            return [a[chosen] for a in kept], masks[chosen]

        return self.train_for(300, 2e-3, batch, generator)


class AdaptedUNet(Network):
    """The U-Net itself with low-rank adapters in all its layers, its last convolution giving classes."""

    def __init__(self, pipe: DiffuseSegPipeline, dataset: LabeledImages, seed: int, rank: int = 16):
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__(pipe, dataset)
        unet = copy.deepcopy(pipe.unet).float()
        inside = (torch.nn.Linear, torch.nn.Conv2d)
        names = [n for n, m in unet.named_modules() if isinstance(m, inside) and n not in ("conv_in", "conv_out")]
        unet = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), unet)
        unet.conv_out = torch.nn.Conv2d(unet.conv_out.in_channels, dataset.num_classes, 3, padding=1)
        self.unet, self.extractor = unet, recipe_extractor(pipe, DEFAULT, noise_seed=seed)
        self.t = self.extractor.timesteps[0]

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(self.extractor.noise_seed))
        at = torch.tensor([self.t] * len(pixels))
        return self.extractor.scheduler.add_noise(pixels, noise.expand_as(pixels), at)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return self.unet(noisy, self.t).sample

    def fit(self, seed: int) -> "Network":
        pixels, masks = self.tensors()

        def batch(generator):
            chosen = torch.randint(len(masks), (8,), generator=generator)
            lit, moved = augment(pixels[chosen] / 2 + 0.5, masks[chosen], generator)
            return self.inputs(lit * 2 - 1), moved

        return self.train_for(150, 1e-3, batch, torch.Generator().manual_seed(seed))


def head(recipe=DEFAULT, **changes):
    """A variant of the head: another recipe, or other features."""

    def fit(pipe: DiffuseSegPipeline, dataset: LabeledImages, seed: int) -> DiffuseSegPipeline:
        features = {k: v(pipe) if callable(v) else v for k, v in changes.items()}
        pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=recipe, seed=seed, **features)
        return pipe

    return fit


def all_changes(pipe: DiffuseSegPipeline, dataset: LabeledImages, seed: int) -> DiffuseSegPipeline:
    """Augmented views with all changes at once, where the default's have half of these."""
    with mock.patch.object(extraction, "augment", lambda *arguments, p: augment(*arguments)):
        return head()(pipe, dataset, seed)


def self_training(pipe: DiffuseSegPipeline, dataset: LabeledImages, seed: int) -> DiffuseSegPipeline:
    """The head fitted again, on the labelled images and on what it is surest of in as many unlabelled ones."""
    fit = head()
    images = list(UNLABELED[0].shuffle(seed).select(range(100))["image"])
    output = fit(pipe, dataset, seed).segment(images, output_type="np")
    limit = np.quantile(np.stack(output.uncertainty), 0.7)  # the other pixels have no label
    masks = [np.where(u < limit, m, 255).astype(np.uint8) for m, u in zip(output.masks, output.uncertainty)]
    rows = [dataset[i] for i in range(len(dataset))] * (len(images) // len(dataset))
    columns = {"image": [*images, *(r.image for r in rows)], "mask": [*masks, *(r.mask for r in rows)]}
    columns["mask"] = [Image.fromarray(m) for m in columns["mask"]]
    both = Dataset.from_dict(columns, features=Features({"image": ImageFeature(), "mask": ImageFeature()}))
    return fit(pipe, LabeledImages(both, label_names=dataset.label_names), seed)


def network(kind):
    return lambda pipe, dataset, seed: kind(pipe, dataset, seed).fit(seed)


VARIANTS = {
    "default": head(),
    "paper": head("paper"),
    "fast": head("fast"),
    "features: timestep 10 alone": head(timesteps=(10,)),
    "features: timesteps 50 150 250": head(timesteps=(50, 150, 250)),
    "features: timesteps 1 10 25": head(timesteps=(1, 10, 25)),
    "features: the paper's blocks": head(blocks=lambda pipe: recipe_extractor(pipe, PUBLISHED).blocks),
    "features: outputs of up-blocks": head(blocks=lambda pipe: recipe_extractor(pipe, "paper").blocks),
    "features: all decoder blocks": head(blocks=lambda pipe: range(len(pipe.feature_extractor().taps))),
    "features: fresh noise": head(share_noise=False),
    "augmented views: none": head(replace(DEFAULT, augmented_images=0)),
    "augmented views: all changes at once": all_changes,
    "augmented views: 80 images": head(replace(DEFAULT, augmented_images=80)),
    "augmented views: 320 images": head(replace(DEFAULT, augmented_images=320)),
    "no mirror images": head(flip=False),
    "two members": head(replace(DEFAULT, num_members=2)),
    "ten members": head(replace(DEFAULT, num_members=10)),
    "hard votes": head(replace(DEFAULT, voting="hard")),
    "equal weights of classes": head(replace(DEFAULT, balance=0.0)),
    "weights by the fourth root": head(replace(DEFAULT, balance=0.25)),
    "weights by the square root": head(replace(DEFAULT, balance=0.5)),
    "no standardising": head(replace(DEFAULT, standardize=False)),
    "batches of 256": head(replace(DEFAULT, batch_size=256)),
    "2,000 steps": head(replace(DEFAULT, max_steps=2000)),
    "self-training": self_training,
    "spatial context": network(SpatialContext),
    "adapted U-Net": network(AdaptedUNet),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--unlabeled_config_name", required=True, help="Of the unlabelled images, for self-training.")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    data = load_labeled_images(args.dataset_name, args.dataset_config_name, "train")
    pipe = load_pipeline(args.model)
    UNLABELED.append(load_dataset(args.dataset_name, args.unlabeled_config_name, split="train"))
    cells = Results(args.output_dir / "cells.jsonl", {"model": args.model, "dataset": args.dataset_name})

    def run(variant: str, count: int, seed: int) -> dict:
        own = label_draws(len(data), count, seed + 1)[seed]
        others = data.select([i for i in range(len(data)) if i not in own])
        began = time.perf_counter()
        fitted = VARIANTS[variant](pipe, data.select(own), seed)
        result = {"seconds": time.perf_counter() - began}
        for shift in (None, *SHIFTS):
            shifted = Shifted(others, shift) if shift else others
            result[shift or "clean"] = evaluate_segmentation(fitted, shifted, show_progress=False)[0]["mean_iou"]
        result["shifted"] = float(np.mean([result.pop(s) for s in SHIFTS]))
        return result

    runs = [(v, n, s) for v in args.variants for n in args.counts for s in range(args.seeds)]
    results = {}
    for variant, count, seed in tqdm(runs, "Variants, counts and seeds", unit="run"):
        compute = lambda v=variant, n=count, s=seed: run(v, n, s)  # noqa: E731
        results[variant, count, seed] = cells.get(f"{variant}; {count}; {seed}", compute)

    table = []
    for variant in args.variants:
        row, said = {"variant": variant}, f"{variant:<32}"
        for kind in ("clean", "shifted"):
            for count in args.counts:
                own, usual = (
                    100 * np.array([results[v, count, s][kind] for s in range(args.seeds)])
                    for v in (variant, "default")
                )
                # Draws differ more than variants do: hence the difference from the default on the same draw.
                gain = own - usual
                row[f"{kind}_{count}"] = [own.mean(), gain.mean(), gain.std(ddof=1) if len(gain) > 1 else 0.0]
                mean, by, spread = row[f"{kind}_{count}"]
                said += f"  {mean:.1f} ({by:+.1f} ± {spread:.1f})" if variant != "default" else f"  {mean:.1f}"
        row["seconds"] = float(np.median([r["seconds"] for k, r in results.items() if k[0] == variant]))
        table.append(row)
        print(f"{said}  {row['seconds']:.0f} s")
    on = {"hardware": hardware(pipe.unet.device), "threads": torch.get_num_threads(), "seeds": args.seeds}
    write_json(args.output_dir / "ablation.json", on | {"rows": table})


if __name__ == "__main__":
    main()
