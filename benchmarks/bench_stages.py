# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where does the time of segmenting, fitting, generating and training go, and how far is each part from its floor?

    python benchmarks/bench_stages.py --task faces64

The floor of a part is the longer of two times: its multiplications (`FlopCounterMode`) at the highest rate that this
machine reached in the same run, on a convolution or a matrix product; and the bytes that it must read and write once
(weights, input, output) at the rate of a large copy. Parts are timed one after the other and add up to the stage.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from harness import Machine, Result, Task, arguments, count, fit, now

from diffuseseg_diffusers.features.weights import weight_bytes
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.fit import fit_head, recipe_extractor
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor, mask_to_pil
from diffuseseg_diffusers.jobs.hardware import default_device
from diffuseseg_diffusers.pipelines.outputs import predict_masks
from diffuseseg_diffusers.pipelines.segmenter import SMALL


class Stage:
    """Rows of one stage, part by part."""

    def __init__(self, result: Result, machine: Machine, name: str):
        self.result, self.machine, self.name = result, machine, name
        self.total = self.floor = 0.0

    def part(self, name: str, run: Callable[[], Any], number: int, nbytes: float = 0, floor: bool = True) -> None:
        """A part that takes `number` images or steps at once, and must move `nbytes`."""
        seconds = self.machine.seconds(run) / number
        least = max(count(run) / self.machine.flops, nbytes / self.machine.bytes) / number if floor else seconds
        self.row(name, seconds, least)

    def row(self, name: str, seconds: float, least: float) -> None:
        self.total, self.floor = self.total + seconds, self.floor + least
        self._write(name, seconds, least)

    def end(self) -> None:
        self._write("all", self.total, self.floor)

    def _write(self, name: str, seconds: float, least: float) -> None:
        bound = seconds > least
        floor = {"floor": least, "ratio": seconds / least} if bound else {"floor": None, "ratio": None}
        self.result.row(stage=self.name, part=name, seconds=seconds, **floor)
        self.name = ""


def as_file(image: PIL.Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def segment(result: Result, machine: Machine, pipe: Any, images: list[PIL.Image.Image]) -> None:
    extractor, head = pipe.head_extractor(), pipe.segmentation_head
    processor = DiffuseSegImageProcessor(pipe.in_channels, pipe.channels)
    files, n, size = [as_file(image) for image in images], len(images), pipe.image_size
    pixels = processor.preprocess(processor.load(images), *size)
    found = extractor(pixels).activations
    views = 2 if head.config.flip else 1
    mirrored = extractor(pixels.flip(-1)).activations if views == 2 else None
    masks = predict_masks(head, found, mirrored, [size] * n).masks
    weights = weight_bytes(pipe.denoiser)

    stage = Stage(result, machine, f"segment, an image of a batch of {n}")

    def decode() -> torch.Tensor:
        return processor.preprocess(processor.load([PIL.Image.open(io.BytesIO(f)) for f in files]), *size)

    stage.part("files to pixels", decode, n, floor=False)
    # As in `segment`: an image that comes alone goes through together with its mirror image.
    together = views == 2 and n == 1 and pixels[0, 0].numel() <= SMALL
    passes = [torch.cat([pixels, pixels.flip(-1)])] if together else [pixels] * views
    moved = len(passes) * weights + views * nbytes(pixels, *found)
    stage.part("denoiser", lambda: [extractor(batch) for batch in passes], n, moved)
    moved = views * nbytes(*found) + weight_bytes(head) + nbytes(*masks)
    stage.part("head", lambda: predict_masks(head, found, mirrored, [size] * n), n, moved)
    encode = lambda: [as_file(mask_to_pil(mask.cpu().numpy(), pipe.palette)) for mask in masks]  # noqa: E731
    stage.part("masks to files", encode, n, floor=False)
    stage.end()


def fitting(result: Result, machine: Machine, pipe: Any, dataset: Any) -> None:
    recipe = find_recipe("default")
    config = pipe.segmentation_head.config
    extractor = recipe_extractor(pipe, recipe)
    views, n = recipe.num_views(len(dataset)), len(dataset) * (1 + recipe.num_views(len(dataset)))
    table: Any = None

    def extract() -> None:
        nonlocal table
        table = extract_activations(extractor, dataset, show_progress=False, augmented_views=views, flip=True)

    stage = Stage(result, machine, f"fit on {len(dataset)} images, {n} with their views")
    began = now()
    extract()
    seconds = now() - began
    pixels = torch.zeros(4, extractor.in_channels, *extractor.size, device=pipe.device)
    stage.row("views and denoiser", seconds, n / 4 * count(lambda: extractor(pixels)) / machine.flops)
    classes = Classes(config.num_classes, config.label_names)
    one = count(lambda: fit_head(table, extractor, classes, replace(recipe, max_steps=1)))
    began = now()
    fit_head(table, extractor, classes, recipe)
    stage.row(f"{recipe.max_steps} steps", now() - began, recipe.max_steps * one / machine.flops)
    stage.end()


def generate(result: Result, machine: Machine, pipe: Any, n: int, steps: int) -> None:
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    unet, size = pipe.denoiser, pipe.image_size
    x = torch.randn(n, pipe.in_channels, *size, device=pipe.device, dtype=unet.dtype)
    stage = Stage(result, machine, f"generate with masks, {steps} DDIM steps, an image of a batch of {n}")

    @torch.no_grad()
    def denoise() -> None:
        for _ in range(steps):
            unet(x, 10)

    stage.part("denoiser, steps", denoise, n, steps * weight_bytes(unet))
    began = now()
    output = pipe(n, torch.Generator().manual_seed(0), steps)
    whole = (now() - began) / n
    segmenting = machine.seconds(lambda: pipe.segment(output.images, batch_size=n)) / n
    stage.row("masks", segmenting, segmenting)
    rest = max(whole - stage.total, 1e-9)
    stage.row("scheduler, conversion and the rest", rest, rest)
    stage.end()


def train(result: Result, machine: Machine, pipe: Any, n: int) -> None:
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
    stage = Stage(result, machine, f"train in float32, an image of a batch of {n}")
    stage.part("forward and backward", both, n, 3 * weights)
    stage.part("gradient norm", lambda: torch.nn.utils.clip_grad_norm_(unet.parameters(), 1e9), n, weights)
    stage.part("AdamW", optimizer.step, n, 7 * weights)  # reads 4 numbers a weight, writes 3
    stage.part("moving average", lambda: ema.step(unet.parameters()), n, 3 * weights)
    stage.end()


def main() -> None:
    args = arguments(__doc__, dtype="auto", batch_size=8, num_inference_steps=10, rounds=5)
    task, device = Task(args.task), default_device()
    pipe: Any = task.pipe(args.dtype)
    pipe.set_progress_bar_config(disable=True)
    dtype = pipe.denoiser.dtype
    machine = Machine(device, dtype, args.rounds)
    columns = {
        "stage": ("stage", "text"),
        "part": ("part", "text"),
        "seconds": ("ms", "ms"),
        "floor": ("floor, ms", "ms"),
        "ratio": ("ratio", "1"),
    }
    about = (
        f"Medians of {args.rounds} rounds, the fit once; highest rates {machine.flops / 1e9:.0f} GFLOP and "
        f"{machine.bytes / 1e9:.0f} GB a second; parts without a floor count as they are."
    )
    result = Result(args.name or f"stages-{args.task}", columns, args, about, dtype)
    fit(pipe, task.train.select(range(2)), seed=0)
    images = [task.train[i % len(task.train)].image for i in range(args.batch_size)]
    segment(result, machine, pipe, images[:1])
    segment(result, machine, pipe, images)
    fitting(result, machine, pipe, task.train)
    generate(result, machine, pipe, args.batch_size, args.num_inference_steps)
    train(result, Machine(device, torch.float32, args.rounds), pipe, args.batch_size)  # in float32
    result.show()


if __name__ == "__main__":
    main()
