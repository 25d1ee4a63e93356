# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders with pictures and annotations, as other programs leave them."""

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from diffuseseg_diffusers.datasets.annotations import coco, cvat, label_studio, labelme, qupath
from diffuseseg_diffusers.datasets.annotations.base import Marked
from diffuseseg_diffusers.datasets.annotations.shapes import from_mask

from ...conftest import draw as draw_one


NAMES = ["background", "vessel", "cell"]
HEIGHT, WIDTH = 24, 30


def draw(folder: Path, *names: str) -> dict[str, np.ndarray]:
    """Pictures of discs and bars, and masks of them."""
    masks = {}
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image, masks[name] = draw_one((HEIGHT, WIDTH), zlib.crc32(name.encode()))
        Image.fromarray(image).save(folder / name)
        masks[name][:2, ::3] = 255  # without a label, in parts
        masks[name][3, 3] = 0  # a hole
    return masks


def marked(masks: dict[str, np.ndarray], name_of=lambda name: name) -> list[Marked]:
    return [Marked(name_of(name), HEIGHT, WIDTH, from_mask(mask, NAMES)) for name, mask in masks.items()]


def file_name(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def make_coco(folder: Path) -> dict[str, dict]:
    masks = {s: draw(folder, f"{s}2017/a.jpg", f"{s}2017/b.jpg") for s in ("train", "val")}
    (folder / "annotations").mkdir()
    for split, own in masks.items():
        coco.write(folder / "annotations" / f"instances_{split}2017.json", marked(own, file_name), NAMES)
        (folder / "annotations" / f"captions_{split}2017.json").write_text('{"images": [], "annotations": []}')
    return masks


def make_labelme(folder: Path) -> dict[str, dict]:
    masks = {s: draw(folder, f"{s}/a.png", f"{s}/b.png") for s in ("train", "val")}
    for split, own in masks.items():
        labelme.write(folder / split, marked(own, file_name), NAMES)
    return masks


def make_cvat(folder: Path) -> dict[str, dict]:
    masks = {s: draw(folder, f"images/{s}/a.png") for s in ("train", "val")}
    cvat.write(
        folder / "annotations.xml", marked(masks["train"] | masks["val"], lambda n: n.removeprefix("images/")), NAMES
    )
    return masks


def make_label_studio(folder: Path) -> dict[str, dict]:
    masks = draw(folder, "images/a.png", "images/b.png")
    label_studio.write(
        folder / "project-1.json", marked(masks, lambda n: f"/data/upload/1/0a1b2c3d-{file_name(n)}"), NAMES
    )
    return {"train": masks}


def make_qupath(folder: Path) -> dict[str, dict]:
    masks = draw(folder, "slides/a.tif", "slides/b.tif")
    qupath.write(folder / "geojson", marked(masks, file_name), NAMES)
    return {"train": masks}


MADE = {"coco": make_coco, "labelme": make_labelme, "cvat": make_cvat, "label_studio": make_label_studio,
        "qupath": make_qupath}  # fmt: skip
