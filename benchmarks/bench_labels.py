# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is a label worth? Mean IoU over the number of labelled images, clean and under shift.

    python benchmarks/bench_labels.py --task faces64

The labelled images are the first of the training split; all methods are measured on the test split. Methods: `default`,
the default recipe; `paper`, the published recipe with its features; `unet`, a U-Net trained from scratch (`unet.py`).
Shifts are measured with the most labels and the first seed.
"""

from typing import Any

from harness import SHIFTS, Result, Shifted, Task, arguments, fit, mean_iou
from unet import train_unet


METHODS = {"default": "default recipe", "paper": "published recipe", "unet": "U-Net from scratch"}


def main() -> None:
    options = dict(counts=[1, 2, 5, 10, 20], seeds=[0, 1, 2], methods=list(METHODS))
    args = arguments(__doc__, **options, unet_images=12_000, unet_seeds=3, shifts=False)
    task = Task(args.task)
    pipe = task.pipe()
    about = f"Mean IoU in %, mean over the seeds with its range, on {len(task.test)} test images."
    if "unet" in args.methods:
        about = f"{about[:-1]}; the U-Net has seen {args.unet_images:,} augmented images."
    columns = {"labels": ("labelled images", "int")} | {m: (METHODS[m], "percent") for m in args.methods}
    result = Result(args.name or f"labels-{args.task}", columns, args, about, pipe.unet.dtype)
    fitted: dict[tuple, Any] = {}

    def model_of(method: str, count: int, seed: int) -> Any:
        own = task.train.select(range(count))
        if method == "unet":
            return train_unet(own, seed, images=args.unet_images)
        return fit(pipe, own, recipe=method, seed=seed)

    def measure(method: str, count: int, seed: int) -> dict[str, float]:
        model, sets = model_of(method, count, seed), {"clean": task.test}
        if args.shifts and (count, seed) == (max(args.counts), args.seeds[0]):
            sets |= {shift: Shifted(task.test, shift) for shift in SHIFTS}
        return {name: mean_iou(model, images) for name, images in sets.items()}

    seeds = {m: args.seeds[: args.unet_seeds] if m == "unet" else args.seeds for m in args.methods}
    keys = [(method, count, seed) for method in args.methods for seed in seeds[method] for count in args.counts]
    for key in keys:
        fitted[key] = result.cell(" ".join(map(str, key)), lambda key=key: measure(*key))
    for count in args.counts:
        result.row(labels=count, **{m: [fitted[m, count, s]["clean"] for s in seeds[m]] for m in args.methods})
    result.show()
    if args.shifts:
        columns = {"method": ("", "text"), "clean": ("clean", "percent")} | {s: (s, "percent") for s in SHIFTS}
        shifted = "rotated by 15°, darkened to 60 %, blurred, and shrunk to 75 %"
        about = f"Mean IoU in % with {max(args.counts)} labelled images, on the test images as they are, {shifted}."
        args.seeds = args.seeds[:1]
        shifts = Result(f"shifts-{args.task}", columns, args, about, pipe.unet.dtype)
        for method in args.methods:
            shifts.row(method=METHODS[method], **fitted[method, max(args.counts), args.seeds[0]])
        shifts.show()


if __name__ == "__main__":
    main()
