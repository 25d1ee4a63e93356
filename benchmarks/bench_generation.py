# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which sampler generates images with masks fastest, and do masks from the denoising steps agree with the others?

    python benchmarks/bench_generation.py --task faces64 --samplers ddim-50 ddim-20 dpmsolver++-20

Every row starts from the same noise. "Agreement" is of the two masks of an image: from the finished image, noised
anew (as in the paper), and from the denoising steps. `ddpm-1000` is the sampler of the published pipeline.
"""

import numpy as np
import torch
from harness import Result, Task, arguments, fit, now

from diffuseseg_diffusers.factory.sampling import scheduler_for


def main() -> None:
    samplers = ["ddim-50", "ddim-20", "dpmsolver++-20"]
    args = arguments(__doc__, seeds=[0], dtype="auto", samplers=samplers, num_samples=16, batch_size=8)
    task = Task(args.task)
    pipe = fit(task.pipe(args.dtype), task.train, seed=args.seeds[0])
    pipe.set_progress_bar_config(disable=True)
    original = pipe.scheduler
    columns = {
        "sampler": ("sampler", "text"),
        "steps": ("steps", "int"),
        "from_image": ("s an image, masks from the image", "2"),
        "while_sampling": ("masks while sampling", "2"),
        "agreement": ("agreement of the masks, %", "percent"),
    }
    about = (
        f"{args.num_samples} images in batches of {args.batch_size}; default recipe, {len(task.train)} labels; "
        "both ways in turn."
    )
    result = Result(args.name or f"samplers-{args.task}", columns, args, about, pipe.unet.dtype)
    pipe(args.batch_size, num_inference_steps=2)  # warm-up

    def measure(name: str, steps: int) -> dict:
        pipe.scheduler = scheduler_for(name, original)
        seconds, masks = ([], []), ([], [])
        for start in range(0, args.num_samples, args.batch_size):
            for way in (False, True):
                noise = [torch.Generator().manual_seed(i) for i in range(start, start + args.batch_size)]
                began = now()
                output = pipe(args.batch_size, noise, steps, "np", masks_while_sampling=way)
                seconds[way].append((now() - began) / args.batch_size)
                masks[way].append(output.masks)
        agreement = float(np.mean(np.concatenate(masks[0]) == np.concatenate(masks[1])))
        return {"from_image": seconds[0], "while_sampling": seconds[1], "agreement": agreement}

    for sampler in args.samplers:
        name, steps = sampler.rsplit("-", 1)
        found = result.cell(sampler, lambda name=name, steps=int(steps): measure(name, steps))
        result.row(sampler=name, steps=int(steps), **found)
    result.show()


if __name__ == "__main__":
    main()
