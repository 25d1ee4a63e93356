# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Takes the screenshots of docs/labeling.md: `diffuseseg app` on drawn faces, in a real browser.

    python benchmarks/screenshots.py --output_dir docs/labeling

Needs Playwright and Chromium, see CONTRIBUTING.md.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_labeling import labeling_page, stroke
from PIL import Image
from playwright.sync_api import Page

from diffuseseg_diffusers.datasets.drawn_faces import SHIPPED_MODEL, draw_face


COUNT = 24


def settle(page: Page) -> None:
    """Waits until nothing is computed any more."""
    time.sleep(0.3)
    while not page.evaluate("document.querySelector('#badge').hidden"):
        time.sleep(0.1)
    time.sleep(0.7)


def paint(page: Page, mask: np.ndarray) -> None:
    """A stroke of each class in the open picture, along the longest row of it."""
    for own in np.unique(mask):
        row = int((mask == own).sum(1).argmax())
        inside = np.flatnonzero(mask[row] == own)
        run = max(np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1), key=len)[:10]
        stroke(page, mask.shape, own, row, run[0], run[-1])
        time.sleep(0.3)
    page.mouse.move(5, 5)
    settle(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        masks, pictures = {}, Path(folder) / "faces"
        pictures.mkdir()
        for i in range(COUNT):
            image, masks[f"{i:03}.png"] = draw_face(i)
            Image.fromarray(image).save(pictures / f"{i:03}.png")
        with labeling_page(SHIPPED_MODEL, pictures) as (page, *_):
            take(page, masks, args.output_dir)


def take(page: Page, masks: dict[str, np.ndarray], folder: Path) -> None:
    """The screenshots, while faces are labelled."""
    current = "decodeURIComponent(location.hash.slice(1))"

    settle(page)
    page.screenshot(path=folder / "first.png")
    paint(page, masks[page.evaluate(current)])
    page.screenshot(path=folder / "strokes.png")
    for _ in range(3):
        page.keyboard.press("n")
        settle(page)
        paint(page, masks[page.evaluate(current)])
    page.keyboard.press("n")
    settle(page)
    page.locator("#layer-doubt").fill("70")
    page.locator("#layer-mask").fill("20")
    settle(page)
    page.screenshot(path=folder / "next.png")
    page.locator("#layer-doubt").fill("0")
    page.locator("#layer-mask").fill("60")
    page.set_viewport_size({"width": 820, "height": 1180})
    page.emulate_media(color_scheme="dark")
    settle(page)
    page.screenshot(path=folder / "tablet.png")


if __name__ == "__main__":
    main()
