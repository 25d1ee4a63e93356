# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The labelling page in a real browser: the server is the command, in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from diffuseseg_diffusers.datasets.drawn_faces import draw_face


class Server:
    """`diffuseseg app` as a user would type it."""

    def __init__(self, *arguments: str):
        command = [str(Path(sys.executable).parent / "diffuseseg"), "app", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = None
        for line in self.process.stdout:
            if found := re.search(r"http://\S+", line):
                self.address = found[0]
                break
        assert self.address, self.process.stderr.read()

    def kill(self) -> None:
        if self.process.poll() is not None:
            return
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()


class Page:
    """A page, with all its errors."""

    def __init__(self, browser, address: str, context=None, classes: bool = True):
        opened = context or browser.new_context(viewport={"width": 1280, "height": 800})
        self.page, self.errors = opened.new_page(), []
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.goto(address)
        if classes:
            self.page.wait_for_selector("#classes .pick")
        self.until("document.querySelector('#status').textContent.includes('stroke')")

    def until(self, condition: str, seconds: float = 60) -> None:
        """Waits; not with `wait_for_function`, whose `eval` the page forbids."""
        end = time.monotonic() + seconds
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, (condition, self.page.inner_text("body"), self.errors)
            self.page.wait_for_timeout(50)

    @property
    def picture(self) -> str:
        return self.page.evaluate("decodeURIComponent(location.hash.slice(1))")

    def ready(self) -> None:
        """Waits until all features are there."""
        self.until("document.querySelector('#progress').hidden")

    def wait_for(self, strokes: int) -> None:
        """Waits until so many strokes are in the mask, or counted."""
        self.until(
            f"/\\b{strokes} strokes?\\b/.test(document.querySelector('#status').textContent) "
            "&& document.querySelector('#badge').hidden"
        )

    def at(self, x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
        """The middle of a pixel of the picture, in the window."""
        box = self.page.locator("#view").bounding_box()
        scale = 0.94 * min(box["width"] / size[1], box["height"] / size[0])
        left, top = box["x"] + (box["width"] - scale * size[1]) / 2, box["y"] + (box["height"] - scale * size[0]) / 2
        return left + (x + 0.5) * scale, top + (y + 0.5) * scale

    def paint(self, mask: np.ndarray, label: int) -> None:
        """A stroke of the class along a row of it, with the mouse."""
        ys, xs = np.nonzero(mask == label)
        row = int(np.median(ys))
        row = row if (ys == row).any() else int(ys[0])
        inside = xs[ys == row]
        run = np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1)[0]
        self.page.keyboard.press(str(label + 1))
        self.page.mouse.move(*self.at(int(run[0]), row, mask.shape))
        self.page.mouse.down()
        self.page.mouse.move(*self.at(int(run[min(len(run) - 1, 6)]), row, mask.shape), steps=4)
        self.page.mouse.up()


def write_faces(folder: Path) -> dict[str, np.ndarray]:
    """Six drawn faces; their true masks by name."""
    folder.mkdir()
    masks = {}
    for i in range(6):
        image, masks[f"{i}.png"] = draw_face(i)
        Image.fromarray(image).save(folder / f"{i}.png")
    return masks
