# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks of Baranchuk et al. (ICLR 2022), section 4: their settings, their images, the paper's table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image

from ..datasets.find_labeled import load_labeled_images
from ..datasets.labeled import LabeledImage, LabeledImages
from ..jobs.errors import UserError
from ..jobs.files import read_json


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as published."""

    title: str  # its name in the paper
    label_names: Sequence[str]
    palette: Sequence[Sequence[int]] | None
    ignore_index: int  # mask value that is not measured on
    dataset_url: str  # where the authors offer the dataset
    checkpoint_url: str  # and the diffusion model
    checkpoint: str  # file name of the latter
    train_images: int
    test_images: int
    image_size: int  # side of the square images in pixels
    blocks: Sequence[int]  # features of the paper's method
    timesteps: Sequence[int]
    num_members: int  # classifiers in the ensemble
    batch_size: int  # pixels in a step of their training
    published_mean_iou: dict[str, Sequence[float]]  # method to mean and standard deviation of its mean IoU in percent
    preset: str | None = None  # flags of guided-diffusion that the checkpoint was trained with, by name
    flags: str | None = None  # the same as its command line has them, where there is no preset
    dataset_ddpm: dict | None = None  # how the paper's DatasetDDPM generates and trains, where it does


def read_benchmark(path: Path) -> Benchmark:
    """Reads a benchmark from a JSON file such as those in `diffuseseg_diffusers/paper/benchmarks`.

    Raises:
        UserError: It is no such file; names the keys that are missing or unknown.
    """
    content = read_json(path)
    fields = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(Benchmark)}  # name to required
    missing = [name for name, required in fields.items() if required and name not in content]
    unknown = [name for name in content if name not in fields]
    if not ("preset" in content or "flags" in content):
        missing.append("preset or flags")
    if missing or unknown:
        what = [f"misses {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise UserError(f"{path} is no benchmark: it {' and '.join(what)}.")
    return Benchmark(**content)


class SquareImages(LabeledImages):
    """Square labelled images at a benchmark's side in pixels, as the published code reads them."""

    def __init__(self, dataset: LabeledImages, size: int):
        self.__dict__.update(dataset.__dict__)
        self.size = size

    def __getitem__(self, index: int) -> LabeledImage:
        row = super().__getitem__(index)
        height, width = row.mask.shape
        if height != width:
            raise UserError(f"{row.name} is {width} × {height}, but the benchmarks are of square images.")
        if height == self.size:
            return row
        nearest = np.arange(self.size) * height // self.size  # OpenCV's, which rounds down
        image = row.picture.resize((self.size, self.size), PIL.Image.Resampling.BILINEAR)
        return replace(row, image=image, mask=row.mask[nearest][:, nearest])


def load_benchmark_images(benchmark: Benchmark, folder: Path, count: int) -> SquareImages:
    """The first `count` images of a folder of the published layout: images with a `.npy` mask beside each.

    Raises:
        UserError: There is no such folder, or it has no masks; says where the dataset can be had.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; the datasets are in {benchmark.dataset_url}.")
    if not any(folder.rglob("*.npy")):
        raise UserError(f"The folder {folder} has no masks: images of the benchmarks have a .npy file beside each.")
    dataset = load_labeled_images(
        folder.parent,
        split=folder.name,
        label_names=benchmark.label_names,
        palette=benchmark.palette,
        ignore_index=benchmark.ignore_index,
    )
    if len(dataset) < count:
        print(f"Mind that {folder} has {len(dataset)} images, and the paper's benchmark {count}.")
    return SquareImages(dataset.select(range(min(count, len(dataset)))), benchmark.image_size)


def compare_with_published(benchmark: Benchmark, method: str, mean_ious: Sequence[float]) -> tuple[str, dict]:
    """Our runs (mean IoU in percent) beside the row of the paper's table that they reproduce.

    Returns:
        `(text, report)`: the table, and a dict with `benchmark`, `method`, `mean_iou`, `mean` and `std`.
    """
    mean = float(np.mean(mean_ious))
    std = float(np.std(mean_ious, ddof=1)) if len(mean_ious) > 1 else None
    lines = [f"{benchmark.title}, mean IoU in %"]
    for name, (published, deviation) in benchmark.published_mean_iou.items():
        ours = ""
        if name == method:
            spread, runs = "" if std is None else f" ± {std:.1f}", "runs" if len(mean_ious) > 1 else "run"
            ours = f"   here {mean:.1f}{spread} ({len(mean_ious)} {runs})"
        lines.append(f"  {name:<14}{published:>5.1f} ± {deviation:.1f}{ours}")
    report = {"benchmark": benchmark.title, "method": method, "mean_iou": list(mean_ious), "mean": mean, "std": std}
    return "\n".join(lines), report
