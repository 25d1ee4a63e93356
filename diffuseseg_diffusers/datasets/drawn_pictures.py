# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Drawn pictures of no particular subject, to train a general denoiser on; nobody's photographs, no download.

Dead leaves, that is overlapping shapes of power-law sizes, cells with membranes, particles with parts, layered regions,
networks of filaments and composed objects, each with stationary textures, shading, blur and noise. That such pictures
teach features of real ones is known of dead leaves and noise (Baradad et al., "Learning to See by Looking at Noise",
NeurIPS 2021) and of fractals (Kataoka et al., "Pre-training without Natural Images", ACCV 2020).

Each picture is a function of a seed, its number and its size.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image

from .drawn_shapes import Palette, make_kind, paint, scatter, stationary_noise, textured_surface


def draw_picture(number: int, seed: int = 0, size: int = 64) -> np.ndarray:
    """Draws one picture.

    Args:
        number (`int`): Which one.
        seed (`int`, defaults to 0): Of the dataset.
        size (`int`, defaults to 64): Height and width in pixels; another size is another picture.

    Returns:
        `np.ndarray` `[size, size, 3]` uint8; about two of five are grey.
    """
    rng = np.random.default_rng([seed, number, size])
    # Scenes are drawn for 64 pixels, then magnified or reduced: objects of a kind come at many scales.
    unit = math.exp(rng.uniform(math.log(0.6), math.log(1.8))) * (size / 64) ** 0.5
    scene = _SCENES[rng.choice(len(_SCENES), p=_SHARES)]
    canvas = scene(rng, size, unit)  # [3,S,S]
    return (_photograph(canvas, rng) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def drawn_pictures(count: int, seed: int = 0, size: int = 64, start: int = 0) -> Dataset:
    """Pictures `start` to `start + count - 1` as a dataset with the column `image`."""

    def rows() -> Iterator[dict]:
        for number in range(start, start + count):
            yield {"image": draw_picture(number, seed, size)}

    return Dataset.from_generator(rows, features=Features({"image": Image()}))


def write_drawn_pictures(folder: Path, count: int, seed: int = 0, size: int = 64) -> None:
    """Writes pictures 0 to `count - 1` as a folder that `load_dataset` and `train-ddpm` read; see [`draw_picture`]."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn_pictures(count, seed, size).to_parquet(folder / "train-00000-of-00001.parquet")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


_CARD = """---
license: apache-2.0
---
Pictures of no particular subject, drawn by `diffuseseg_diffusers.datasets.drawn_pictures`; no photographs.
"""


# Scenes: `(rng, size, unit)` to `[3, S, S]`.


def _leaves(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """Dead leaves: shapes of power-law sizes that cover each other."""
    palette = Palette(rng)
    canvas = textured_surface(rng, size, unit, palette)
    for _ in range(rng.integers(2, 5)):
        radius = min(0.5 * size, 3.0 * unit * (1 - rng.random()) ** (-1 / 1.5))
        kind = make_kind(rng, size, unit, palette, radius)
        scatter(rng, canvas, kind, int(min(40, 1 + 0.6 * (size / max(radius, 1)) ** 2 / 4)))
    return canvas


def _particles(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """Things of one to three kinds on a ground: nuclei, blood cells, seeds, defects, plants."""
    palette = Palette(rng)
    canvas = textured_surface(rng, size, unit, palette)
    if rng.random() < 0.5:  # an even ground
        canvas = 0.15 * canvas + 0.85 * palette.color()
    for _ in range(rng.integers(1, 4)):
        radius = math.exp(rng.uniform(math.log(1.2), math.log(20))) * unit
        kind = make_kind(rng, size, unit, palette, min(radius, size / 2))
        most = max(1.0, 0.5 * (size / (2 * radius)) ** 2)
        scatter(rng, canvas, kind, int(min(40, rng.uniform(1, most + 1))))
    return canvas


def _cells(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """Voronoi cells with membranes, each with its own shade, and what lies in them."""
    palette = Palette(rng)
    period = rng.uniform(7, 30) * unit
    count = int(np.clip((size / period) ** 2, 2, 60))
    seeds = rng.uniform(-0.1 * size, 1.1 * size, (count, 2)).astype(np.float32)
    warp = np.stack([stationary_noise(rng, size, 1.8) for _ in range(2)]) * rng.uniform(0, 0.12) * period
    y, x = np.mgrid[:size, :size].astype(np.float32)
    stretch = math.exp(rng.normal(0, 0.3))
    dx, dy = (x + warp[0])[None] - seeds[:, :1, None], (y + warp[1])[None] - seeds[:, 1:, None]
    away = np.sqrt((dx * stretch) ** 2 + (dy / stretch) ** 2)  # [cells,S,S]
    nearest = np.argpartition(away, 1, axis=0)[:2]
    first, second = np.take_along_axis(away, nearest, 0)
    swap = first > second
    owner = np.where(swap, nearest[1], nearest[0])
    gap = np.abs(second - first)  # zero on the border
    spread = rng.choice([0.02, 0.1, 0.25])
    shades = palette.color() + rng.normal(0, spread, (3, count, 1)).astype(np.float32) * rng.choice(
        [0.3, 1.0], (3, 1, 1)
    )
    canvas = shades[:, owner, 0] + (textured_surface(rng, size, unit, palette) - 0.5) * rng.uniform(0, 0.4)
    for _ in range(rng.integers(0, 3)):
        kind = make_kind(rng, size, unit, palette, rng.uniform(0.08, 0.3) * period)
        scatter(rng, canvas, kind, int(rng.integers(1, count * 2 + 2)))
    if rng.random() < 0.85:
        width = rng.uniform(0.8, 3.0) * max(0.7, unit)
        membrane = (1.5 - gap / width).clip(0, 1) * rng.uniform(0.5, 1.0)
        canvas += membrane * (palette.color() - canvas)
    return canvas


def _regions(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """A few regions, each with its texture, divided by level lines or in layers, and things in front."""
    palette = Palette(rng)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    if rng.random() < 0.5:
        height = stationary_noise(rng, size, rng.uniform(1.6, 3.0))
    else:
        angle = rng.choice([math.pi / 2, rng.uniform(0, math.pi)])
        height = (math.cos(angle) * x + math.sin(angle) * y) * 4 + stationary_noise(rng, size, 2.0) * rng.uniform(
            0, 0.4
        )
    levels = np.sort(rng.uniform(height.min(), height.max(), rng.integers(1, 5)))
    canvas = textured_surface(rng, size, unit, palette)
    slope = np.hypot(*np.gradient(height)) + 1e-3
    for level in levels:
        alpha = ((height - level) / slope + 0.5).clip(0, 1)
        canvas = canvas + alpha * (textured_surface(rng, size, unit, palette) - canvas)
    if rng.random() < 0.3:
        line = (1.5 - np.abs(height - levels[0]) / slope / rng.uniform(0.7, 2.0)).clip(0, 1)
        canvas = canvas + line * (palette.color() - canvas)
    for _ in range(rng.integers(0, 3)):
        radius = math.exp(rng.uniform(math.log(2), math.log(14))) * unit
        scatter(rng, canvas, make_kind(rng, size, unit, palette, radius), int(rng.integers(1, 10)))
    return canvas


def _network(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """Filaments on a ground: vessels, cracks, roots, fibres; level lines of noise, strokes or a lattice."""
    canvas = _particles(rng, size, unit) if rng.random() < 0.4 else textured_surface(rng, size, unit, Palette(rng))
    palette = Palette(rng)
    for _ in range(rng.integers(1, 3)):
        width = rng.uniform(0.6, 2.5) * max(0.7, unit)
        color, opacity = palette.color(), rng.uniform(0.4, 1.0)
        if rng.random() < 0.5:
            height = stationary_noise(
                rng, size, rng.uniform(1.3, 2.2), math.exp(rng.normal(0, 0.5)), rng.uniform(0, math.pi)
            )
            slope = np.hypot(*np.gradient(height)) + 1e-2
            level = rng.normal(0, 0.5)
            alpha = (1.2 - np.abs(height - level) / slope / width).clip(0, 1)
            if rng.random() < 0.5:  # broken into pieces
                alpha = alpha * (stationary_noise(rng, size, 1.5) * 2 + 1).clip(0, 1)
            canvas = canvas + alpha * opacity * (color - canvas)
        else:
            kind = make_kind(rng, size, unit, palette, rng.uniform(0.1, 0.6) * size)
            kind.outline, kind.wobble, kind.parts, kind.aspect = "stroke", width / kind.radius, [], 1.0
            kind.softness, kind.rim = 0.8, None
            scatter(rng, canvas, kind, int(rng.integers(1, 14)))
    return canvas


def _things(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """One or two large things with parts, in front of layers: the make of cars, faces, machines."""
    palette = Palette(rng)
    canvas = _regions(rng, size, unit)
    for _ in range(rng.integers(1, 3)):
        kind = make_kind(rng, size, unit, palette, rng.uniform(0.2, 0.42) * size, depth=0)
        if kind.outline == "stroke":
            kind.outline = "box"
        kind.opacity, kind.softness, kind.central = 1.0, 0.7, False
        while len(kind.parts) < 3:
            part = make_kind(rng, size, unit, palette, kind.radius * rng.uniform(0.1, 0.45), depth=1)
            part.opacity, part.softness = 1.0, 0.7
            kind.parts.append(part)
        kind.count = int(rng.integers(1, 4))
        at = rng.uniform(0.3, 0.7, 2) * size
        paint(rng, canvas, kind, float(at[0]), float(at[1]), kind.radius, rng.normal(0, 0.3))
    return canvas


_SCENES = (_leaves, _particles, _cells, _regions, _network, _things)
_SHARES = (0.2, 0.24, 0.16, 0.14, 0.13, 0.13)


def _blur(canvas: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of `[3, S, S]`, periodic."""
    size = canvas.shape[1]
    f2 = np.fft.fftfreq(size)[:, None] ** 2 + np.fft.rfftfreq(size)[None] ** 2
    return np.fft.irfft2(np.fft.rfft2(canvas) * np.exp(-2 * (math.pi * sigma) ** 2 * f2), s=canvas.shape[1:])


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, blur, noise and contrast, as of cameras and microscopes; `[3, S, S]` in [0, 1]."""
    size = canvas.shape[1]
    canvas = canvas.clip(-0.1, 1.1).astype(np.float32)
    if rng.random() < 0.4:
        y, x = np.mgrid[:size, :size].astype(np.float32) / size - 0.5
        canvas = canvas * (1 + rng.normal(0, 0.4) * x + rng.normal(0, 0.4) * y)
    if rng.random() < 0.4:
        canvas = canvas.mean(0, keepdims=True).repeat(3, 0)
        gray = True
    else:
        gray = False
    if rng.random() < 0.6:
        canvas = _blur(canvas, math.exp(rng.uniform(math.log(0.35), math.log(1.6))))
    if rng.random() < 0.5:
        shape = (1 if gray else 3, size, size)
        noise = rng.standard_normal(shape, np.float32)
        if rng.random() < 0.4:
            noise = _blur(np.broadcast_to(noise, canvas.shape), rng.uniform(0.3, 0.9)) * 2
        canvas = canvas + noise * rng.choice([0.02, 0.05, 0.12]) * rng.uniform(0.3, 1)
    if rng.random() < 0.5:  # the whole range, as pictures are stored
        low, high = np.percentile(canvas, (rng.uniform(0, 3), rng.uniform(97, 100)))
        canvas = (canvas - low) / max(high - low, 0.05)
    canvas = canvas.clip(0, 1)
    if rng.random() < 0.5:
        canvas = canvas ** math.exp(rng.normal(0, 0.4))
    if rng.random() < 0.1:
        canvas = 1 - canvas
    return canvas
