# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Datasets on the Hub: what is pushed, its card, and that it comes back."""

import numpy as np
import pytest
import yaml
from datasets import Image as ImageFeature
from datasets import load_dataset
from huggingface_hub import DatasetCard
from PIL import Image

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.hub.push import push_folder

from ..conftest import TOKENS, draw
from ..hub_server import validate_card
from .common import write_images


def test_a_dataset_is_pushed_with_its_card_and_comes_back(hub, tmp_path):
    folder = write_images(tmp_path / "pictures")
    push_folder(folder, "alice/pictures", license="cc0-1.0")
    files = hub.files("datasets", "alice/pictures")
    assert {"README.md", "samples.png", "id2label.json", "data/train-00000-of-00001.parquet"} < set(files)
    text = files["README.md"].decode()
    assert validate_card(text, "dataset") == []
    data = yaml.safe_load(text.split("---")[1])
    assert data["license"] == "cc0-1.0" and data["task_categories"] == ["image-segmentation"]
    assert "| default | train | 6 | 16 × 16 | image, mask |" in text
    masks = np.stack([draw((16, 16), i)[1] for i in range(6)])
    assert f"| 1 | disc | `#e69f00` | {100 * (masks == 1).mean():.2f} % |" in text
    loaded = load_labeled_images("alice/pictures", cache_dir=tmp_path / "cache")
    assert loaded.label_names == ["sky", "disc", "bar"]
    assert (np.stack([loaded[i].mask for i in range(6)]) == masks).all()
    assert DatasetCard(text).data.to_dict()["size_categories"] == ["n<1K"]


def test_folders_of_images_and_masks_go_as_parquet(hub, tmp_path):
    for split, seeds in (("train", range(3)), ("test", range(3, 5))):
        for kind in ("images", "masks"):
            (tmp_path / "mine" / split / kind).mkdir(parents=True)
        for i in seeds:
            image, mask = draw((12, 20), i)
            Image.fromarray(image).save(tmp_path / "mine" / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "mine" / split / "masks" / f"{i}.png")
    push_folder(tmp_path / "mine", "alice/mine")
    assert sorted(n for n in hub.files("datasets", "alice/mine") if n.startswith("data")) == [
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
    ]
    for split, seeds in (("train", range(3)), ("test", range(3, 5))):
        loaded = load_labeled_images("alice/mine", split=split, cache_dir=tmp_path / "cache")
        assert [loaded[i].mask.tolist() for i in range(len(loaded))] == [draw((12, 20), i)[1].tolist() for i in seeds]
        assert np.asarray(loaded[0].image).tolist() == draw((12, 20), seeds[0])[0].tolist()
    features = load_dataset("alice/mine", split="test", cache_dir=tmp_path / "cache").features
    assert all(isinstance(features[column], ImageFeature) for column in ("image", "mask"))


def test_datasets_that_cannot_be_had_are_a_sentence(hub, tmp_path, monkeypatch):
    push_folder(write_images(tmp_path / "secret"), "alice/secret", private=True)
    push_folder(write_images(tmp_path / "gated"), "alice/gated")
    hub.write(hub.repo("datasets", "alice/gated") / "settings.json", {"private": False, "gated": True})
    assert len(load_labeled_images("alice/secret", cache_dir=tmp_path / "cache")) == 6
    monkeypatch.setenv("HF_TOKEN", TOKENS["bob"])
    with pytest.raises(ValueError, match="alice/secret cannot be loaded: the Hub has none .*HF_TOKEN"):
        load_labeled_images("alice/secret", cache_dir=tmp_path / "bob")
    with pytest.raises(ValueError, match="alice/gated cannot be loaded: .*gated"):
        load_unlabeled("alice/gated", cache_dir=str(tmp_path / "bob"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match="does not take the token"):
        load_labeled_images("alice/secret", cache_dir=tmp_path / "nobody")
