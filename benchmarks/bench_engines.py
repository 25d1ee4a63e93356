# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What computes the denoiser's pass fastest on a CPU, and are its masks those of PyTorch in float32?

    python benchmarks/bench_engines.py                 # needs the extra openvino, and nncf

PyTorch and OpenVINO in each precision, and OpenVINO with weights and activations in int8: quantised statically (NNCF,
its preset for mixed networks) on `--calibration` pictures without labels. Heads of the default recipe, fitted on 20
labelled pictures; masks of `--images` other pictures without labels. Another precision than float32 is taken by
itself only where 99.9 % of the pixels keep their class.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from bench_fields import Field
from datasets import Image, load_dataset
from harness import FOLDERS, SHARED, Result, Task, arguments, in_turn, ratio

from diffuseseg_diffusers import fit_segmentation_head, load_pipeline
from diffuseseg_diffusers.features.openvino import OpenVINOEngine
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.pipelines.general import GENERAL, suited_recipe


PICTURES = {"faces64": (64, 64), "camvid": (96, 128), "blood-cells": (120, 120)}
BATCH = 8
PYTORCH = "PyTorch, float32"


class Int8Engine(OpenVINOEngine):
    """OpenVINO with weights and activations in int8."""

    def __init__(self, batches: list[np.ndarray], timestep: int):
        super().__init__()
        self.batches, self.timestep = batches, timestep

    def compile(self, model: Any, dtype: torch.dtype) -> Any:
        import nncf

        number = model.inputs[0].shape[0]
        parts = [part for batch in self.batches for part in np.split(batch, len(batch) // number)]
        given = [[part, np.full(number, self.timestep)] for part in parts]
        return super().compile(nncf.quantize(model, nncf.Dataset(given), subset_size=len(given)), dtype)


def main() -> None:
    sizes = dict(images=40, calibration=96, rounds=5)
    args = arguments(__doc__, None, pictures=list(PICTURES), **sizes)
    columns = {"pictures": ("pictures", "text"), "engine": ("", "text"), "batch": (f"batches of {BATCH}, ms", "ms")}
    columns |= {"batch_times": ("", "times"), "alone": ("one by one, ms", "ms"), "alone_times": ("", "times")}
    columns |= {"agreement": ("pixels of the same class, %", "percent2")}
    about = f"Segmenting an image; medians of {args.rounds} rounds in turn, and ratios to the first row of each."
    result = Result(args.name or "engines", columns, args, about, keep=True)

    def measure(name: str) -> dict[str, Any]:
        size, fields = PICTURES[name], name not in FOLDERS
        if fields:
            train, model, data = Field(name, 1).train, GENERAL, f"data/fields/{name}"
        else:
            train, model, data = Task(name).train, str(Task(name).model), FOLDERS[name][0]
        pipe, recipe = load_pipeline(model, dtype="float32"), suited_recipe("default", model)
        head = fit_segmentation_head(pipe, train.select(range(20)), recipe=recipe, size=size)
        found = load_dataset(str(SHARED / data), "unlabeled", split="train").cast_column("image", Image())
        pictures = found.select(range(len(found) - args.images - args.calibration, len(found)))["image"][:]
        shown, others = pictures[: args.images], pictures[args.images :]

        def with_head(dtype: str, engine: str) -> Any:
            made = load_pipeline(model, dtype=dtype)
            made.segmentation_head = head
            if engine == "int8":
                extractor, processor = made.head_extractor(), DiffuseSegImageProcessor(made.in_channels, made.channels)
                pixels = processor.preprocess(processor.load(others), *size)
                batches = [part.numpy() for part in pixels.split(BATCH) if len(part) == BATCH]
                made.engine = Int8Engine(batches, extractor.timesteps[0])
            elif engine == "openvino":
                made.engine = OpenVINOEngine()
            return made

        pipes = {PYTORCH: with_head("float32", "pytorch"), "OpenVINO, float32": with_head("float32", "openvino")}
        pipes |= {
            "PyTorch, bfloat16": with_head("bfloat16", "pytorch"),
            "OpenVINO, bfloat16": with_head("bfloat16", "openvino"),
        }
        pipes |= {"OpenVINO, int8": with_head("float32", "int8")}

        def masks(one: Any, number: int, batch_size: int) -> np.ndarray:
            return np.stack(one.segment(shown[:number], batch_size, mask_size=size, output_type="np").masks)

        cell: dict[str, Any] = {}
        exact = masks(pipes[PYTORCH], args.images, BATCH)
        agreement = {k: float(np.mean(masks(p, args.images, BATCH) == exact)) for k, p in pipes.items()}
        batch = in_turn({k: partial(masks, p, BATCH, BATCH) for k, p in pipes.items()}, args.rounds)
        alone = in_turn({k: partial(masks, p, BATCH, 1) for k, p in pipes.items()}, args.rounds)
        for key in pipes:
            cell[key] = {"agreement": agreement[key], "batch_times": ratio(batch, PYTORCH, key)}
            cell[key] |= {"batch": [s / BATCH for s in batch[key]], "alone": [s / BATCH for s in alone[key]]}
            cell[key] |= {"alone_times": ratio(alone, PYTORCH, key)}
        return cell

    for name in args.pictures:
        result.cell(name, partial(measure, name))
    for name, cell in result.content["cells"].items():
        shown = name
        for engine, values in cell.items():
            if isinstance(values, dict):
                result.row(pictures=shown, engine=engine, **values)
                shown = ""
    result.show()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
