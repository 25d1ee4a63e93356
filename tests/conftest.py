# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Small models with random weights, drawn images, and the shared material where it is at hand."""

import copy
import importlib.metadata
import io
import itertools
import os
import subprocess
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from packaging.requirements import Requirement

from .hub_server import LocalHub


# ruff: noqa: E402
# The Hub of the tests is on this machine. The libraries read its address, and where their caches are, when they are
# imported; large files go by HTTP, because this Hub does not speak Xet.
HUB_FOLDER = tempfile.TemporaryDirectory(prefix="diffuseseg-tests-")
TOKENS = {"alice": "hf_AliceSecretToken", "bob": "hf_BobSecretToken"}
HUB = LocalHub(Path(HUB_FOLDER.name) / "hub", {token: name for name, token in TOKENS.items()}).__enter__()
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HOME=str(Path(HUB_FOLDER.name) / "home"),
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
)
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
    os.environ.pop(name, None)

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, LabeledImages, PixelClassifierEnsemble, fit_segmentation_head
from diffuseseg_diffusers.cli import main as diffuseseg
from diffuseseg_diffusers.features.pixel_unet import image_size
from diffuseseg_diffusers.heads.recipes import Recipe
from diffuseseg_diffusers.jobs import hardware


ROOT = Path(__file__).parent.parent
QUICK = Recipe(batch_size=64, learning_rate=5e-3, max_epochs=20, max_steps=60, one_cycle=True, standardize=True)
SHARED = Path(os.environ.get("DIFFUSESEG_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def hub(monkeypatch) -> LocalHub:
    """The Hub on this machine, logged in as alice."""
    HUB.failures.clear()
    HUB.requests.clear()
    monkeypatch.setenv("HF_TOKEN", TOKENS["alice"])
    return HUB


@pytest.fixture
def one_thread():
    """One thread, as the processes have that tests start: another number changes roundings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def precision_clock(monkeypatch, tmp_path_factory):
    """Sets the seconds that this CPU takes in float32 and in bfloat16 when it is timed, and forgets what was timed."""

    def set_seconds(float32: float, bfloat16: float) -> None:
        readings = itertools.accumulate(itertools.cycle([0.0, float32, 0.0, bfloat16]))
        monkeypatch.setattr(hardware, "perf_counter", lambda: next(readings))
        monkeypatch.setattr(hardware, "HF_ASSETS_CACHE", str(tmp_path_factory.mktemp("assets")))

    return set_seconds


@pytest.fixture
def fast_bfloat16(precision_clock):
    """A CPU that is timed to be twice as fast in bfloat16."""
    precision_clock(2.0, 1.0)


def clean_environment(folder: Path) -> dict[str, str]:
    """Environment variables under which Python finds diffusers, torch and what they need, and nothing else.

    To be used with `python -S`, from another folder than the project's.
    """
    wanted, seen = ["diffusers", "torch"], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on other machines
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(top)))
        requirements = [Requirement(text) for text in distribution.requires or ()]
        wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return {"PYTHONPATH": str(folder)}


def shared(path: str) -> Path:
    """A file or folder of the shared material; the test is skipped where it is absent."""
    if not (SHARED / path).exists():
        pytest.skip(f"{SHARED / path} is not there")
    return SHARED / path


def make_unet(seed: int = 0, **config) -> UNet2DModel:
    """A U-Net of three levels, six decoder blocks, with random weights."""
    defaults = dict(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16, 24),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    torch.manual_seed(seed)
    return UNet2DModel(**{**defaults, **config}).eval()


def make_pipeline(head: bool = False, **config) -> DiffuseSegPipeline:
    """A pipeline with a random U-Net; its head, if any, is fitted on drawn pictures of its size."""
    pipe = DiffuseSegPipeline(make_unet(**config), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    if head:
        key = repr(sorted(config.items()))
        if key not in _FITTED:
            size = image_size(pipe.unet)
            dataset = drawn_dataset(size=size, channels=pipe.unet.config.in_channels)
            _FITTED[key] = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=4)
        pipe.segmentation_head = copy.deepcopy(_FITTED[key])
    return pipe


_FITTED: dict[str, PixelClassifierEnsemble] = {}  # heads of `make_pipeline`, fitted once


def make_head(pipe: DiffuseSegPipeline, blocks=(1, 3, 5), seed: int = 0, **config) -> PixelClassifierEnsemble:
    """A head with random weights and statistics that fits the pipeline's U-Net."""
    channels = pipe.unet.config.block_out_channels[::-1]
    per_level = pipe.unet.config.layers_per_block + 1
    defaults = dict(
        num_classes=3,
        block_channels=[channels[b // per_level] for b in blocks],
        blocks=list(blocks),
        timesteps=[50, 150],
        num_members=4,
        image_size=list(image_size(pipe.unet)),
        in_channels=pipe.unet.config.in_channels,
    )
    torch.manual_seed(seed)
    head = PixelClassifierEnsemble(**{**defaults, **config}).eval()
    for name, tensor in head.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif "bias" in name or "running" in name:
            tensor.normal_(0, 0.3)
        else:
            tensor.normal_(0, 0.3)
    return head


def draw(size: tuple[int, int], seed: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A drawn picture, a bright disc and a dark bar on grey, with its mask: uint8 `[H, W(, 3)]` and `[H, W]`."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    mask = np.zeros(size, np.uint8)
    cy, cx = rng.uniform(0.3, 0.7, 2) * size
    mask[(y - cy) ** 2 + (x - cx) ** 2 < (min(size) / 4) ** 2] = 1
    mask[:, : max(2, int(width * rng.uniform(0.1, 0.25)))] = 2
    image = np.array([120, 220, 30])[mask] + rng.normal(0, 8, size)
    image = image.clip(0, 255).astype(np.uint8)
    return (image if channels == 1 else np.stack([image, image // 2, 255 - image], -1)), mask


def dataset_of(images: list[np.ndarray], masks: list[np.ndarray]) -> Dataset:
    rows = {"image": [Image.fromarray(x) for x in images], "mask": [Image.fromarray(x) for x in masks]}
    return Dataset.from_dict(rows, features=Features({"image": ImageFeature(), "mask": ImageFeature()}))


def drawn_dataset(count=4, size=(16, 16), seed=0, channels=1, **kwargs) -> LabeledImages:
    images, masks = zip(*[draw(size, seed + i, channels) for i in range(count)])
    return LabeledImages(dataset_of(images, masks), **{"label_names": ["sky", "disc", "bar"], **kwargs})


@dataclass
class Result:
    """What a command printed, and how it ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*command: str, expect: int = 0, fresh: bool = False, **env: str) -> Result:
    """Runs a command as a user would type it, from the project's root.

    `diffuseseg` runs in this process, because a new one spends seconds on imports; with `fresh` in a new one.
    """
    if command[0] == "diffuseseg" and not fresh:
        result = _run_here([str(word) for word in command[1:]], env)
    else:
        result = _run_anew([str(word) for word in command], env)
    assert result.returncode == expect, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def _run_here(argv: list[str], env: dict[str, str]) -> Result:
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier command
    stdout, stderr, threads, folder = io.StringIO(), io.StringIO(), torch.get_num_threads(), os.getcwd()
    with mock.patch.dict(os.environ, env), redirect_stdout(stdout), redirect_stderr(stderr):
        os.chdir(ROOT)
        torch.set_num_threads(int(env.get("OMP_NUM_THREADS", threads)))
        try:
            diffuseseg(argv)
        except SystemExit as end:
            status = end.code
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            os.chdir(folder)
            torch.set_num_threads(threads)
            AcceleratorState._reset_state(reset_partial_state=True)
    return Result(status or 0, stdout.getvalue(), stderr.getvalue())


def _run_anew(command: list[str], env: dict[str, str]) -> Result:
    found = Path(sys.executable).parent / command[0]
    result = subprocess.run(
        [str(found) if found.exists() else command[0], *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **env},
    )
    return Result(result.returncode, result.stdout, result.stderr)
