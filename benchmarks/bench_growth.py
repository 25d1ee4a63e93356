# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How time and memory grow: with images, their size, classes, members and labelled images.

    python benchmarks/bench_growth.py --output_dir out/growth

The diffusion model is the package's own of drawn faces (64 × 64, 8 decoder blocks, 1.7 million weights), the features
are the default recipe's. One thing grows at a time; the others stay at 8 images in batches of 8 (one image where its
size grows), 64 × 64, 6 classes, the default recipe's four members, 20 labelled images. Each point is a process of its
own, so that peaks of memory do not mix; the peak is that of the whole process, the libraries included. Segmenting is
timed after a first batch, median of three if it takes less than ten seconds; a fit is the whole default recipe, once.
Heads that only segment have random weights, which cost the same. The exponent is the slope of the last two points on
logarithmic axes: 1 for twice the time at twice the number. The same command line resumes.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from diffusers import DDPMPipeline
from matplotlib.figure import Figure

from diffuseseg_diffusers import DiffuseSegPipeline, LabeledImages, PixelClassifierEnsemble, fit_segmentation_head
from diffuseseg_diffusers.datasets.drawn_faces import SHIPPED_MODEL, draw_face
from diffuseseg_diffusers.figures.curves import PALETTE
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.jobs.run import Results


USUAL = {"images": 8, "size": 64, "classes": 6, "members": find_recipe("default").num_members, "labels": 20}
POINTS = {
    "segment": {
        "images": (1, 10, 100, 1000),
        "size": (64, 128, 256, 512, 1024),
        "classes": (2, 20, 200),
        "members": (1, 5, 20),
    },
    "fit": {"labels": (1, 5, 20, 100, 500), "members": (1, 5, 20), "classes": (2, 20, 200)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--point", help="One measurement as JSON, in this process: stage and what differs.")
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(**json.loads(args.point))))
        return
    machine = hardware(torch.device("cpu"))
    results = Results(args.output_dir / "points.jsonl", {"hardware": machine})
    for stage, axes in POINTS.items():
        for axis, values in axes.items():
            for value in values:
                found = results.get(f"{stage} {axis} {value}", partial(run, args, stage, axis, value))
                print(f"{stage}, {axis} {value}: {found['seconds']:.3f} s, {found['MiB']:.0f} MiB", flush=True)
    report(results, args.output_dir / "growth.png", machine)


def run(args: argparse.Namespace, stage: str, axis: str, value: int) -> dict:
    point = json.dumps({"stage": stage, axis: value})
    command = [sys.executable, __file__, "--output_dir", str(args.output_dir), "--point", point]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def measure(stage: str, **differs: int) -> dict:
    """Seconds and the peak of this process's memory."""
    at = USUAL | ({"images": 1} if "size" in differs else {}) | differs
    pipe = DiffuseSegPipeline(**DDPMPipeline.from_pretrained(SHIPPED_MODEL).components)
    pipe.unet.to(memory_format=torch.channels_last)
    if stage == "fit":
        images = drawn(at["labels"], at["classes"])
        began = time.perf_counter()
        fit_segmentation_head(pipe, images, num_members=at["members"])
        seconds = time.perf_counter() - began
    else:
        pipe.unet.register_to_config(sample_size=at["size"])
        pipe.segmentation_head = random_head(pipe, at)
        pictures = [PIL.Image.fromarray(draw_face(i)[0]).resize((at["size"],) * 2) for i in range(at["images"])]
        pipe.segment(pictures[:8])
        times = [timed(lambda: pipe.segment(pictures))]
        if times[0] < 10:
            times += [timed(lambda: pipe.segment(pictures)) for _ in range(2)]
        seconds = statistics.median(times)
    return {"seconds": seconds, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def timed(function) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def drawn(count: int, classes: int) -> LabeledImages:
    """Drawn faces whose masks have so many classes: their own, or where there are more, squares of all of them."""
    rng, rows = np.random.default_rng(0), {"image": [], "mask": []}
    for i in range(count):
        image, mask = draw_face(i)
        if classes > mask.max() + 1:
            mask = rng.integers(0, classes, (16, 16), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        rows["image"].append(PIL.Image.fromarray(image))
        rows["mask"].append(PIL.Image.fromarray(np.minimum(mask, classes - 1)))
    dataset = Dataset.from_dict(rows).cast_column("image", ImageFeature()).cast_column("mask", ImageFeature())
    return LabeledImages(dataset, label_names=[f"class {i}" for i in range(classes)])


def random_head(pipe: DiffuseSegPipeline, at: dict) -> PixelClassifierEnsemble:
    recipe = find_recipe("default")
    pipe.segmentation_head = None
    probe = pipe.feature_extractor(timesteps=recipe.timesteps)
    blocks = probe.default_blocks(recipe.blocks)
    features = probe.choose(blocks).feature_info()
    return PixelClassifierEnsemble(
        num_classes=at["classes"],
        num_members=at["members"],
        block_channels=[f.channels for f in features[: len(blocks)]],
        blocks=list(blocks),
        timesteps=list(recipe.timesteps),
        image_size=[at["size"]] * 2,
        flip=True,
        voting="soft",
    ).eval()


def report(results: Results, path: Path, machine: str) -> None:
    """Prints a row for each curve and draws all of them on logarithmic axes."""
    figure = Figure(figsize=(10, 4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2)
    print("| stage | what grows | seconds | exponent | MiB at the peak |\n|---|---|---|---|---|")
    curves = [(stage, axis, values) for stage, own in POINTS.items() for axis, values in own.items()]
    for number, (stage, axis, values) in enumerate(curves):
        found = [results.by_key[f"{stage} {axis} {value}"] for value in values]
        seconds, memory = ([f[key] for f in found] for key in ("seconds", "MiB"))
        slope = math.log(seconds[-1] / seconds[-2]) / math.log(values[-1] / values[-2])
        shown = ", ".join(f"{v:,}: {s:.3g}" for v, s in zip(values, seconds))
        print(f"| {stage} | {axis} | {shown} | {slope:.2f} | {', '.join(f'{m:,.0f}' for m in memory)} |")
        style = {"color": PALETTE[number], "marker": "o", "markersize": 3, "label": f"{stage}, {axis} ({slope:.2f})"}
        style["linestyle"] = "-" if stage == "segment" else "--"
        axes[0].plot(values, seconds, **style)
        axes[1].plot(values, memory, **style)
    axes[0].set(xlabel="number", ylabel="seconds", xscale="log", yscale="log")
    axes[1].set(xlabel="number", ylabel="MiB at the peak, libraries included", xscale="log", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    figure.savefig(path)
    print(f"{machine}. Written to {path}.")


if __name__ == "__main__":
    main()
