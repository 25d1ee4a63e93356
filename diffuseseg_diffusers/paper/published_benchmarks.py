# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks of Baranchuk et al. (ICLR 2022), section 4: their settings, their images, the paper's table."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL.Image

from ..datasets.labeled import LabeledImage, LabeledImages, load_labeled_images
from ..jobs.errors import UserError
from ..jobs.files import read_json


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as published.

    Args:
        title (`str`): Its name in the paper.
        label_names (sequence of `str`), palette (sequence of `[red, green, blue]`, *optional*): Of the classes.
        ignore_index (`int`): Mask value that is not measured on.
        dataset_url (`str`), checkpoint_url (`str`): Where the authors offer dataset and diffusion model.
        checkpoint (`str`): File name of the latter.
        train_images (`int`), test_images (`int`): Number of images in each split.
        image_size (`int`): Side of the square images in pixels.
        blocks (sequence of `int`), timesteps (sequence of `int`): Features of the paper's method.
        num_members (`int`): Classifiers in the ensemble.
        batch_size (`int`): Pixels in a step of their training.
        published_mean_iou (`dict`): Method to mean and standard deviation of its mean IoU in percent.
        preset (`str`, *optional*): Flags of guided-diffusion that the checkpoint was trained with, by name.
        flags (`str`, *optional*): The same as its command line has them, where there is no preset.
        dataset_ddpm (`dict`, *optional*): How the paper's DatasetDDPM generates and trains, where it does.
    """

    title: str
    label_names: Sequence[str]
    palette: Sequence[Sequence[int]] | None
    ignore_index: int
    dataset_url: str
    checkpoint_url: str
    checkpoint: str
    train_images: int
    test_images: int
    image_size: int
    blocks: Sequence[int]
    timesteps: Sequence[int]
    num_members: int
    batch_size: int
    published_mean_iou: dict[str, Sequence[float]]
    preset: str | None = None
    flags: str | None = None
    dataset_ddpm: dict | None = None


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
    """Square labelled images at a benchmark's size, as the published code reads them.

    Args:
        dataset ([`LabeledImages`]): The images at their own size.
        size (`int`): Side in pixels.
    """

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
    """Our runs beside the column of the paper's table.

    Args:
        benchmark ([`Benchmark`]): What was run.
        method (`str`): Row of the table that the runs reproduce.
        mean_ious (sequence of `float`): Mean IoU of each run in percent.

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
