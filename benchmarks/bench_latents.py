# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Denoisers of any kind as features: mean IoU with a few labels, beside their untrained twins and raw pixels.

    python benchmarks/bench_latents.py --models LDM DIT DDPM --dataset_name DATA --dataset_config_name labeled

Heads are fitted on the split `train` and measured on `test`, with the default recipe or the one given. An untrained
twin has the denoiser's architecture and fresh random weights, behind the same autoencoder. Raw pixels are a feature
vector of the pixel's own values.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

from diffuseseg_diffusers import (
    AutoDiffuseSegPipeline,
    FeatureExtractor,
    Features,
    Tap,
    evaluate_segmentation,
    fit_segmentation_head,
    load_labeled_images,
)
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.pipelines.segmenter import HeadSegmenter


class RawPixels(FeatureExtractor):
    """The image itself as its features."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, size: tuple[int, int], channels: int, blocks: Any = None, timesteps: Any = None):
        super().__init__([Tap(0, "", channels, 1)], blocks, timesteps, size, channels)

    @classmethod
    def of(cls, pipe: Any, **choice: Any) -> "RawPixels":
        return cls(*pipe.shape)

    def choose(self, blocks: Any = None, timesteps: Any = None, **options: Any) -> "RawPixels":
        return self

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[int, ...]:
        return (0,)

    def __call__(self, images: torch.Tensor, class_labels: Any = None, generator: Any = None) -> Features:
        return Features(activations=[images], info=self.feature_info())


class PixelPipeline(HeadSegmenter):
    """Segments by the values of single pixels."""

    segmentation_head = None

    def __init__(self, size: tuple[int, int], channels: int):
        self.shape = (size, channels)

    def feature_extractor(self, blocks: Any = None, timesteps: Any = None, **choice: Any) -> RawPixels:
        return RawPixels.of(self)

    def release(self) -> None:
        pass


def untrained(model: str) -> HeadSegmenter:
    """The pipeline with fresh weights in its denoiser."""
    pipe: Any = AutoDiffuseSegPipeline.from_pretrained(model)
    torch.manual_seed(0)
    fresh = type(pipe.denoiser).from_config(pipe.denoiser.config)
    pipe.denoiser.load_state_dict(fresh.state_dict())
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="Pipelines of diffusers.")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--seeds", type=int, default=1, help="Fits of each, with seeds 0, 1, … (default: 1).")
    args = parser.parse_args()
    train, test = (load_labeled_images(args.dataset_name, args.dataset_config_name, s) for s in ("train", "test"))
    print(f"{hardware(torch.device('cpu'))}; {len(train)} labelled images, {len(test)} to measure on, {args.recipe}")
    print("| model | mean IoU | seconds to fit |\n|---|---|---|")
    makes = []
    for model in args.models:
        makes.append((model, lambda model=model: AutoDiffuseSegPipeline.from_pretrained(model)))
        makes.append((f"{model}, untrained", lambda model=model: untrained(model)))
    for name, make in makes:
        pipe: Any = make()
        measure(name, pipe, train, test, args)
    extractor = pipe.head_extractor()
    measure("raw pixels", PixelPipeline(extractor.size, extractor.in_channels), train, test, args)


def measure(name: str, pipe: Any, train: Any, test: Any, args: argparse.Namespace) -> None:
    """Fits and prints a row."""
    scores, seconds = [], []
    for seed in range(args.seeds):
        began = time.perf_counter()
        pipe.segmentation_head = None
        pipe.segmentation_head = fit_segmentation_head(pipe, train, recipe=args.recipe, seed=seed)
        seconds.append(time.perf_counter() - began)
        scores.append(evaluate_segmentation(pipe, test, show_progress=False)[0]["mean_iou"])
    shown = f"{sum(scores) / len(scores):.3f}"
    shown += f" ({min(scores):.3f} to {max(scores):.3f})" if len(scores) > 1 else ""
    print(f"| {name} | {shown} | {sum(seconds) / len(seconds):.0f} |", flush=True)


if __name__ == "__main__":
    main()
