# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the mirror image brings, and what it costs: none, all members on both views, half of the members on each.

    python benchmarks/bench_views.py --models MODEL [MODEL …] --dataset_name DATA --dataset_config_name labeled

Mean IoU of the mean probabilities on the same activations, and the seconds that the head takes for an image in batches
of eight (the denoiser's passes are the same for both ways with the mirror image). Heads must have two members at least.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from diffuseseg_diffusers import evaluate_segmentation, load_labeled_images, load_pipeline
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.pipelines.segmenter import SegmentedBatch, Segmenter


class Views(Segmenter):
    """A pipeline whose head is used in one of three ways; `seconds` is what the head took."""

    def __init__(self, pipe: Any, way: str):
        self.pipe, self.way, self.seconds = pipe, way, 0.0

    image_size = property(lambda self: self.pipe.image_size)
    in_channels = property(lambda self: self.pipe.in_channels)
    label_names = property(lambda self: self.pipe.label_names)
    palette = property(lambda self: self.pipe.palette)

    @torch.no_grad()
    def segment_batch(self, pixels, sizes, class_labels=None, generator=None, return_probabilities=False):
        extractor, head = self.pipe.head_extractor(), self.pipe.segmentation_head
        straight, mirrored = extractor(pixels).activations, extractor(pixels.flip(-1)).activations
        began = time.perf_counter()
        given = dict(size=sizes[0], return_probabilities=True)
        if self.way == "half of the members on each":
            mean = head.predict(straight, mirrored=mirrored, **given).probabilities
        else:
            mean = head.predict(straight, **given).probabilities
        if self.way == "all members on both":
            mean = (mean + head.predict(mirrored, **given).probabilities.flip(-1)) / 2
        self.seconds += time.perf_counter() - began
        masks = [F.interpolate(p[None], s, mode="bilinear")[0].argmax(0).to(torch.uint8) for p, s in zip(mean, sizes)]
        return SegmentedBatch(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", required=True, help="Fitted models, or heads of --base_model's pipeline."
    )
    parser.add_argument("--base_model", help="Pipeline of heads that are given alone.")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    print("| model | way | mean IoU, % | head, ms an image |\n|---|---|---|---|")
    for name in args.models:
        pipe: Any = load_pipeline(name)
        data = load_labeled_images(args.dataset_name, args.dataset_config_name, args.split, classes=pipe.label_names)
        for way in ("no mirror image", "all members on both", "half of the members on each"):
            views = Views(pipe, way)
            metrics, _ = evaluate_segmentation(views, data, batch_size=8, show_progress=False)
            cost = 1e3 * views.seconds / len(data)
            print(f"| {Path(name).name} | {way} | {100 * metrics['mean_iou']:.2f} | {cost:.0f} |", flush=True)
    print(f"{len(data)} images; {hardware(pipe.device)}.")


if __name__ == "__main__":
    main()
