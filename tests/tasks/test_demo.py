# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.datasets.drawn_faces import SHIPPED_MODEL
from diffuseseg_diffusers.heads.recipes import RECIPES

from ..conftest import run


@pytest.fixture(autouse=True)
def short_recipe(monkeypatch):
    """A twentieth of the default recipe's training; `make demo` runs all of it."""
    short = replace(RECIPES["default"], max_steps=50, augmented_images=10)
    monkeypatch.setitem(RECIPES, "default", short)


def test_the_demo_shows_the_whole_idea(tmp_path):
    result = run(
        *("diffuseseg", "demo", "--output_dir", tmp_path / "demo", "--num_test", "16", "--num_generated", "4"),
        *("--num_inference_steps", "10"),
    )
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["num_images"] == 16 and metrics["mean_iou"] > 0.4
    assert f"{metrics['mean_iou']:6.4f}" in result.stdout and "contact_sheet.png" in result.stdout
    sheet = np.asarray(Image.open(tmp_path / "demo" / "contact_sheet.png").convert("RGB"))
    assert min(sheet.shape[:2]) > 600 and len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000
    names = sorted(p.name for p in (tmp_path / "demo" / "generated").iterdir())
    assert names == sorted(f"{i:02d}{kind}.png" for i in range(4) for kind in ("", "_mask"))
    assert Image.open(tmp_path / "demo" / "generated" / "00_mask.png").mode == "P"
    pipe = DiffuseSegPipeline.from_pretrained(tmp_path / "demo" / "model")
    assert pipe.segmentation_head.config.num_classes == 8 and pipe.label_names[6] == "glasses"
    again = ("diffuseseg", "demo", "--output_dir", tmp_path / "demo", "--num_generated", "4")
    more = ("--num_test", "16", "--num_inference_steps", "10")
    assert "exists and is kept" in run(*again, *more, expect=1).stderr
    (tmp_path / "demo" / "metrics.json").unlink()  # cut off before the end
    assert "--num_test 16 (now 3)" in run(*again, "--num_test", "3", expect=1).stderr
    (tmp_path / "demo" / "model" / "mine.txt").write_text("mine")
    assert "model/mine.txt" in run(*again, "--overwrite", expect=1).stderr


@pytest.mark.slow
def test_the_demo_trains_first_if_asked(tmp_path):
    run(
        *("diffuseseg", "demo", "--train", "--train_minutes", "0.02", "--output_dir", tmp_path / "demo"),
        *("--num_test", "2", "--num_generated", "2", "--num_inference_steps", "2", "--num_faces", "40"),
    )
    state = json.loads((tmp_path / "demo" / "ddpm" / "training_state.json").read_text())
    assert state["step"] >= 1 and state["arguments"]["dataset_config_name"] == "unlabeled"
    ours, shipped = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (tmp_path / "demo" / "model", Path(SHIPPED_MODEL))
    )
    assert ours.keys() == shipped.keys() and any((ours[k] != shipped[k].float()).any() for k in ours)


def test_the_shipped_model_is_a_small_pipeline_in_half_precision():
    files = [p for p in Path(SHIPPED_MODEL).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 4_000_000
    tensors = load_file(Path(SHIPPED_MODEL) / "unet" / "diffusion_pytorch_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"torch.float16"}
    assert all(t.isfinite().all() for t in tensors.values())
    assert isinstance(DDPMPipeline.from_pretrained(SHIPPED_MODEL).unet, UNet2DModel)
