# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Large pictures and many channels from training to masks, as commands."""

import json

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, PixelClassifierEnsemble
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import run
from ..drawn_slides import LABEL_NAMES, draw_slide
from ..images.formats.pictures import ome_tiff


pytest.importorskip("tifffile")
NAMES = ["a", "b", "c", "d", "e"]
U_NET = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Drawn five-channel scans of 12 bits in 16, labelled and not, and a U-Net trained on crops of them."""
    folder = tmp_path_factory.mktemp("scans")
    for kind in ("unlabeled", "labeled/train/images", "labeled/train/masks", "test"):
        (folder / kind).mkdir(parents=True)
    for i in range(4):
        image, mask = draw_slide(Window(0, 0, 96, 128), seed=i, channels=5)
        image = image.astype(np.uint16) * 16
        if i < 2:
            ome_tiff(folder / "unlabeled" / f"{i}.ome.tif", image, NAMES)
        if i == 2:
            ome_tiff(folder / "labeled" / "train" / "images" / "s.ome.tif", image, NAMES)
            mask[:, 64:] = 255  # partly labelled
            Image.fromarray(mask).save(folder / "labeled" / "train" / "masks" / "s.png")
        if i == 3:
            ome_tiff(folder / "test" / "s.ome.tif", image, NAMES)
            np.save(folder / "truth.npy", mask)
    (folder / "labeled" / "id2label.json").write_text(json.dumps(LABEL_NAMES))
    (folder / "unet.json").write_text(json.dumps(U_NET))
    said = run(
        *(
            "diffuseseg",
            "train-ddpm",
            "--train_data_dir",
            folder / "unlabeled",
            "--crop",
            "random",
            "--resolution",
            "32",
        ),
        *("--model_config", folder / "unet.json", "--intensity_percentiles", "0.5", "99.5", "--max_train_steps", "8"),
        *(
            "--train_batch_size",
            "4",
            "--num_validation_images",
            "2",
            "--num_samples",
            "2",
            "--num_inference_steps",
            "2",
        ),
        *("--dataloader_num_workers", "0", "--output_dir", folder / "ddpm"),
    )
    assert "22 crops an epoch, of 2 pictures" in said.stdout  # without those to measure on
    run(
        *("diffuseseg", "fit", "--model", folder / "ddpm", "--dataset_name", folder / "labeled", "--tile"),
        *("--recipe", "fast", "--num_members", "3", "--output_dir", folder / "model"),
    )
    return folder


def test_five_channels_go_from_training_to_masks(scans, tmp_path):
    pipe = DiffuseSegPipeline.from_pretrained(scans / "ddpm")
    assert pipe.unet.config.in_channels == 5 and pipe.channels.names is None and len(pipe.channels.windows) == 5
    assert all(0 <= low < high <= 4080 for low, high in pipe.channels.windows)
    head = PixelClassifierEnsemble.from_pretrained(scans / "model", subfolder="segmentation_head").config
    assert head.channels == pipe.channels.config and head.format_version == 4
    assert head.tiling == {"tiles": True, "scale": 1.0, "pixel_size": None}
    run("diffuseseg", "segment", scans / "test", "--model", scans / "model", "--output_dir", tmp_path / "out")
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "segments.jsonl").read_text().splitlines()]
    assert line["tiles"]["height"] == 32 and line["mask"] == "s_mask.ome.tif"
    with open_raster(tmp_path / "out" / "s_mask.ome.tif") as mask:
        found = mask.read(0, Window(0, 0, *mask.size))[0]
    truth = np.load(scans / "truth.npy")
    assert (found == truth).mean() > max((truth == c).mean() for c in range(3)) + 0.02  # more than the commonest class
    grid = Image.open(next((scans / "ddpm" / "samples").glob("*.png")))
    assert grid.mode == "RGB"
    images = pipe(batch_size=1, num_inference_steps=2)
    assert images.images[0].mode == "RGB" and images.images[0].size == (32, 32)
    values = pipe(batch_size=1, num_inference_steps=2, output_type="np").images
    assert values.shape == (1, 32, 32, 5)


def test_arrays_of_five_channels_are_read_as_the_files_are(scans):
    pipe = DiffuseSegPipeline.from_pretrained(scans / "model")
    image, _ = draw_slide(Window(0, 0, 32, 32), seed=9, channels=5)
    one = pipe.segment([image.transpose(1, 2, 0).astype(np.uint16) * 16], output_type="np").masks[0]
    other = pipe.segment([image.transpose(1, 2, 0).astype(np.float32) * 16], output_type="np").masks[0]
    assert np.array_equal(one, other) and one.shape == (32, 32)
    with pytest.raises(UserError, match="An image has 3 channels, (and the model takes 5|but there are 5 intensity)"):
        pipe.segment([image[:3].transpose(1, 2, 0)])


def test_channels_are_chosen_in_training_and_stay_chosen(scans, tmp_path):
    run(
        *("diffuseseg", "train-ddpm", "--train_data_dir", scans / "unlabeled", "--resolution", "32"),
        *("--model_config", scans / "unet.json", "--input_channels", "d", "b", "--intensity_window", "0", "4095"),
        *("--max_train_steps", "2", "--train_batch_size", "2", "--num_validation_images", "0", "--num_samples", "0"),
        *("--dataloader_num_workers", "0", "--output_dir", tmp_path / "ddpm"),
    )
    pipe = DiffuseSegPipeline.from_pretrained(tmp_path / "ddpm")
    assert pipe.unet.config.in_channels == 2 and pipe.channels.config == {"names": ["d", "b"], "windows": [[0, 4095]]}
    run(
        *("diffuseseg", "fit", "--model", tmp_path / "ddpm", "--dataset_name", scans / "labeled", "--recipe", "fast"),
        *("--num_members", "2", "--output_dir", tmp_path / "model"),
    )
    run("diffuseseg", "segment", scans / "test", "--model", tmp_path / "model", "--output_dir", tmp_path / "out")
    said = run(
        *("diffuseseg", "segment", scans / "test", "--model", tmp_path / "model", "--input_channels", "a", "e"),
        *("--output_dir", tmp_path / "other"),
    )
    assert "1 of 1 images segmented" in said.stdout
    masks = []
    for name in ("out", "other"):
        with open_raster(tmp_path / name / "s_mask.ome.tif") as mask:
            masks.append(mask.read(0, Window(0, 0, *mask.size))[0])
    assert (masks[0] != masks[1]).any()


def test_what_does_not_go_together_is_refused(scans, tmp_path):
    train = (
        "train-ddpm",
        "--train_data_dir",
        scans / "unlabeled",
        "--max_train_steps",
        "1",
        "--model_config",
        scans / "unet.json",
    )
    fit = ("fit", "--model", scans / "ddpm", "--dataset_name", scans / "labeled")
    for words, message in (
        ((*train, "--pixel_size", "0.5"), "--scale and --pixel_size are for --crop random"),
        ((*train, "--input_channels", "z"), "has no channel 'z'; it has 0 (a), 1 (b)"),
        ((*train, "--intensity_window", "1", "2", "3"), "pairs of a low and a high value, got 3 values"),
        ((*train, "--crop", "random", "--intensity_percentiles", "60", "40"), "the low one first"),
        ((*fit, "--scale", "0.5"), "--scale and --pixel_size are for --tile"),
        (("generate", "--model", scans / "model", "--num_samples", "1"), "generates images of 5 channels, which image"),
        ((*fit, "--tile", "--max_tiles", "0"), "--max_tiles must be at least 1"),
        ((*fit, "--tile", "--input_channels", "a"), "5 intensity windows were given for 1 channels"),
    ):
        result = run("diffuseseg", *words, "--output_dir", tmp_path / "out", expect=1)
        assert message in result.stderr and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()
