# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where the time of fitting, segmenting, generating and training goes, each part beside its floor.

    python benchmarks/profile_stages.py --model FITTED_MODEL --dataset_name DATA --dataset_config_name labeled

The floor of a part is the longer of two times: its multiplications (counted by PyTorch, `FlopCounterMode`) at the
highest rate that this machine reached in the same run, on a convolution or a matrix product; and the bytes that it must
read and write once (weights, input, output) at the rate of a large copy. Medians; parts are timed one after the other
and add up to the stage.
"""

import argparse
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch.utils.flop_counter import FlopCounterMode

from diffuseseg_diffusers import load_labeled_images, load_pipeline
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.heads.ensemble import STRIP_BYTES
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.fit import fit_head
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.heads.upsampling import blend_of, columns_of, upsampled_rows
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor, mask_to_pil
from diffuseseg_diffusers.jobs.command import keep_freed_memory
from diffuseseg_diffusers.jobs.hardware import default_device, hardware
from diffuseseg_diffusers.pipelines.segmenter import SMALL, predict_masks, weight_bytes


def operations(total: Sequence[int], a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    """Of a product of matrices of these shapes that is added to what is there."""
    return 2 * math.prod(a) * b[-1]


IN_PLACE = {torch.ops.aten.addmm_: operations, torch.ops.aten.baddbmm_: operations}  # not counted by PyTorch


class Machine:
    """What the device reaches: `flops` a second in a precision, and `bytes` a second of reading and writing."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int):
        self.device, self.rounds = device, rounds
        x = torch.randn(8, 128, 64, 64, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        w = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        a = torch.randn(1536, 1536, device=device, dtype=dtype)
        big = torch.empty(2**26, dtype=torch.uint8, device=device)
        other = torch.empty_like(big)
        with torch.no_grad():
            self.flops = max(self.rate(lambda: F.conv2d(x, w, padding=1)), self.rate(lambda: a @ a))
        self.bytes = 2 * big.nbytes / self.seconds(lambda: other.copy_(big))

    def seconds(self, run: Callable[[], Any]) -> float:
        run()
        return median(self.once(run) for _ in range(self.rounds))

    def once(self, run: Callable[[], Any]) -> float:
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, run: Callable[[], Any]) -> float:
        return count(run) / self.seconds(run)


def count(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call, backward passes included."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


class Stage:
    """A table of one stage, part by part."""

    def __init__(self, machine: Machine, name: str, per: str):
        self.machine = machine
        print(f"\n### {name}\n\n| part | ms {per} | floor, ms | ratio |\n|---|---|---|---|")
        self.total = self.floor = 0.0

    def part(self, name: str, run: Callable[[], Any], number: int, nbytes: float = 0, floor: bool = True) -> None:
        """A part that takes `number` images or steps at once, and must move `nbytes`."""
        seconds = self.machine.seconds(run) / number
        least = max(count(run) / self.machine.flops, nbytes / self.machine.bytes) / number if floor else seconds
        self.row(name, seconds, least)

    def row(self, name: str, seconds: float, least: float) -> None:
        self.total, self.floor = self.total + seconds, self.floor + least
        print(f"| {name} | {1e3 * seconds:.2f} | {1e3 * least:.2f} | {seconds / least:.2f} |", flush=True)

    def end(self) -> None:
        print(f"| **all** | {1e3 * self.total:.2f} | {1e3 * self.floor:.2f} | {self.total / self.floor:.2f} |")


def as_file(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def segment(machine: Machine, pipe: Any, images: list[PIL.Image.Image]) -> None:
    extractor, head = pipe.head_extractor(), pipe.segmentation_head
    processor = DiffuseSegImageProcessor(pipe.in_channels, pipe.channels)
    files, n, size = [as_file(image) for image in images], len(images), pipe.image_size
    pixels = processor.preprocess(processor.load(images), *size)
    found = extractor(pixels).activations
    views = 2 if head.config.flip else 1
    mirrored = extractor(pixels.flip(-1)).activations if views == 2 else None
    masks = predict_masks(head, found, mirrored, [size] * n).masks
    weights = weight_bytes(pipe.denoiser)

    stage = Stage(machine, f"Segment, batch of {n}", "an image")
    stage.part(
        "files to pixels",
        lambda: processor.preprocess(processor.load([PIL.Image.open(io.BytesIO(f)) for f in files]), *size),
        n,
        floor=False,
    )
    # As in `segment`: an image that comes alone goes through together with its mirror image.
    together = views == 2 and n == 1 and pixels[0, 0].numel() <= SMALL
    passes = [torch.cat([pixels, pixels.flip(-1)])] if together else [pixels] * views
    moved = len(passes) * weights + views * nbytes(pixels, *found)
    stage.part("denoiser", lambda: [extractor(batch) for batch in passes], n, moved)
    moved = views * nbytes(*found) + weight_bytes(head) + nbytes(*masks)
    stage.part("head", lambda: predict_masks(head, found, mirrored, [size] * n), n, moved)
    within(machine, head, found, mirrored, size)
    stage.part(
        "masks to files",
        lambda: [as_file(mask_to_pil(mask.cpu().numpy(), pipe.palette)) for mask in masks],
        n,
        floor=False,
    )
    stage.end()


@torch.no_grad()
def within(machine: Machine, head: Any, found: list, mirrored: list | None, size: tuple[int, int]) -> None:
    """What the first layer and upsampling take of the head's time, each by itself on data of the same shape."""
    n, members = len(found[0]), head.config.num_members
    half = (members + 1) // 2 if mirrored else members
    views = [(found, half)] + ([(mirrored, max(1, members - half))] if mirrored else [])
    width = head.layers[0].weight.shape[1]
    first, up = [], []
    for activations, own in views:
        sizes = list(dict.fromkeys(a.shape[-2:] for a in activations))
        lower = []
        for h, w in sizes:
            channels = sum(a.shape[1] for a in activations if a.shape[-2:] == (h, w))
            x, weight = (
                torch.randn(*s, device=machine.device, dtype=found[0].dtype)
                for s in ((n, h, w, channels), (own * width, channels))
            )
            first.append(lambda x=x, weight=weight: F.linear(x, weight))
            if (h, w) != size:
                lower.append(torch.randn(n, h, w, own * width, device=machine.device, dtype=found[0].dtype))
        up.append(lower)
    itemsize = found[0].element_size()
    rows = max(1, STRIP_BYTES.get(machine.device.type, 2**26) // (half * width * size[1] * itemsize))
    strips = [slice(top, min(top + rows, size[0])) for top in range(0, size[0], rows)]

    def upsample() -> None:
        for lower in up:
            blends = [[blend_of(m, size[0], own) for m in lower] for own in strips]
            columns = [columns_of(m, size[1]) for m in lower]
            for image in zip(*(m.split(max(1, rows // size[0])) for m in lower)):
                for blend in blends:
                    upsampled_rows(image, blend, columns, size[1])

    parts = {"first layer": lambda: [run() for run in first], "upsampling": upsample}
    for name, run in parts.items():
        print(f"| *of the head: {name}* | {1e3 * machine.seconds(run) / n:.2f} | | |", flush=True)


def fit(machine: Machine, pipe: Any, dataset: Any) -> None:
    recipe = find_recipe("default")
    config = pipe.segmentation_head.config
    extractor = pipe.feature_extractor(blocks=config.blocks, timesteps=config.timesteps)
    views, n = recipe.num_views(len(dataset)), len(dataset) * (1 + recipe.num_views(len(dataset)))
    table: Any = None

    def extract() -> None:
        nonlocal table
        table = extract_activations(extractor, dataset, show_progress=False, augmented_views=views, flip=True)

    stage = Stage(machine, f"Fit by the default recipe, {len(dataset)} images, {n} with their views", "a fit")
    began = time.perf_counter()
    extract()
    seconds = time.perf_counter() - began
    pixels = torch.zeros(4, extractor.in_channels, *extractor.size, device=pipe.device)
    stage.row("views and denoiser", seconds, n / 4 * count(lambda: extractor(pixels)) / machine.flops)
    classes = Classes(config.num_classes, config.label_names)
    one = count(lambda: fit_head(table, extractor, classes, replace(recipe, max_steps=1)))
    began = time.perf_counter()
    fit_head(table, extractor, classes, recipe)
    stage.row(f"{recipe.max_steps} steps", time.perf_counter() - began, recipe.max_steps * one / machine.flops)
    stage.end()


def generate(machine: Machine, pipe: Any, n: int, steps: int) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    unet, size = pipe.denoiser, pipe.image_size
    x = torch.randn(n, pipe.in_channels, *size, device=pipe.device, dtype=unet.dtype)
    stage = Stage(machine, f"Generate with masks, batch of {n}, {steps} DDIM steps", "an image")

    @torch.no_grad()
    def denoise() -> None:
        for _ in range(steps):
            unet(x, 10)

    stage.part("denoiser, steps", denoise, n, steps * weight_bytes(unet))
    began = time.perf_counter()
    output = pipe(n, torch.Generator().manual_seed(0), steps)
    whole = (time.perf_counter() - began) / n
    segmenting = machine.seconds(lambda: pipe.segment(output.images, batch_size=n)) / n
    stage.row("masks", segmenting, segmenting)
    rest = max(whole - stage.total, 1e-9)
    stage.row("scheduler, conversion and the rest", rest, rest)
    stage.end()


def train(machine: Machine, pipe: Any, n: int) -> None:
    unet = pipe.denoiser.float().train().requires_grad_(True)
    x = torch.randn(n, pipe.in_channels, *pipe.image_size, device=pipe.device)
    x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=0.0, fused=True)
    ema = EMAModel(unet.parameters(), foreach=True)
    weights = weight_bytes(unet)

    def forward() -> torch.Tensor:
        return F.mse_loss(unet(x, torch.full((n,), 10, device=x.device)).sample, x)

    def both() -> None:
        optimizer.zero_grad()
        forward().backward()

    both()
    stage = Stage(machine, f"Train, batch of {n}, float32", "an image")
    stage.part("forward and backward", both, n, 3 * weights)
    stage.part("gradient norm", lambda: torch.nn.utils.clip_grad_norm_(unet.parameters(), 1e9), n, weights)
    stage.part("AdamW", optimizer.step, n, 7 * weights)  # reads 4 numbers a weight, writes 3
    stage.part("moving average", lambda: ema.step(unet.parameters()), n, 3 * weights)
    stage.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Pipeline on pixels with a head.")
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--dataset_config_name")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_inference_steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()  # as in every command

    device = default_device()
    pipe: Any = load_pipeline(args.model, device=device, dtype=args.dtype)
    dtype = pipe.denoiser.dtype
    machine = Machine(device, dtype, args.rounds)
    print(
        f"{hardware(device)}, {str(dtype).removeprefix('torch.')}: {machine.flops / 1e9:.0f} GFLOP/s, "
        f"{machine.bytes / 1e9:.1f} GB/s read and written."
    )
    data = load_labeled_images(args.dataset_name, args.dataset_config_name, classes=pipe.label_names)
    images = [data[i % len(data)].picture for i in range(args.batch_size)]
    segment(machine, pipe, images[:1])
    segment(machine, pipe, images)
    fit(machine, pipe, data)
    generate(machine, pipe, args.batch_size, args.num_inference_steps)
    train(machine, pipe, args.batch_size)


if __name__ == "__main__":
    main()
