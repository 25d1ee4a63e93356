# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One table of a device: training, extraction, fitting, segmenting and generating, each beside its floor.

    python benchmarks/bench_gpu.py --minutes 10

Three models with random weights: that of `training/configs/small_64.json` (64 × 64), the same at 256 × 256, and the
paper's for LSUN (256 × 256, 552.8 million weights). Heads are the default recipe's, with random weights too; a fit is
the default recipe on 20 drawn images. Medians; after every part the device is waited for. The floor of a part is the
longer of two times: its multiplications at the highest rate that the device reached in this run, and the bytes that it
must move at the rate of a large copy, as in `bench_stages.py`. Peak memory is that of the device's allocator, on a
CPU that of the process. What does not fit into the minutes is said to be left out.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from harness import Machine, Result, arguments, count, drawn_faces, peak_gib, random_head

from diffuseseg_diffusers import DiffuseSegPipeline, fit_segmentation_head, recipe_extractor
from diffuseseg_diffusers.diffusion.unets import make_unet, read_model_config
from diffuseseg_diffusers.features.weights import weight_bytes
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.jobs.hardware import DTYPES, default_device, default_dtype
from diffuseseg_diffusers.paper.guided_diffusion import PRESETS, unet_config


SMALL = str(Path(__file__).parent.parent / "training" / "configs" / "small_64.json")
STEPS = 10  # of DDIM, in generation
CLASSES = 6


class Table:
    """Rows of parts that are measured as long as there is time."""

    def __init__(self, result: Result, machine: Machine, minutes: float):
        self.result, self.machine, self.end = result, machine, time.perf_counter() + 60 * minutes

    def row(
        self, model: str, part: str, run: Callable, images: int, nbytes: float, flops: Callable, once: bool = False
    ) -> None:
        """Times a part on so many images, a long one `once`; `flops` counts those of all of them."""
        if time.perf_counter() > self.end:
            return self.result.row(model=model, part=part, rate="left out: no time")
        if self.machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = (self.machine.once(run) if once else self.machine.seconds(run)) / images
            floor = max(flops() / self.machine.flops, nbytes / self.machine.bytes) / images
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return self.result.row(model=model, part=part, rate="left out: not enough memory")
        found = {"rate": 1 / seconds, "seconds": seconds, "floor": floor, "ratio": seconds / floor}
        self.result.row(model=model, part=part, **found, peak=peak_gib(self.machine.device))


def train(table: Table, name: str, unet: torch.nn.Module, size: int, batch: int, dtype: torch.dtype) -> None:
    """Steps of `train_ddpm.py` with EMA, on a batch that lies on the device."""
    device = table.machine.device
    unet.train().requires_grad_(True)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)
    ema = EMAModel(unet.parameters(), foreach=True)
    timesteps = torch.full((batch,), 10, device=device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = F.mse_loss(unet(x, timesteps).sample.float(), x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())

    table.row(name, f"train, batch of {batch}", step, batch, 14 * weight_bytes(unet), lambda: count(step))
    unet.eval().requires_grad_(False)


def segmenting(table: Table, name: str, pipe: DiffuseSegPipeline, pixels: torch.Tensor) -> dict[str, Callable]:
    """Extraction and segmenting of a batch `[N, C, H, W]` in [-1, 1]; returns what counts their multiplications."""
    extractor, head, batch = pipe.head_extractor(), pipe.segmentation_head, len(pixels)
    numbers = sum(f.channels * f.height * f.width for f in extractor.feature_info())
    moved = weight_bytes(pipe.unet) + batch * numbers * pipe.unet.dtype.itemsize
    images = list((pixels / 2 + 0.5).float().cpu())

    def extract() -> Any:
        return extractor(pixels).activations

    def segment() -> None:
        pipe.segment(images, batch_size=batch, output_type="pt")

    def both() -> float:
        found = extract()
        return count(extract) + count(lambda: head.predict(found))

    table.row(name, f"extract, batch of {batch}", extract, batch, moved, lambda: count(extract))
    table.row(name, f"segment, batch of {batch}", segment, batch, moved + weight_bytes(head), both)
    return {"extract": lambda: count(extract), "segment": both}


def use(table: Table, name: str, pipe: DiffuseSegPipeline, size: int, batches: tuple[int, ...], fit: bool) -> None:
    """Extraction, fit, segmenting and generation of a pipeline on the device."""
    device, unet = table.machine.device, pipe.unet
    recipe, pipe.segmentation_head = find_recipe("default"), None
    how = dict(num_members=recipe.num_members, voting="soft")
    pipe.segmentation_head = head = random_head(recipe_extractor(pipe, recipe), CLASSES, **how).to(device)
    for batch in batches:
        flops = segmenting(table, name, pipe, torch.rand(batch, 3, size, size, device=device) * 2 - 1)
    if fit:
        images = drawn_faces(range(20), CLASSES)
        members, features = head.config.num_members, sum(head.channels)
        first, second = head.layers[0].weight.shape[1], head.layers[3].weight.shape[1]
        # Each pixel goes through the first layer forwards and for its weights, through the others thrice.
        per_pixel = 2 * members * (2 * features * first + 3 * (first * second + second * head.config.num_classes))
        steps = recipe.max_steps * recipe.batch_size * per_pixel
        pipe.segmentation_head = None

        def all_of_fit() -> float:
            return 160 * flops["extract"]() / batches[-1] + steps

        table.row(name, "fit on 20 images", lambda: fit_segmentation_head(pipe, images), 1, 0, all_of_fit, once=True)
        pipe.segmentation_head = head
    batch = batches[-1]

    def generate() -> None:
        pipe(batch, torch.Generator().manual_seed(0), STEPS, output_type="pt")

    pixels = torch.randn(batch, 3, size, size, device=device, dtype=unet.dtype)

    def every() -> float:
        return STEPS * count(lambda: unet(pixels, 10)) + flops["segment"]()

    part = f"generate with masks, {STEPS} steps, batch of {batch}"
    table.row(name, part, generate, batch, STEPS * weight_bytes(unet), every)


def main() -> None:
    models = ["small_64", "small_256", "lsun_256"]
    args = arguments(__doc__, None, minutes=10.0, dtype="auto", rounds=5, batch_size=64, models=models)
    device = default_device()
    dtype = default_dtype(device) if args.dtype == "auto" else DTYPES[args.dtype]
    machine = Machine(device, dtype, args.rounds)
    columns = {
        "model": ("model", "text"),
        "part": ("part", "text"),
        "rate": ("images a second", "1"),
        "seconds": ("ms an image", "ms"),
        "floor": ("floor, ms", "ms"),
        "ratio": ("ratio", "1"),
        "peak": ("peak, GiB", "2"),
    }
    about = (
        f"Medians of {args.rounds} rounds; highest rates {machine.flops / 1e9:,.0f} GFLOP and "
        f"{machine.bytes / 1e9:,.0f} GB a second."
    )
    result = Result(args.name or "gpu", columns, args, about, dtype)
    table, batch = Table(result, machine, args.minutes), args.batch_size
    sizes = {"small_64": (64, batch), "small_256": (256, max(1, batch // 8)), "lsun_256": (256, max(1, batch // 16))}
    for name in args.models:
        size, largest = sizes[name]
        if name == "lsun_256":
            unet = UNet2DModel.from_config(unet_config(PRESETS[name]))
        else:
            unet = make_unet({**read_model_config(SMALL), "in_channels": 3, "out_channels": 3, "sample_size": size})
        unet = unet.to(device, memory_format=torch.channels_last)
        train(table, name, unet, size, largest, dtype)
        pipe = DiffuseSegPipeline(unet.to(dtype), DDIMScheduler.from_config(DDPMScheduler().config))
        pipe.set_progress_bar_config(disable=True)
        use(table, name, pipe, size, tuple(dict.fromkeys((1, largest))), fit=name == "small_64")
        del pipe, unet
    result.show()


if __name__ == "__main__":
    main()
