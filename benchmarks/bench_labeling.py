# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How long does it take from the end of a stroke to the new mask on the screen of `diffuseseg app`, in a real browser?

    python benchmarks/bench_labeling.py --sizes 64x64 96x128 256x256

Drawn faces of each size are labelled with true strokes by the mouse, five in a picture, then the next. The page itself
measures (`performance.measure`). The U-Nets have random weights: what happens after a stroke does not depend on them.
Memory is the server's, resident. Needs Playwright and Chromium, see CONTRIBUTING.md.
"""

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from harness import Result, arguments
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, draw_face


CHROMIUM = os.environ.get("DIFFUSESEG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
EACH = 5  # strokes in a picture


def save_model(folder: Path, size: tuple[int, int]) -> None:
    """A U-Net of four levels, twelve decoder blocks."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=size,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        norm_num_groups=8,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)


@contextmanager
def labeling_page(model: str | Path, pictures: Path) -> Iterator[tuple[Page, int, float]]:
    """The page of `diffuseseg app` with all features, the server's process id, and the seconds they took."""
    command = ["diffuseseg", "app", "--model", model, "--images", pictures, "--classes", *LABEL_NAMES]
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        began = time.perf_counter()
        with sync_playwright() as p:
            browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(address)
            page.wait_for_selector("#classes .pick")
            while not page.evaluate("location.hash && document.querySelector('#progress').hidden"):
                time.sleep(0.2)
            yield page, server.pid, time.perf_counter() - began
            browser.close()
    finally:
        server.kill()
        server.wait()


def stroke(page: Page, shape: tuple[int, int], own: int, y: int, first: int, last: int) -> None:
    """Draws a stroke of a class with the mouse, along a row of the open picture, whose height and width are given."""
    box = page.locator("#view").bounding_box()
    scale = 0.94 * min(box["width"] / shape[1], box["height"] / shape[0])
    left = box["x"] + (box["width"] - scale * shape[1]) / 2
    top = box["y"] + (box["height"] - scale * shape[0]) / 2
    page.keyboard.press(str(own + 1))
    page.mouse.move(left + (first + 0.5) * scale, top + (y + 0.5) * scale)
    page.mouse.down()
    page.mouse.move(left + (last + 0.5) * scale, top + (y + 0.5) * scale, steps=4)
    page.mouse.up()


def measure(size: tuple[int, int], count: int, strokes: int, folder: Path) -> dict:
    """Labels in the browser; returns what was measured."""
    save_model(folder / "model", size)
    (folder / "pictures").mkdir()
    masks = {}
    for i in range(count):
        image, mask = (Image.fromarray(a) for a in draw_face(i))
        image.resize(size[::-1]).save(folder / "pictures" / f"{i:03}.png")
        masks[f"{i:03}.png"] = np.asarray(mask.resize(size[::-1], Image.Resampling.NEAREST))
    with labeling_page(folder / "model", folder / "pictures") as (page, server, extracted):
        label(page, masks, strokes)
        measured = page.evaluate("performance.getEntriesByName('stroke-to-mask').map((entry) => entry.duration)")
        memory = psutil.Process(server).memory_info().rss / 2**30
    return {"strokes": [ms / 1000 for ms in measured], "extracted": extracted, "memory": memory}


def label(page: Page, masks: dict[str, np.ndarray], strokes: int) -> None:
    """True strokes with the mouse: each class in turn, and the next picture after five."""
    random = np.random.default_rng(0)
    for number in range(strokes):
        if number and number % EACH == 0:
            before = page.evaluate("location.hash")
            page.keyboard.press("n")
            while page.evaluate("location.hash") == before or not page.evaluate(
                "document.querySelector('#badge').hidden"
            ):
                time.sleep(0.05)
        mask = masks[page.evaluate("decodeURIComponent(location.hash.slice(1))")]
        own = random.choice(np.unique(mask)) if number > 1 else number
        y, x = random.choice(np.argwhere(mask == own))
        run = x + np.arange(max(2, mask.shape[1] // 10))
        run = run[run < mask.shape[1]]
        stop = run[np.cumprod(mask[y, run] == own).astype(bool)][-1]
        done = page.evaluate("performance.getEntriesByName('stroke-to-mask').length")
        stroke(page, mask.shape, own, y, x, stop)
        while number > 1 and page.evaluate("performance.getEntriesByName('stroke-to-mask').length") == done:
            time.sleep(0.02)
        time.sleep(0.3)  # as fast as a hand


def main() -> None:
    args = arguments(__doc__, None, sizes=["64x64", "96x128", "256x256"], pictures=50, strokes=60)
    columns = {
        "size": ("size", "text"),
        "median": ("median, s", "2"),
        "most": ("95th percentile, s", "2"),
        "extracted": ("features of all pictures, s", "0"),
        "memory": ("memory of the server, GiB", "2"),
    }
    about = f"{args.strokes} strokes by the mouse on {args.pictures} drawn faces, {len(LABEL_NAMES)} classes."
    result = Result(args.name or "labeling", columns, args, about)
    for size in args.sizes:
        height, width = map(int, size.split("x"))

        def run(size=(height, width)) -> dict:
            with tempfile.TemporaryDirectory() as folder:
                return measure(size, args.pictures, args.strokes, Path(folder))

        found = result.cell(size, run)
        times = {"median": np.median(found["strokes"]), "most": np.percentile(found["strokes"], 95)}
        times = {key: float(value) for key, value in times.items()} | {k: found[k] for k in ("extracted", "memory")}
        result.row(size=f"{height} × {width}", **times)
    result.show()


if __name__ == "__main__":
    main()
