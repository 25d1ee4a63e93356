# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What does a lower precision cost? Masks, mean IoU and speed of a fitted model in several precisions.

python benchmarks/bench_precision.py --task faces64
"""

from typing import Any

import numpy as np
from harness import Result, Task, arguments, in_turn, ratio

from diffuseseg_diffusers import evaluate_segmentation, fit_segmentation_head


def main() -> None:
    args = arguments(__doc__, seeds=[0], dtypes=["bfloat16"], batch_size=8, rounds=5)
    task = Task(args.task)
    pipes: dict[str, Any] = {dtype: task.pipe(dtype) for dtype in ["float32", *args.dtypes]}
    head = fit_segmentation_head(pipes["float32"], task.train, seed=args.seeds[0])
    columns = {
        "dtype": ("precision", "text"),
        "same": ("pixels as in float32, %", "percent2"),
        "mean_iou": ("mean IoU, %", "percent2"),
        "seconds": ("ms an image", "ms"),
        "times": ("", "times"),
    }
    fits = f"Default recipe, {len(task.train)} labelled images, fitted in float32; {len(task.test)} test images"
    about = f"{fits}; speed in batches of {args.batch_size}, medians of {args.rounds} rounds in turn."
    result = Result(args.name or f"precision-{args.task}", columns, args, about)
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


if __name__ == "__main__":
    main()
