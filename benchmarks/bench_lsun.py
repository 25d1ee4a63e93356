# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A model of the paper's size (LSUN, 552.8 million parameters): conversion, and segmenting one 256 × 256 image.

    python benchmarks/bench_lsun.py --work_dir out/lsun

Weights are random, and so is the head: ten members, 28 classes, blocks 5, 6, 7, 8, 12 at three timesteps, 8,448
features a pixel. The naive way is the published one: a whole pass of the U-Net for each timestep, all activations
upsampled to the size of the image and concatenated, one classifier after the other. Each side runs in a process of its
own, so that peaks of memory do not mix; parts of the floor are timed in turn with the whole, in the same process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffuseseg_diffusers import DecoderFeatureExtractor, DiffuseSegPipeline, PixelClassifierEnsemble
from diffuseseg_diffusers.features.noise import PAPER_TIMESTEPS
from diffuseseg_diffusers.features.pixel_unet import PAPER_BLOCKS
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.paper.guided_diffusion import PRESETS, checkpoint_shapes
from diffuseseg_diffusers.pipelines.loading import load_pipeline


SIDES = ("convert", "ours-float32", "ours-bfloat16", "naive")


def timed(function, *args):
    began = time.perf_counter()
    result = function(*args)
    return result, time.perf_counter() - began


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB


def write_checkpoint(path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in checkpoint_shapes(PRESETS["lsun_256"]).items():
        scale = (sum(shape) / len(shape) * 9) ** -0.5 if len(shape) > 1 else 0.1
        state[name] = scale * torch.randn(shape, generator=generator)
        if len(shape) == 1 and name.endswith("weight"):
            state[name] += 1
    torch.save(state, path)


def drawn_image() -> np.ndarray:
    """Noise of large pixels: `[256, 256, 3]` uint8."""
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)


def make_head(work_dir: Path) -> None:
    """Members with random weights that see standardised features, as fitted ones do, so that masks have a pattern."""
    pipe = load_pipeline(str(work_dir / "model"), device="cpu", dtype="float32")
    features = DecoderFeatureExtractor(pipe.unet, pipe.scheduler)(pixels_of(drawn_image()))
    torch.manual_seed(0)
    head = PixelClassifierEnsemble(
        num_classes=28,
        num_members=10,
        block_channels=[i.channels for i in features.info[: len(PAPER_BLOCKS)]],
        blocks=list(PAPER_BLOCKS),
        timesteps=list(PAPER_TIMESTEPS),
        image_size=[256, 256],
    )
    first, _, _, second, _, _, third = head.layers
    mean = torch.cat([a.mean((0, 2, 3)) for a in features.activations])
    std = torch.cat([a.std((0, 2, 3)) for a in features.activations])
    for layer in (first, second, third):
        layer.weight.data.normal_(0, layer.weight.shape[-1] ** -0.5)
    first.weight.data /= std
    first.bias.data = -first.weight.data @ mean
    head.save_pretrained(work_dir / "head")


def pixels_of(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1  # [1,3,256,256]


def load(work_dir: Path, dtype: str) -> DiffuseSegPipeline:
    pipe = load_pipeline(str(work_dir / "model"), device="cpu", dtype=dtype)
    pipe.segmentation_head = PixelClassifierEnsemble.from_pretrained(work_dir / "head").eval()
    return pipe


def ours(work_dir: Path, dtype: str, repeats: int) -> dict:
    pipe, loading = timed(load, work_dir, dtype)
    image, pixels = drawn_image(), pixels_of(drawn_image())
    one = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, timesteps=[150])
    head = pipe.segmentation_head
    activations = DecoderFeatureExtractor(pipe.unet, pipe.scheduler)(pixels).activations
    times: dict[str, list[float]] = {"segment": [], "pass to block 12": [], "head": []}
    for _ in range(repeats):
        output, seconds = timed(lambda: pipe.segment(image, output_type="np"))
        times["segment"].append(seconds)
        times["pass to block 12"].append(timed(one, pixels)[1])
        times["head"].append(timed(head.predict, activations)[1])
    np.save(work_dir / f"mask-{dtype}.npy", output.masks[0])
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    floor = 3 * medians["pass to block 12"] + medians["head"]
    return {"loading": loading, **medians, "floor": floor, "over_floor": medians["segment"] / floor}


def naive(work_dir: Path, repeats: int) -> dict:
    pipe = load(work_dir, "float32")
    head, pixels = pipe.segmentation_head, pixels_of(drawn_image())
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler)
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def features() -> torch.Tensor:
        rows = []
        for t in PAPER_TIMESTEPS:
            noisy = pipe.scheduler.add_noise(pixels, noise, torch.tensor([t]))
            with extractor.reading(extractor.unet) as tapped:
                pipe.unet(noisy, t)
            rows += [F.interpolate(tapped[b], size=(256, 256), mode="bilinear") for b in PAPER_BLOCKS]
        return torch.cat(rows, 1)[0].flatten(1).T  # [65536, 8448]

    @torch.no_grad()
    def vote(x: torch.Tensor) -> np.ndarray:
        votes = torch.stack([member(x).argmax(1) for member in members])
        return votes.mode(0).values.view(256, 256).numpy()

    members = plain_members(head)
    times = {"U-Net and upsampling": [], "classifiers": []}
    for _ in range(repeats):
        x, seconds = timed(features)
        times["U-Net and upsampling"].append(seconds)
        mask, seconds = timed(vote, x)
        times["classifiers"].append(seconds)
        del x
    np.save(work_dir / "mask-naive.npy", mask)
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    return {**medians, "segment": sum(medians.values())}


def plain_members(head: PixelClassifierEnsemble) -> list[torch.nn.Sequential]:
    """The classifiers as published, one module each."""
    first, second = head.layers[0].weight.shape[1], head.layers[3].weight.shape[1]
    members = []
    for member in range(head.config.num_members):
        plain = torch.nn.Sequential(
            torch.nn.Linear(sum(head.channels), first),
            torch.nn.ReLU(),
            torch.nn.BatchNorm1d(first),
            torch.nn.Linear(first, second),
            torch.nn.ReLU(),
            torch.nn.BatchNorm1d(second),
            torch.nn.Linear(second, head.config.num_classes),
        )
        plain.load_state_dict({name: t[member] for name, t in head.layers.state_dict().items()}, strict=False)
        members.append(plain.eval())
    return members


def convert(work_dir: Path) -> dict:
    from diffuseseg_diffusers.cli import main as diffuseseg

    began = time.perf_counter()
    try:
        given = [str(work_dir / "lsun.pt"), "--preset", "lsun_256", "--output_dir", str(work_dir / "model")]
        diffuseseg(["convert", *given, "--overwrite"])
    except SystemExit as end:
        assert not end.code
    result = {"seconds": time.perf_counter() - began, "peak_GiB": peak_memory()}
    make_head(work_dir)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder for checkpoint and pipeline, 4.4 GB.")
    parser.add_argument("--repeats", type=int, default=3, help="Number of runs to take medians of (default: 3).")
    parser.add_argument("--side", choices=SIDES, help="The one to run, in this process (default: all).")
    args = parser.parse_args()
    if args.side is None:
        args.work_dir.mkdir(parents=True, exist_ok=True)
        if not (args.work_dir / "lsun.pt").is_file():
            write_checkpoint(args.work_dir / "lsun.pt")
        for side in SIDES:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--side", side], check=True)
        masks = {name: np.load(args.work_dir / f"mask-{name}.npy") for name in ("float32", "bfloat16", "naive")}
        for name in ("float32", "bfloat16"):
            print(f"Masks of {name} and the naive way agree on {(masks[name] == masks['naive']).mean():.4%} of pixels.")
        print(f"They show {len(np.unique(masks['naive']))} classes.")
        return
    if args.side == "convert":
        result = convert(args.work_dir)
    elif args.side == "naive":
        result = naive(args.work_dir, args.repeats)
    else:
        result = ours(args.work_dir, args.side.removeprefix("ours-"), args.repeats)
    result.setdefault("peak_GiB", peak_memory())
    rounded = {name: round(value, 2) for name, value in result.items()}
    print(json.dumps({"side": args.side, "hardware": hardware(torch.device("cpu")), **rounded}), flush=True)


if __name__ == "__main__":
    main()
