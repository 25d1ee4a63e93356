# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Takes the screenshots of docs/labeling.md: `diffuseseg app` on drawn faces, in a real browser.

    python benchmarks/screenshots.py --output_dir docs/labeling

Needs Playwright and Chromium, see CONTRIBUTING.md.
"""

import argparse
import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_labeling import CHROMIUM
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL, draw_face


COUNT = 24


def settle(page: Page) -> None:
    """Waits until nothing is computed any more."""
    time.sleep(0.3)
    while not page.evaluate("document.querySelector('#badge').hidden"):
        time.sleep(0.1)
    time.sleep(0.7)


def paint(page: Page, mask: np.ndarray) -> None:
    """A stroke of each class in the open picture, along the longest row of it."""
    box = page.locator("#view").bounding_box()
    scale = 0.94 * min(box["width"] / 64, box["height"] / 64)
    left, top = box["x"] + (box["width"] - 64 * scale) / 2, box["y"] + (box["height"] - 64 * scale) / 2
    for own in np.unique(mask):
        row = int((mask == own).sum(1).argmax())
        inside = np.flatnonzero(mask[row] == own)
        run = max(np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1), key=len)[:10]
        page.keyboard.press(str(own + 1))
        page.mouse.move(left + (run[0] + 0.5) * scale, top + (row + 0.5) * scale)
        page.mouse.down()
        page.mouse.move(left + (run[-1] + 0.5) * scale, top + (row + 0.5) * scale, steps=4)
        page.mouse.up()
        time.sleep(0.3)
    page.mouse.move(5, 5)
    settle(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        masks, pictures = {}, Path(folder) / "faces"
        pictures.mkdir()
        for i in range(COUNT):
            image, masks[f"{i:03}.png"] = draw_face(i)
            Image.fromarray(image).save(pictures / f"{i:03}.png")
        command = ["diffuseseg", "app", "--model", SHIPPED_MODEL, "--images", pictures, "--classes", *LABEL_NAMES]
        server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(address)
        while not page.evaluate("location.hash && document.querySelector('#progress').hidden"):
            time.sleep(0.2)
        current = "decodeURIComponent(location.hash.slice(1))"

        settle(page)
        page.screenshot(path=args.output_dir / "first.png")
        paint(page, masks[page.evaluate(current)])
        page.screenshot(path=args.output_dir / "strokes.png")
        for _ in range(3):
            page.keyboard.press("n")
            settle(page)
            paint(page, masks[page.evaluate(current)])
        page.keyboard.press("n")
        settle(page)
        page.locator("#layer-doubt").fill("70")
        page.locator("#layer-mask").fill("20")
        settle(page)
        page.screenshot(path=args.output_dir / "next.png")
        page.locator("#layer-doubt").fill("0")
        page.locator("#layer-mask").fill("60")
        page.set_viewport_size({"width": 820, "height": 1180})
        page.emulate_media(color_scheme="dark")
        settle(page)
        page.screenshot(path=args.output_dir / "tablet.png")
        browser.close()
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
