# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What do a lower precision and other samplers change, in time and in the masks?

    python benchmarks/bench_inference.py --task faces64

A head is fitted once, in float32. Precisions segment the test images with it. Samplers generate images with masks in
the last precision, each from the same noise; "agreement" is of the two masks of an image: from the finished image,
noised anew (as in the paper), and from the denoising steps. `ddpm-1000` is the sampler of the published pipeline.
"""

from typing import Any

import numpy as np
import torch
from harness import Result, Task, arguments, in_turn, now, ratio

from diffuseseg_diffusers import evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.factory.sampling import scheduler_for


def precisions(task: Task, pipes: dict[str, Any], head: Any, args: Any) -> None:
    """The same head in each precision."""
    columns = {
        "dtype": ("precision", "text"),
        "same": ("pixels as in float32, %", "percent2"),
        "mean_iou": ("mean IoU, %", "percent2"),
        "seconds": ("ms an image", "ms"),
        "times": ("", "times"),
    }
    fits = f"Default recipe, {len(task.train)} labelled images, fitted in float32; {len(task.test)} test images"
    about = f"{fits}; speed in batches of {args.batch_size}, medians of {args.rounds} rounds in turn."
    result = Result(f"precision-{args.name or args.task}", columns, args, about)
    pictures = [task.test[i].image for i in range(args.batch_size)]
    masks, scores = {}, {}
    for dtype, pipe in pipes.items():
        pipe.segmentation_head = type(head).from_config(head.config).to(pipe.device).eval()
        pipe.segmentation_head.load_state_dict(head.state_dict())
        how = dict(num_examples=len(task.test), show_progress=False)
        metrics, examples = evaluate_segmentation(pipe, task.test, args.batch_size, **how)
        scores[dtype] = metrics["mean_iou"]
        masks[dtype] = np.concatenate([example.prediction.ravel() for example in examples])
    sides = {k: lambda p=p: p.segment(pictures, args.batch_size, output_type="np") for k, p in pipes.items()}
    seconds = in_turn(sides, args.rounds)
    for dtype in pipes:
        result.row(
            dtype=dtype,
            same=float((masks[dtype] == masks["float32"]).mean()),
            mean_iou=scores[dtype],
            seconds=[s / len(pictures) for s in seconds[dtype]],
            times=ratio(seconds, "float32", dtype),
        )
    result.show()


def samplers(task: Task, pipe: Any, args: Any) -> None:
    """Images with masks by each sampler."""
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
        "fitted with noise; both ways in turn."
    )
    result = Result(f"samplers-{args.name or args.task}", columns, args, about, pipe.unet.dtype)
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


def main() -> None:
    own = dict(dtypes=["bfloat16"], samplers=["ddim-50", "ddim-20", "dpmsolver++-20"], num_samples=8)
    args = arguments(__doc__, seeds=[0], **own, batch_size=8, rounds=5)
    task = Task(args.task)
    pipes: dict[str, Any] = {dtype: task.pipe(dtype) for dtype in ["float32", *args.dtypes]}
    head = fit_segmentation_head(pipes["float32"], task.train, seed=args.seeds[0])
    precisions(task, pipes, head, args)
    sampling = pipes[args.dtypes[-1]]
    sampling.segmentation_head = fit_segmentation_head(sampling, task.train, seed=args.seeds[0], clean=False)
    samplers(task, sampling, args)


if __name__ == "__main__":
    main()
