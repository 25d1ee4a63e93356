# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes the figure and the printed lines of docs/your_pictures.md: drawn cells, a surface, a field and faces.

    python benchmarks/drawn_scenes.py --work_dir out/scenes

draws five labelled pictures and others of each kind into folders, runs `diffuseseg fit` and `diffuseseg segment` on
them as the page says, and writes what came out into the page. What is fitted already is kept; `--minutes` is
`--max_minutes`.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, draw_face
from diffuseseg_diffusers.datasets.drawn_shapes import stationary_noise
from diffuseseg_diffusers.images.image_processor import default_palette, overlay


ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURE = ROOT / "docs" / "your_pictures.md", ROOT / "docs" / "your_pictures.png"
SHOWN = "cells"  # whose printed lines the page shows
PRINTED = "printed.txt"
LABELED, OTHERS = 5, 2
SIZE, CELL, GAP = 96, 144, 4  # pixels of a drawn scene, of a panel and between panels

Scene = tuple[np.ndarray, np.ndarray]  # [H,W,3] in [0, 1] and class ids [H,W]


class Canvas:
    """A picture `[S, S, 3]` and its classes `[S, S]`, on which shapes are drawn one over the other."""

    def __init__(self, rng: np.random.Generator, picture: np.ndarray):
        self.rng, self.picture = rng, picture.astype(np.float32)
        self.classes = np.zeros(picture.shape[:2], np.uint8)
        self.y, self.x = np.mgrid[:SIZE, :SIZE].astype(np.float32)

    def fill(self, inside: np.ndarray, color: np.ndarray, label: int) -> None:
        """Colours the pixels that lie inside; `inside` `[S, S]` is the distance from the edge in pixels."""
        alpha = (inside + 0.5).clip(0, 1)[..., None]
        self.picture += alpha * (color - self.picture)
        self.classes[inside > 0] = label

    def blob(self, cx: float, cy: float, radius: float, wobble: float = 0.1) -> np.ndarray:
        """Distance from the edge of a round shape with bulges."""
        dx, dy = self.x - cx, self.y - cy
        theta, edge = np.arctan2(dy, dx), np.ones_like(dx)
        for k in range(2, 5):
            edge += wobble * self.rng.normal() / (k - 1) * np.cos(k * theta + self.rng.uniform(0, 2 * np.pi))
        return radius * edge - np.hypot(dx, dy)

    def leaf(self, cx: float, cy: float, angle: float, length: float, width: float) -> np.ndarray:
        """Distance from the edge of a leaf that begins at a point."""
        along = (np.cos(angle) * (self.x - cx) + np.sin(angle) * (self.y - cy)) / length
        across = np.cos(angle) * (self.y - cy) - np.sin(angle) * (self.x - cx)
        return np.where((along > 0) & (along < 1), width * np.sin(np.pi * along.clip(0, 1)) - np.abs(across), -1.0)


def noise(rng: np.random.Generator, exponent: float, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
    return stationary_noise(rng, SIZE, exponent, stretch, angle)[..., None]


def places(rng: np.random.Generator, count: int, apart: float) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for place in rng.uniform(4, SIZE - 4, (count * 8, 2)):
        if len(found) < count and all(np.hypot(*(place - other)) > apart for other in found):
            found.append(place)
    return found


def draw_cells(rng: np.random.Generator) -> Scene:
    """Stained cells with nuclei."""
    canvas = Canvas(rng, np.array([0.93, 0.88, 0.90]) + 0.02 * noise(rng, 1.5))
    for cx, cy in places(rng, int(rng.integers(5, 9)), 22):
        radius = rng.uniform(9, 14)
        canvas.fill(canvas.blob(cx, cy, radius), np.array([0.80, 0.62, 0.78]) + 0.05 * noise(rng, 1.2), 1)
        offset = rng.uniform(-0.2, 0.2, 2) * radius
        nucleus = canvas.blob(cx + offset[0], cy + offset[1], radius * rng.uniform(0.4, 0.55), 0.15)
        canvas.fill(nucleus, np.array([0.45, 0.28, 0.60]) + 0.05 * noise(rng, 0.9), 2)
    return canvas.picture, canvas.classes


def draw_surface(rng: np.random.Generator) -> Scene:
    """Brushed metal with scratches and pits."""
    brushed = np.repeat(0.55 + 0.05 * noise(rng, 0.6, 4.0, rng.normal(0, 0.05)) + 0.04 * noise(rng, 1.8), 3, 2)
    canvas = Canvas(rng, brushed)
    for _ in range(rng.integers(1, 3)):
        (cx, cy), angle, bend = rng.uniform(20, SIZE - 20, 2), rng.uniform(0, np.pi), rng.normal(0, 0.004)
        along = np.cos(angle) * (canvas.x - cx) + np.sin(angle) * (canvas.y - cy)
        across = np.cos(angle) * (canvas.y - cy) - np.sin(angle) * (canvas.x - cx) - bend * along**2
        line = np.where(np.abs(along) < rng.uniform(18, 40), rng.uniform(1.0, 1.8) - np.abs(across), -1.0)
        canvas.fill(line, np.float32(rng.choice([0.28, 0.82])), 1)
    for cx, cy in places(rng, int(rng.integers(2, 6)), 12):
        canvas.fill(canvas.blob(cx, cy, rng.uniform(2.5, 5), 0.2), 0.25 + 0.04 * noise(rng, 1.0), 2)
    return canvas.picture, canvas.classes


def draw_field(rng: np.random.Generator) -> Scene:
    """A row of crops on soil, and weeds between."""
    soil = np.array([0.42, 0.32, 0.24]) * (1 + 0.2 * noise(rng, 0.7) + 0.1 * noise(rng, 1.8))
    canvas = Canvas(rng, soil)
    for cx, cy in places(rng, int(rng.integers(4, 8)), 18):
        for angle in rng.uniform(0, 2 * np.pi, 5):
            green = np.array([0.42, 0.55, 0.20]) * rng.uniform(0.8, 1.15)
            canvas.fill(canvas.leaf(cx, cy, angle, rng.uniform(6, 10), 1.6), green, 2)
    row = SIZE / 2 + rng.normal(0, 6)
    for cx in np.arange(rng.uniform(8, 20), SIZE, 32):
        turn = rng.uniform(0, 2 * np.pi)
        for angle in turn + np.arange(5) * 2 * np.pi / 5 + rng.normal(0, 0.15, 5):
            green = np.array([0.22, 0.50, 0.30]) * rng.uniform(0.8, 1.15) + 0.02 * noise(rng, 1.0)
            canvas.fill(canvas.leaf(cx, row, angle, rng.uniform(12, 17), rng.uniform(3.5, 5)), green, 1)
    return canvas.picture, canvas.classes


def draw_person(rng: np.random.Generator) -> Scene:
    image, classes = draw_face(int(rng.integers(1_000_000)))
    return image / 255, classes


KINDS: dict[str, tuple[Callable[[np.random.Generator], Scene], tuple[str, ...]]] = {
    "cells": (draw_cells, ("background", "cytoplasm", "nucleus")),
    "surface": (draw_surface, ("surface", "scratch", "pit")),
    "field": (draw_field, ("soil", "crop", "weed")),
    "faces": (draw_person, LABEL_NAMES),
}


def scene(kind: str, number: int) -> tuple[Image.Image, np.ndarray]:
    """Picture and mask; those from `LABELED` on are not learned from."""
    picture, classes = KINDS[kind][0](np.random.default_rng([number, *kind.encode()]))
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8)), classes


def write_scenes(kind: str, folder: Path) -> None:
    """`labelled/images`, `labelled/masks` and `pictures`, as a user has them."""
    for name in ("labelled/images", "labelled/masks", "pictures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(LABELED + OTHERS):
        picture, classes = scene(kind, number)
        if number < LABELED:
            picture.save(folder / "labelled" / "images" / f"{number:02}.png")
            Image.fromarray(classes).save(folder / "labelled" / "masks" / f"{number:02}.png")
        else:
            picture.save(folder / "pictures" / f"{number:02}.png")
    (folder / "labelled" / "id2label.json").write_text(json.dumps(dict(enumerate(KINDS[kind][1]))), encoding="utf-8")


def run(folder: Path, *words: str) -> str:
    """What a command prints, progress bars left out."""
    done = subprocess.run(
        [sys.executable, "-m", "diffuseseg_diffusers", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def row(kind: str, folder: Path) -> list[Image.Image]:
    """Of each picture that was not learned from: itself, its classes, and what was found."""
    panels = []
    for number in range(LABELED, LABELED + OTHERS):
        picture, classes = scene(kind, number)
        found = np.array(Image.open(next((folder / "out" / "masks").rglob(f"{number:02}*mask.png"))))
        palette = default_palette(len(KINDS[kind][1]))
        panels += [picture, overlay(picture, classes, palette), overlay(picture, found, palette)]
    return [panel.resize((CELL, CELL), Image.Resampling.LANCZOS) for panel in panels]


def write_figure(rows: list[list[Image.Image]]) -> str:
    step = CELL + GAP
    sheet = Image.new("RGB", (len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    for j, panels in enumerate(rows):
        for i, panel in enumerate(panels):
            sheet.paste(panel, (i * step, j * step))
    sheet.save(FIGURE, optimize=True)
    return (
        f"![Drawn pictures, each with its true classes and the mask that was found]({FIGURE.name})\n\n"
        f"*Two pictures of each of {', '.join(KINDS)} that were not learned from, with their true classes and the mask "
        f"found. All are drawn.*"
    )


def write_block(name: str, text: str) -> None:
    """Replaces what stands between `<!-- made: NAME -->` and `<!-- end -->` in the page."""
    block = f"<!-- made: {name} -->\n{text}\n<!-- end -->"
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(re.sub(rf"<!-- made: {name} -->\n.*?<!-- end -->", lambda _: block, page, flags=re.S), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True, help="Pictures, models and masks.")
    parser.add_argument("--minutes", type=float, default=2.5)
    args = parser.parse_args()
    for kind in KINDS:
        folder = args.work_dir / kind
        if not (folder / PRINTED).is_file():
            write_scenes(kind, folder)
            fit = ["fit", "--dataset_name", "labelled", "--output_dir", "out/model", "--overwrite"]
            text = run(folder, *fit, "--max_minutes", f"{args.minutes:g}")
            run(folder, "segment", "pictures", "--model", "out/model", "--output_dir", "out/masks", "--overwrite")
            (folder / PRINTED).write_text(text, encoding="utf-8")
    write_block("figure", write_figure([row(kind, args.work_dir / kind) for kind in KINDS]))
    printed = (args.work_dir / SHOWN / PRINTED).read_text(encoding="utf-8").strip()
    write_block("printed", f"Of the {LABELED} labelled pictures of {SHOWN} above:\n\n```text\n{printed}\n```")


if __name__ == "__main__":
    main()
