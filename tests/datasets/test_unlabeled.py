# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffuseseg_diffusers.datasets.unlabeled import UnlabeledImages, count_channels, load_unlabeled, to_pixels

from ..conftest import draw


def test_unreadable_images_are_named_or_counted(tmp_path):
    for i in range(4):
        Image.fromarray(draw((16, 16), i)[0]).save(tmp_path / f"{i}.png")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])  # found only when its pixels are read
    dataset, column = load_unlabeled(data_dir=str(tmp_path))
    images = UnlabeledImages(dataset, column, (16, 16), 1)
    with pytest.raises(ValueError, match=r"[12]\.png cannot be read.*--skip_unreadable"):
        images.load()
    with pytest.raises(ValueError, match=r"2\.png cannot be read.*--skip_unreadable"):
        images[2]
    images.skip_unreadable = True
    pixels, unreadable = images.load()
    assert len(pixels) == 2 and unreadable == 2
    assert images[1][1] == 2 and torch.equal(images[1][0], pixels[1])
    with pytest.raises(ValueError, match="None of the images"):
        images.select([1, 2]).load()


def test_crop_and_pad_keep_proportions():
    wide = Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8)[None] * 6, 20, 0))  # 20 × 40, brighter to the right
    cropped, padded = to_pixels(wide, (20, 20), 1, "crop")[0], to_pixels(wide, (20, 20), 1, "pad")[0]
    assert cropped.min() >= 55 and cropped.max() <= 180  # the middle half
    assert (padded[:5] == 0).all() and (padded[15:] == 0).all() and padded[10].max() > 220
    rgb = to_pixels(wide.convert("RGB"), (8, 12), 3)
    assert rgb.shape == (3, 8, 12) and rgb.dtype == torch.uint8 and rgb.is_contiguous()


def test_channels_are_those_of_the_images(tmp_path):
    for i, channels in enumerate([1, 1, 3]):
        Image.fromarray(draw((16, 16), i, channels)[0]).save(tmp_path / f"{i}.png")
    (tmp_path / "0_first.png").write_bytes(b"no image")
    dataset, column = load_unlabeled(data_dir=str(tmp_path))
    assert count_channels(dataset, column) == 3
    assert count_channels(dataset.select([0, 1, 2]), column) == 1


def test_missing_columns_and_images_are_told(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images in it"):
        load_unlabeled(data_dir=str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="There is no folder"):
        load_unlabeled(data_dir=str(tmp_path / "nowhere"))
    (tmp_path / "words" / "data").mkdir(parents=True)
    words = Dataset.from_dict({"text": ["a"], "label_name": ["b"]})
    words.to_parquet(tmp_path / "words" / "data" / "train-00000-of-00001.parquet")
    for streaming in (False, True):
        with pytest.raises(ValueError, match="it has 'text', 'label_name'"):
            load_unlabeled(str(tmp_path / "words"), streaming=streaming)
        with pytest.raises(ValueError, match="no column 'scan'"):
            load_unlabeled(str(tmp_path / "words"), image_column="scan", streaming=streaming)
    (tmp_path / "none" / "data").mkdir(parents=True)
    none = Dataset.from_dict({"image": []}, features=Features({"image": ImageFeature()}))
    parquet.write_table(none.data.table, tmp_path / "none" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="none cannot be loaded"):
        load_unlabeled(str(tmp_path / "none"))


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_masks_beside_the_images_are_no_pictures(tmp_path, masks):
    for root in (tmp_path / "flat", tmp_path / "split" / "test"):
        for folder in ("images", masks):
            (root / folder).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(draw((16, 16), i)[folder == masks]).save(root / folder / f"{i}.png")
    split = {"name": str(tmp_path / "split"), "split": "test"}
    top, test = tmp_path / "flat" / "images", tmp_path / "split" / "test" / "images"
    for way, images in (
        ({"data_dir": str(tmp_path / "flat")}, top),
        (split, test),
        ({**split, "streaming": True}, test),
    ):
        dataset, column = load_unlabeled(**way)
        assert [row[column]["path"] for row in dataset] == [str(images / "0.png"), str(images / "1.png")]
        assert "streaming" not in way or dataset.num_shards == 2  # so that processes share it


def test_a_folder_of_images_alone_is_read_whole(tmp_path):
    for i, folder in enumerate(("a", "masks")):  # without pictures of the same names beside it, a name says nothing
        (tmp_path / folder).mkdir()
        Image.fromarray(draw((16, 16), 0)[0]).save(tmp_path / folder / f"{i}.png")
    assert len(load_unlabeled(data_dir=str(tmp_path))[0]) == 2


def test_the_splits_of_other_layouts_stay_apart(tmp_path):
    for folder in ("images/train", "images/val", "labels/train", "labels/val"):  # as those of YOLO or ADE20K
        (tmp_path / "a" / folder).mkdir(parents=True)
        Image.fromarray(draw((16, 16), 0)[0]).save(tmp_path / "a" / folder / "0.png")
    for split in ("train", "val"):
        dataset, column = load_unlabeled(str(tmp_path / "a"), split=split)
        assert [row[column]["path"] for row in dataset] == [str(tmp_path / "a" / "images" / split / "0.png")]
    for split in ("train", "test"):
        for folder in ("Images", "Masks"):
            (tmp_path / "b" / split / folder).mkdir(parents=True)
            Image.fromarray(draw((16, 16), 0)[0]).save(tmp_path / "b" / split / folder / "0.png")
    (tmp_path / "b" / "test" / "metadata.csv").write_text("file_name\nImages/0.png\n")
    every, column = load_unlabeled(data_dir=str(tmp_path / "b"))
    assert [row[column]["path"] for row in every] == [
        str(tmp_path / "b" / split / "Images" / "0.png") for split in ("test", "train")
    ]
    labels = tmp_path / "c" / "labels"
    labels.mkdir(parents=True)
    (labels / "0.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "c" / "images" / "train").mkdir(parents=True)
    Image.fromarray(draw((16, 16), 0)[0]).save(tmp_path / "c" / "images" / "train" / "0.png")
    assert len(load_unlabeled(str(tmp_path / "c"))[0]) == 1
