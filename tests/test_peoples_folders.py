# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Seven people's folders, each inspected, fitted and evaluated by one command, without conversion."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers.datasets.folder_names import split_of
from diffuseseg_diffusers.images.image_processor import mask_to_pil

from .conftest import draw, make_pipeline, run
from .datasets.annotations.folders import MADE


NAMES = ["background", "vessel", "cell"]
VOC = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def paint(image: Path, mask: Path, seed: int, indexed: bool = False, void: bool = False) -> np.ndarray:
    """Writes a drawing and its mask."""
    pixels, ids = draw((24, 30), seed)
    if void:
        ids[10, :] = 255
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image, quality=95)
    (mask_to_pil(ids, VOC) if indexed else Image.fromarray(ids)).save(mask)
    return ids


def make_voc(folder: Path) -> dict[str, int]:
    """As the devkit has it, with borders without a label, and the names that CVAT's export adds."""
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        for seed in seeds:
            name = f"2007_00{seed}"
            paint(folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png", seed, True, True)
        (lists / f"{split}.txt").write_text("".join(f"2007_00{seed}\n" for seed in seeds))
    colors = "".join(f"{name}:{','.join(map(str, color))}::\n" for name, color in zip(NAMES, VOC))
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + colors)
    return {"train": 4, "val": 2}


def make_nnunet(folder: Path) -> dict[str, int]:
    """Two-dimensional pictures, as nnU-Net's NaturalImage2DIO reads them."""
    for split, seeds in (("Tr", range(4)), ("Ts", range(4, 6))):
        for seed in seeds:
            paint(
                folder / f"images{split}" / f"case_{seed}_0000.png",
                folder / f"labels{split}" / f"case_{seed}.png",
                seed,
            )
    about = {"channel_names": {"0": "grey"}, "labels": {name: i for i, name in enumerate(NAMES)}, "file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps({**about, "numTraining": 4}))
    return {"train": 4, "test": 2}


def make_mmsegmentation(folder: Path) -> dict[str, int]:
    for split, seeds in (("train", range(4)), ("val", range(4, 6))):
        for seed in seeds:
            paint(folder / "img_dir" / split / f"{seed}.jpg", folder / "ann_dir" / split / f"{seed}.png", seed)
    return {"train": 4, "val": 2}


FOLDERS = {"voc": make_voc, "nnunet": make_nnunet, "mmsegmentation": make_mmsegmentation}
FOLDERS |= {kind: MADE[kind] for kind in ("coco", "labelme", "cvat", "label_studio")}


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddpm")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind != "voc")) for kind in FOLDERS])
def test_a_folder_is_inspected_fitted_and_evaluated_as_it_is(kind, ddpm, tmp_path):
    splits = {
        split: own if isinstance(own, int) else len(own) for split, own in FOLDERS[kind](tmp_path / "data").items()
    }
    data = tmp_path / "data"
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    found = json.loads(run("diffuseseg", "inspect", data, "--json").stdout)
    named = {split_of(name) or "train": number for name, number in found["splits"].items()}
    assert not found["refusals"] and named == {split_of(name): number for name, number in splits.items()}

    fit = ("--recipe", "fast", "--num_members", "2", "--batch_size", "2", "--output_dir", tmp_path / "model")
    run("diffuseseg", "fit", "--model", ddpm, "--dataset_name", data, *fit)
    split = next((name for name in splits if name != "train"), "train")
    where = ("--dataset_name", data, "--split", split, "--output_dir", tmp_path / "metrics")
    run("diffuseseg", "evaluate", "--model", tmp_path / "model", *where)
    metrics = json.loads((tmp_path / "metrics" / "metrics.json").read_text())
    names = NAMES if kind != "mmsegmentation" else ["class 0", "class 1", "class 2"]
    assert metrics["num_images"] == splits[split] and list(metrics["per_class_iou"]) == names
    assert metrics["mean_iou"] > 0.5
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
