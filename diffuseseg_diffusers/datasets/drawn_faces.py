# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Drawn 64 × 64 RGB faces with exact masks of eight classes; needs no download.

Each face is a function of a seed and its number: pose, skin, hair, beard, glasses, clothes, background, light, texture
and noise vary. Shapes are drawn on a grid three times as fine; a pixel's colour is the mean and its class the most
frequent of its nine points.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image

from ..jobs.errors import UserError


SIZE = 64
FINE = 3
# The small diffusion model of drawn faces that comes with the package, a folder for `from_pretrained`.
SHIPPED_MODEL = str(Path(__file__).parent / "drawn_faces_ddpm")

LABEL_NAMES = ("background", "skin", "hair", "eyes", "nose", "mouth", "glasses", "clothes")
BACKGROUND, SKIN, HAIR, EYES, NOSE, MOUTH, GLASSES, CLOTHES = range(len(LABEL_NAMES))
# Numbers of the faces in each part; no face is in two.
SPLITS = {"unlabeled": 8_000, "train": 20, "test": 100}
_SKINS = np.array([[255, 224, 196], [241, 194, 150], [224, 172, 125], [178, 120, 78], [126, 80, 50], [84, 52, 34]])
_HAIRS = np.array([[28, 22, 20], [66, 40, 24], [122, 74, 38], [196, 154, 84], [160, 60, 28], [150, 150, 150]])
_grid = (np.arange(SIZE * FINE, dtype=np.float32) + 0.5) / (SIZE * FINE) * 2 - 1  # the image spans -1 to 1
_X, _Y = np.meshgrid(_grid, _grid)


def draw_face(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws one face.

    Args:
        number (`int`): Which one.
        seed (`int`, defaults to 0): Of the dataset.

    Returns:
        `np.ndarray` `[64, 64, 3]` uint8, the image, and `[64, 64]` uint8, its classes (see `LABEL_NAMES`).
    """
    rng = np.random.default_rng([seed, number])
    face = _Face(rng)
    # What is drawn later lies in front; every part draws its random numbers in this order.
    for draw in (_draw_behind, _draw_skin, _draw_features, _draw_in_front):
        draw(face, rng, rng.uniform)
    return _photograph(face.canvas, rng, rng.uniform)


class _Face:
    """Pose and colours of a face: coordinates of the fine grid in the frames of the head and of its features."""

    def __init__(self, rng: np.random.Generator):
        uniform = rng.uniform
        self.canvas = _Canvas(_background(rng))
        # Pose: where the head is, how large and how tilted; turning moves the features within the outline.
        cx, cy, scale = uniform(-0.12, 0.12), uniform(-0.1, 0.12), uniform(1.05, 1.4)
        roll, turn, nod = rng.normal(0, 0.13), uniform(-0.13, 0.13), uniform(-0.05, 0.06)
        cos, sin = np.cos(roll), np.sin(roll)
        x, y = (_X - cx) / scale, (_Y - cy) / scale
        u, v = cos * x + sin * y, cos * y - sin * x  # in the frame of the head
        width, height = uniform(0.40, 0.48), uniform(0.52, 0.60)
        f, w = u - turn, v - nod  # in the frame of the features

        skin = _blend(_SKINS / 255, rng) * uniform(0.92, 1.05)
        hair = (_blend(_HAIRS / 255, rng) * uniform(0.8, 1.15)).clip(0, 1)
        strands = 1 + 0.22 * np.sin(u * uniform(25, 60) + 3 * np.sin(v * uniform(3, 9)) + uniform(0, 6))
        style = rng.choice(["short", "medium", "long", "bald"], p=[0.4, 0.25, 0.25, 0.1])
        self.x, self.y, self.u, self.v, self.f, self.w, self.turn = x, y, u, v, f, w, turn
        self.width, self.height, self.skin, self.hair = width, height, skin, hair
        self.strands, self.style = strands, style
        self.gap = self.eye_y = self.open_eye = 0.0  # of the eyes, which are placed with the brows


def _draw_behind(face: _Face, rng: np.random.Generator, uniform: Callable) -> None:
    """Long hair, neck, clothes, ears."""
    canvas, x, y, u, v = face.canvas, face.x, face.y, face.u, face.v
    width, height = face.width, face.height
    skin, hair, strands, style = face.skin, face.hair, face.strands, face.style
    if style in ("medium", "long"):
        drop = uniform(0.35, 0.55) if style == "medium" else uniform(0.7, 1.1)
        behind = _ellipse(u, v + 0.08, width + uniform(0.1, 0.2), height + 0.1)
        behind |= (np.abs(u) < width + uniform(0.06, 0.18)) & (v > -0.08) & (v < drop)
        canvas.fill(behind, hair * 0.85, HAIR, strands)
    canvas.fill((np.abs(u) < 0.22) & (v > 0.25) & (v < 1.0), skin * 0.82, SKIN)
    shirt = uniform(0.1, 0.95, 3)
    pattern = 1 + uniform(0, 0.25) * np.sign(np.sin(uniform(8, 30) * (x if rng.random() < 0.5 else y)))
    neckline = 0.72 + uniform(0.0, 0.5) * np.abs(u) ** 1.5 - 0.35 * np.exp(-((np.abs(u) - 0.25) ** 2) / 0.01)
    canvas.fill((v > np.maximum(neckline, 0.62)) & (np.abs(u) < 0.62 + 0.6 * (v - 0.6)), shirt, CLOTHES, pattern)
    if style != "long":
        for side in (-1, 1):
            canvas.fill(_ellipse(u - side * width, v - 0.02, 0.07, 0.13), skin * 0.9, SKIN)


def _draw_skin(face: _Face, rng: np.random.Generator, uniform: Callable) -> None:
    """The face itself, with blush, beard and brows."""
    canvas, u, v, f, w = face.canvas, face.u, face.v, face.f, face.w
    width, height, skin, hair, strands = face.width, face.height, face.skin, face.hair, face.strands
    outline = _ellipse(u, v, width * (1 - 0.18 * v.clip(0, 1)), height)
    rounding = 1.06 - 0.32 * (u / width) ** 2 - 0.08 * v
    canvas.fill(outline, skin, SKIN, rounding)
    for side in (-1, 1):
        blush = np.exp(-((f - side * 0.22) ** 2 + (w - 0.12) ** 2) / 0.012) * uniform(0, 0.12)
        canvas.tint(outline, blush, np.array([0.9, 0.3, 0.3]))
    if rng.random() < 0.18:
        beard = outline & (w > 0.16 + 0.25 * np.exp(-(f**2) / 0.02) * (w < 0.42)) & (w < 0.75)
        canvas.fill(beard & ~_ellipse(f, w - 0.3, 0.16, 0.06), hair, HAIR, strands)
    gap = uniform(0.17, 0.21)
    eye_y, open_eye = uniform(-0.10, -0.04), uniform(0.035, 0.062)
    for side in (-1, 1):
        arch = eye_y - uniform(0.10, 0.13) + 0.8 * (f - side * gap) ** 2
        brow = (np.abs(f - side * gap) < 0.10) & (np.abs(w - arch) < uniform(0.016, 0.03))
        canvas.fill(brow, hair * 0.8, HAIR)
    face.gap, face.eye_y, face.open_eye = gap, eye_y, open_eye


def _draw_features(face: _Face, rng: np.random.Generator, uniform: Callable) -> None:
    """Eyes, nose and mouth."""
    canvas, f, w, turn = face.canvas, face.f, face.w, face.turn
    skin, gap, eye_y, open_eye = face.skin, face.gap, face.eye_y, face.open_eye
    iris = np.array([[0.25, 0.16, 0.1], [0.25, 0.4, 0.6], [0.3, 0.45, 0.25]])[rng.integers(3)]
    gaze = uniform(-0.025, 0.025)
    for side in (-1, 1):
        eye = _ellipse(f - side * gap, w - eye_y, 0.085, open_eye)
        canvas.fill(eye, np.array([0.95, 0.95, 0.93]), EYES)
        canvas.fill(eye & _ellipse(f - side * gap - gaze, w - eye_y, 0.045, 0.045), iris, EYES)
        canvas.fill(eye & _ellipse(f - side * gap - gaze, w - eye_y, 0.02, 0.02), iris * 0.1, EYES)
    tip, wide = uniform(0.12, 0.17), uniform(0.055, 0.085)
    slope = 0.02 + wide * (w - eye_y).clip(0) / (tip - eye_y)
    bridge = (w > eye_y + 0.03) & (w < tip) & (np.abs(f - 0.3 * turn) < slope)
    nose = bridge | _ellipse(f - 0.3 * turn, w - tip, wide + 0.02, 0.042)
    canvas.fill(nose, skin * 0.93, NOSE, 1.05 + 2.2 * (f - 0.3 * turn) * np.sign(turn + 1e-9))
    for side in (-1, 1):
        canvas.fill(nose & _ellipse(f - 0.3 * turn - side * 0.6 * wide, w - tip - 0.02, 0.018, 0.014), skin * 0.4, NOSE)
    smile, lips, mouth_y = uniform(-0.5, 1.2), uniform(0.028, 0.05), uniform(0.28, 0.33)
    bent = w - mouth_y + smile * f**2
    mouth = _ellipse(f, bent, uniform(0.11, 0.17), lips)
    red = 0.6 * skin + 0.4 * np.array([0.75, 0.15, 0.2]) * uniform(0.7, 1.1)
    canvas.fill(mouth, red, MOUTH, 1 - 3 * bent)
    if rng.random() < 0.4:
        inside = np.array([0.95, 0.94, 0.9]) if rng.random() < 0.6 else np.array([0.25, 0.06, 0.06])
        canvas.fill(mouth & _ellipse(f, bent, 0.09, 0.5 * lips), inside, MOUTH)


def _draw_in_front(face: _Face, rng: np.random.Generator, uniform: Callable) -> None:
    """Hair and glasses."""
    canvas, u, v, f, w = face.canvas, face.u, face.v, face.f, face.w
    width, height, gap, eye_y = face.width, face.height, face.gap, face.eye_y
    hair, strands, style = face.hair, face.strands, face.style
    if style != "bald":
        parting, fringe = uniform(-0.3, 0.3), uniform(0.30, 0.44)
        hairline = -fringe + uniform(0.2, 0.9) * (u - parting) ** 2 + 0.02 * np.sin(u * uniform(8, 20) + uniform(0, 6))
        cap = _ellipse(u, v + 0.05, width + uniform(0.03, 0.1), height + uniform(0.03, 0.1)) & (v < hairline)
        canvas.fill(cap, hair, HAIR, strands)
        sideburn = _ellipse(u, v, width + 0.05, height + 0.05) & (np.abs(u) > 0.88 * width) & (v < uniform(-0.1, 0.12))
        canvas.fill(sideburn, hair * 0.92, HAIR, strands)
    if rng.random() < 0.35:
        frame = np.array([0.08, 0.08, 0.1]) if rng.random() < 0.6 else uniform(0.1, 0.7, 3)
        rx, ry, thick = uniform(0.11, 0.14), uniform(0.085, 0.12), uniform(0.018, 0.03)
        sunglasses = rng.random() < 0.3
        arms = (np.abs(w - eye_y + 0.02) < thick / 2) & (np.abs(f) > gap) & (np.abs(u) < width)
        ring = arms | ((np.abs(f) < gap) & (np.abs(w - eye_y + 0.02) < thick / 2))
        power = rng.choice([2, 4])  # round or square
        for side in (-1, 1):
            a, b = np.abs(f - side * gap), np.abs(w - eye_y)
            lens = (a / (rx - thick)) ** power + (b / (ry - thick)) ** power < 1
            if sunglasses:
                canvas.fill(lens, frame * 0.7, GLASSES, 1.2 - 2 * b)
            ring = (ring & ~lens) | (((a / rx) ** power + (b / ry) ** power < 1) & ~lens)
        canvas.fill(ring, frame, GLASSES)


def _photograph(canvas: "_Canvas", rng: np.random.Generator, uniform: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Light from one side, its colour, and the camera: image and classes at full size."""
    angle, strength = uniform(0, 2 * np.pi), uniform(0, 0.3)
    light = 1 + strength * (np.cos(angle) * _X + np.sin(angle) * _Y)
    color = canvas.color * light[..., None] * uniform(0.85, 1.12) * uniform(0.95, 1.05, 3)
    image = color.reshape(SIZE, FINE, SIZE, FINE, 3).mean((1, 3))
    image += rng.normal(0, uniform(0.005, 0.03), image.shape)
    classes = canvas.classes.reshape(SIZE, FINE, SIZE, FINE)
    votes = np.stack([(classes == c).sum((1, 3)) for c in range(len(LABEL_NAMES))])
    return (image * 255).round().clip(0, 255).astype(np.uint8), votes.argmax(0).astype(np.uint8)


class _Canvas:
    """Colour and class of the fine grid; what is filled later lies in front."""

    def __init__(self, color: np.ndarray):
        self.color, self.classes = color, np.zeros(color.shape[:2], np.uint8)

    def fill(self, region: np.ndarray, color: np.ndarray, label: int, shade: np.ndarray | float = 1.0) -> None:
        shade = np.broadcast_to(shade, region.shape)[region][:, None]
        self.color[region] = (color * shade).clip(0, 1)
        self.classes[region] = label

    def tint(self, region: np.ndarray, amount: np.ndarray, color: np.ndarray) -> None:
        amount = amount[region][:, None]
        self.color[region] = self.color[region] * (1 - amount) + color * amount


def _ellipse(x: np.ndarray, y: np.ndarray, rx: np.ndarray | float, ry: float) -> np.ndarray:
    return (x / rx) ** 2 + (y / ry) ** 2 < 1


def _blend(colors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    place = rng.uniform(0, len(colors) - 1)
    i = min(int(place), len(colors) - 2)
    return colors[i] * (1 - place + i) + colors[i + 1] * (place - i)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A gradient of two colours with soft waves, `[192, 192, 3]`, 0 to 1."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = ((np.cos(angle) * _X + np.sin(angle) * _Y) / 2.8 + 0.5)[..., None]
    color = rng.uniform(0.15, 0.95, 3) * ramp + rng.uniform(0.15, 0.95, 3) * (1 - ramp)
    for _ in range(rng.integers(0, 4)):
        fx, fy, phase = rng.normal(0, 5, 2).tolist() + [rng.uniform(0, 6)]
        color += rng.uniform(-0.08, 0.08, 3) * np.sin(fx * _X + fy * _Y + phase)[..., None]
    return color.clip(0, 1)


def drawn_faces(part: str, count: int | None = None, seed: int = 0) -> Dataset:
    """Drawn faces as a dataset.

    Args:
        part (`str`): `"unlabeled"` (only images), `"train"` or `"test"`; no face is in two of them.
        count (`int`, *optional*): How many, from the first; all of the part (8,000, 20, 100) if not given.
        seed (`int`, defaults to 0): Another seed gives other faces.

    Returns:
        `datasets.Dataset` with the columns `image` (64 × 64, RGB) and, for labelled parts, `mask` (class ids).

    Raises:
        UserError: There is no such part, or it has fewer faces.
    """
    if part not in SPLITS:
        raise UserError(f"Drawn faces have the parts {', '.join(SPLITS)}, not {part!r}.")
    count = SPLITS[part] if count is None else count
    if not 0 < count <= SPLITS[part]:
        raise UserError(f"The part {part!r} has 1 to {SPLITS[part]} faces, asked for {count}.")
    first = sum(list(SPLITS.values())[: list(SPLITS).index(part)])
    images, masks = zip(*(draw_face(number, seed) for number in range(first, first + count)))
    columns = {"image": list(images)} | ({} if part == "unlabeled" else {"mask": list(masks)})
    return Dataset.from_dict(columns, features=Features({name: Image() for name in columns}))


def write_drawn_faces(folder: Path, count: int | None = None, seed: int = 0) -> None:
    """Writes all parts as a folder that `load_dataset` reads, with the configurations `unlabeled` and `labeled`.

    Args:
        folder (`Path`): Where to.
        count (`int`, *optional*): Unlabelled faces (default: 8,000).
        seed (`int`, defaults to 0): See [`drawn_faces`].
    """
    files = {
        "unlabeled/train": drawn_faces("unlabeled", count, seed),
        "labeled/train": drawn_faces("train", seed=seed),
        "labeled/test": drawn_faces("test", seed=seed),
    }
    for name, dataset in files.items():
        path = folder / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(path)
    names = json.dumps(dict(enumerate(LABEL_NAMES)), indent=2)
    (folder / "id2label.json").write_text(names + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_CARD, encoding="utf-8")


_CARD = """---
license: apache-2.0
configs:
- config_name: unlabeled
  data_files:
  - {split: train, path: unlabeled/train-*.parquet}
- config_name: labeled
  data_files:
  - {split: train, path: labeled/train-*.parquet}
  - {split: test, path: labeled/test-*.parquet}
---
Faces drawn by `diffuseseg_diffusers.drawn_faces`, 64 × 64, with exact masks.
"""
