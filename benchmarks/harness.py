# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the benchmarks share: tasks, rounds in turn, peak memory, floors, and results as JSON.

A benchmark asks one question, fills a [`Result`], and prints its table. `make results` writes the tables of all results
into the documentation (`tables.py`).
"""

import argparse
import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets import Image as ImageFeature
from tables import RESULTS, ROOT, caption, table
from torch.utils.flop_counter import FlopCounterMode

import diffuseseg_diffusers
from diffuseseg_diffusers import (
    LabeledImages,
    PixelClassifierEnsemble,
    evaluate_segmentation,
    fit_segmentation_head,
    load_labeled_images,
    load_pipeline,
)
from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL, draw_face
from diffuseseg_diffusers.datasets.labeled import LabeledImage
from diffuseseg_diffusers.images.image_processor import to_eight_bit
from diffuseseg_diffusers.jobs.command import keep_freed_memory
from diffuseseg_diffusers.jobs.files import write_json


SHARED = Path(os.environ.get("DIFFUSESEG_BENCHMARK_DATA", ROOT.parent / "shared"))
FOLDERS = {  # task: data set and model, below SHARED
    "faces64": ("data/faces64", "checkpoints/faces64-ddpm"),
    "camvid": ("data/camvid-96x128", "checkpoints/camvid-ddpm"),
}
SHIFTS = ("rotated", "darkened", "blurred", "shrunk")


def arguments(doc: str, task: str | None = "faces64", **options: Any) -> argparse.Namespace:
    """Parses the command line of a benchmark and prepares the process.

    Args:
        doc (`str`): Docstring of the script, which becomes its help.
        task (`str`, *optional*): Default of `--task`; without it there is no such option.
        options: Default of each further option. A flag has the default `False`; a list takes any number of words.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if task:
        parser.add_argument("--task", choices=(*FOLDERS, "drawn"), default=task, help=f"Images and model ({task}).")
    for name, default in options.items():
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        if default is False:
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(default, list):
            parser.add_argument(f"--{name}", nargs="+", type=type(default[0]), default=default, help=f"({shown})")
        else:
            kind = str if default is None else type(default)
            parser.add_argument(f"--{name}", type=kind, default=default, help=f"({shown})")
    parser.add_argument("--name", help="Name of the result; that of the benchmark and task if not given.")
    args = parser.parse_args()
    keep_freed_memory()  # as every command does
    return args


class Task:
    """Labelled images and the diffusion model that goes with them; `"drawn"` needs nothing but the package."""

    def __init__(self, name: str):
        self.name = name
        if name == "drawn":
            self.model = SHIPPED_MODEL
            self.train, self.test = drawn_faces(range(20)), drawn_faces(range(8020, 8070))
            return
        self.data, self.model = (SHARED / folder for folder in FOLDERS[name])
        self.train = load_labeled_images(str(self.data), "labeled", "train")
        names = {"label_names": self.train.label_names, "num_classes": self.train.num_classes}
        self.test = load_labeled_images(str(self.data), "labeled", "test", **names)

    def pipe(self, dtype: str = "auto") -> Any:
        """The model without a head."""
        return load_pipeline(str(self.model), dtype=dtype)


def drawn_faces(numbers: Sequence[int], classes: int = len(LABEL_NAMES)) -> LabeledImages:
    """Drawn faces with masks of so many classes: their own, or squares of all classes where these are more."""
    rng, rows = np.random.default_rng(0), {"image": [], "mask": []}
    for i in numbers:
        image, mask = draw_face(i)
        if classes > len(LABEL_NAMES):
            mask = rng.integers(0, classes, (16, 16), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        rows["image"].append(PIL.Image.fromarray(image))
        rows["mask"].append(PIL.Image.fromarray(np.minimum(mask, classes - 1)))
    dataset = Dataset.from_dict(rows).cast_column("image", ImageFeature()).cast_column("mask", ImageFeature())
    return LabeledImages(dataset, label_names=[f"class {i}" for i in range(classes)])


class Shifted(LabeledImages):
    """Images rotated by 15°, darkened to 60 %, blurred, or shrunk to 75 % within their frame; masks alike."""

    def __init__(self, dataset: LabeledImages, shift: str):
        self.__dict__.update(dataset.__dict__)
        self.shift = shift

    def __getitem__(self, index: int) -> LabeledImage:
        row = super().__getitem__(index)
        image, mask = to_eight_bit(row.image), PIL.Image.fromarray(row.mask)
        if self.shift == "darkened":
            return replace(row, image=image.point(lambda x: round(0.6 * x)))
        if self.shift == "blurred":
            return replace(row, image=image.filter(PIL.ImageFilter.GaussianBlur(min(image.size) / 64)))
        moved = []
        for whole, resample, outside in ((image, 2, None), (mask, 0, self.ignore_index)):
            pixels = np.asarray(whole)
            border = [(s // 2, s // 2) for s in pixels.shape[:2]] + [(0, 0)] * (pixels.ndim - 2)
            how = {"mode": "reflect"} if outside is None else {"constant_values": outside}
            wide = PIL.Image.fromarray(np.pad(pixels, border, **how))  # reflected where the frame shows the outside
            if self.shift == "rotated":
                wide = wide.rotate(15, resample=resample)
                moved.append(wide.crop(_centred(wide.size, whole.size)))
            else:
                frame = _centred(wide.size, [x / 0.75 for x in whole.size])
                moved.append(wide.crop(frame).resize(whole.size, resample))
        return replace(row, image=moved[0], mask=np.asarray(moved[1]))


def _centred(size, inner) -> tuple[int, int, int, int]:
    (left, top), (width, height) = [(a - b) / 2 for a, b in zip(size, inner)], inner
    return round(left), round(top), round(left + width), round(top + height)


# Heads


def fit(pipe: Any, dataset: LabeledImages, **options: Any) -> Any:
    """The pipeline with a head that is fitted anew; `options` are those of `fit_segmentation_head`."""
    pipe.segmentation_head = None
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, **options)
    return pipe


def random_head(extractor: Any, num_classes: int, **options: Any) -> PixelClassifierEnsemble:
    """A head with random weights that reads an extractor."""
    head = PixelClassifierEnsemble(
        num_classes=num_classes,
        block_channels=[i.channels for i in extractor.feature_info()[: len(extractor.blocks)]],
        blocks=list(extractor.blocks),
        timesteps=list(extractor.timesteps),
        image_size=list(extractor.size),
        **options,
    )
    return head.eval()


def mean_iou(model: Any, dataset: LabeledImages) -> float:
    """Mean IoU, 0 to 1."""
    return evaluate_segmentation(model, dataset, show_progress=False)[0]["mean_iou"]


# Time and memory


def now() -> float:
    """Seconds of a clock: the processor time of this process where it computes on one thread, which other work on the
    machine disturbs least, else of the wall."""
    return time.process_time() if by_processor_time() else time.perf_counter()


def by_processor_time() -> bool:
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


class Machine:
    """A device: its clock, and the rates that it reaches, `flops` and `bytes` a second."""

    def __init__(self, device: torch.device, dtype: torch.dtype, rounds: int = 5):
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
        """Median over the rounds, after one to warm up."""
        run()
        return statistics.median(self.once(run) for _ in range(self.rounds))

    def once(self, run: Callable[[], Any]) -> float:
        self.wait()
        began = now()
        run()
        self.wait()
        return now() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, run: Callable[[], Any]) -> float:
        return count(run) / self.seconds(run)


def _operations(total: Sequence[int], a: Sequence[int], b: Sequence[int], **_: Any) -> int:
    return 2 * math.prod(a) * b[-1]


IN_PLACE = {torch.ops.aten.addmm_: _operations, torch.ops.aten.baddbmm_: _operations}  # not counted by PyTorch


def count(run: Callable[[], Any]) -> int:
    """Floating-point operations of a call, backward passes included."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        run()
    return counter.get_total_flops()


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side, by round; sides take turns, and a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            began = now()
            side()
            if number:
                seconds[name].append(now() - began)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], base: str, name: str) -> float:
    """How many times as fast a side is as another: median over the rounds, in each of which both ran."""
    return statistics.median(b / own for b, own in zip(seconds[base], seconds[name]))


def peak_gib(device: torch.device | None = None) -> float:
    """Peak of memory in GiB: of a GPU's allocator since its last reset, else of this process."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_own_process(**point: Any) -> Any:
    """What the running script's `measure(**point)` returns in a process of its own; it begins with [`own_point`]."""
    command = [sys.executable, sys.argv[0], "--point", json.dumps(point)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def own_point(measure: Callable[..., Any]) -> None:
    """Measures one point and ends, if the process was started by [`in_own_process`]."""
    if sys.argv[1:2] == ["--point"]:
        print(json.dumps(measure(**json.loads(sys.argv[2]))))
        raise SystemExit


# Results


class Result:
    """Measurements of one question on one machine by one version, and their table.

    Args:
        name (`str`): File in `benchmarks/results/`, and mark in the documentation.
        columns (mapping): Key of a row to heading and format (see `tables.py`).
        args (`argparse.Namespace`): Of the command line, which the result states.
        about (`str`): What was measured on what: a sentence under the table.
        dtype (`torch.dtype`, *optional*): Precision of the models.
        keep (`bool`, defaults to `False`): Keep what other commands, versions and machines measured too, also beside
            this process; a cell is a dict, and says at which `commit` it was measured, and on which processor.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, tuple[str, str]],
        args: argparse.Namespace,
        about: str,
        dtype: Any = None,
        keep: bool = False,
    ):
        self.path = RESULTS / f"{name}.json"
        words = [f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
        self.content: dict[str, Any] = {
            "about": about,
            "command": f"python {shlex.join(words)}",
            "seeds": getattr(args, "seeds", [0]),
            "measured": VERSION | machine() | ({"dtype": str(dtype).removeprefix("torch.")} if dtype else {}),
            "columns": {key: list(value) for key, value in columns.items()},
            "cells": {},
            "rows": [],
        }
        self.keep = keep
        if self.path.is_file():  # resume what the same command began
            old = json.loads(self.path.read_text(encoding="utf-8"))
            fixed = ("version", "commit", "processor", "threads", "torch", "dtype")
            same = all(old["measured"].get(k) == self.content["measured"].get(k) for k in fixed)
            if keep or (same and old["command"] == self.content["command"]):
                self.content["cells"] = old["cells"]

    def cell(self, key: str, compute: Callable[[], Any], again: bool = False) -> Any:
        """A measurement by its name; kept once it is made, unless it is to be made `again`."""
        cells = self.content["cells"]
        if again or key not in cells:
            found = compute()
            if self.keep:
                found["commit"] = "{commit}, {processor}".format_map(self.content["measured"])
                if self.path.is_file():
                    cells |= json.loads(self.path.read_text(encoding="utf-8"))["cells"]
            cells[key] = found
            print(f"{key}: {cells[key]}", file=sys.stderr, flush=True)
            self.save()
        return cells[key]

    def row(self, **values: Any) -> None:
        """A row of the table; a list holds a value for each seed or round."""
        self.content["rows"].append(values)
        self.save()

    def save(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        write_json(self.path, self.content)

    def show(self) -> None:
        print(f"{table(self.content)}\n\n{caption(self.content)}\n\nWritten to {self.path}.")


def version() -> dict[str, str]:
    """Version of the package, and the last commit that changed it."""
    command = ["git", "log", "-1", "--format=%h", "--", "diffuseseg_diffusers"]
    try:
        commit = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = ""
    return {"version": diffuseseg_diffusers.__version__, "commit": commit, "torch": torch.__version__}


VERSION = version()  # when the process begins: it keeps its code, whatever is committed meanwhile


def machine() -> dict[str, Any]:
    """Processor or GPU, cores, threads, and what a convolution reaches in each precision, in GFLOP/s."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    found: dict[str, Any] = {"processor": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    found["clock"] = "processor time" if by_processor_time() else "wall time"
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    rates = {str(d).removeprefix("torch."): Machine(device, d).flops for d in (torch.float32, torch.bfloat16)}
    found["gflops"] = {name: round(rate / 1e9) for name, rate in rates.items()}
    # What others run beside this process; None where the system does not say.
    found["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    return found | {"date": time.strftime("%Y-%m")}
