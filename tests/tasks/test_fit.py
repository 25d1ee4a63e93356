# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""`diffuseseg fit`, which is training/train_segmentation_head.py."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.evaluation.decision_fitting import fit_decisions
from diffuseseg_diffusers.heads.decisions import Decisions
from diffuseseg_diffusers.pipelines.loading import load_pipeline

from ..conftest import draw, run


def test_the_unet_is_saved_as_it_was_whatever_it_ran_in(drawn, tmp_path):
    run(
        *("diffuseseg", "fit", "--model", drawn / "model", "--dataset_name", drawn / "data", "--num_members", "2"),
        *("--recipe", "fast", "--dtype", "bfloat16", "--output_dir", tmp_path / "out"),
    )
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (drawn / "ddpm" / name).read_bytes()
    head = DiffuseSegPipeline.from_pretrained(tmp_path / "out").segmentation_head
    assert head.config.num_members == 2 and head.dtype == torch.float32
    assert set(head.config.agreement) == {"bfloat16"} and 0.9 < head.config.agreement["bfloat16"] <= 1
    report = json.loads((tmp_path / "out" / "head_training.json").read_text())
    assert report["agreement"] == head.config.agreement


def test_a_fit_in_float32_is_compared_with_what_auto_would_take(drawn, tmp_path, fast_bfloat16):
    fit = ("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--num_members", "2")
    said = run(*fit, "--recipe", "fast", "--dtype", "float32", "--output_dir", tmp_path / "out")
    share = json.loads((tmp_path / "out" / "segmentation_head" / "config.json").read_text())["agreement"]["bfloat16"]
    assert 0.9 < share <= 1 and f"Masks in bfloat16 agree with float32 on {share:.3%} of the pixels" in said.stdout


def test_images_without_labels_decide_which_classes_pixels_get(drawn, tmp_path):
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):  # noise, of which the head is not sure
        Image.fromarray(rng.integers(0, 256, (24, 30), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    fit = ("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--num_members", "2")
    fit += ("--recipe", "fast", "--unlabeled_dataset_name", tmp_path / "pictures", "--dtype", "float32")
    run(*fit, "--max_unlabeled", "4", "--output_dir", tmp_path / "out")
    pipe = load_pipeline(tmp_path / "out", device="cpu", dtype="float32")
    found, pipe.decisions = pipe.decisions, None
    pictures = [Image.open(tmp_path / "pictures" / f"{i}.png") for i in (0, 1, 2, 3)]  # five, evenly spread
    expected = fit_decisions(pipe, pictures, 4, show_progress=False)
    assert found.iou == pytest.approx(expected.iou, abs=0.02) and found.union == pytest.approx(expected.union, abs=0.02)
    report = json.loads((tmp_path / "out" / "head_training.json").read_text())
    assert Decisions.of(report["decisions"], 3) == found
    wrong = run(*fit, "--max_unlabeled", "0", "--output_dir", tmp_path / "none", expect=1)
    assert "--max_unlabeled must be at least 1" in wrong.stderr
    wrong = run(*fit, "--output_dir", tmp_path / "pictures" / "out", expect=1)
    assert "which it would change" in wrong.stderr and len(list((tmp_path / "pictures").iterdir())) == 5
    wrong = run(*fit[:-4], "--max_unlabeled", "2", "--output_dir", tmp_path / "none", expect=1)
    assert "--max_unlabeled is of --unlabeled_dataset_name" in wrong.stderr
    wrong = run(*fit, "--tile", "--output_dir", tmp_path / "none", expect=1)
    assert "takes whole images of eight bits" in wrong.stderr
    (tmp_path / "pictures" / "0.png").write_bytes(b"no picture")
    wrong = run(*fit, "--output_dir", tmp_path / "none", expect=1)
    assert "0.png" in wrong.stderr and "Traceback" not in wrong.stderr and "Fitting" not in wrong.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (("--blocks", "7"), "Block 7 does not exist: this model has blocks 0 to 5"),
        (("--timesteps", "-1"), "Timestep -1 does not exist: this model has timesteps 0 to 999"),
        (("--split", "validation"), None),
        (("--mask_column", "depth"), "no column 'depth'; it has 'image', 'mask'"),
        (("--model", "nowhere/at/all"), "There is no folder nowhere/at/all."),
        (("--model", "nobody/nothing"), "the pipeline nobody/nothing cannot be loaded: the Hub has none of that name"),
        (("--dataset_name", "nobody/nothing"), "the dataset nobody/nothing cannot be loaded"),
        (("--dataset_name", "./nowhere"), "There is no folder ./nowhere."),
        (("--validation_split", "train"), "are the same images; hold some of them out with --validation_fraction"),
    ],
)
def test_bad_arguments_get_one_sentence_and_write_nothing(drawn, change, message, tmp_path):
    arguments = {"--model": drawn / "ddpm", "--dataset_name": drawn / "data", "--output_dir": tmp_path / "out"}
    arguments[change[0]] = change[1]
    result = run("diffuseseg", "fit", *[x for pair in arguments.items() for x in pair], expect=1)
    assert "Traceback" not in result.stderr and result.stderr.splitlines()[-1].startswith("error: ")
    assert message is None or message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_mask_value_outside_the_classes_stops_fit_with_the_file(drawn, tmp_path):
    shutil.copytree(drawn / "data", tmp_path / "data")
    mask = draw((24, 30), 3)[1]
    mask[0, 0] = 77
    Image.fromarray(mask).save(tmp_path / "data" / "train" / "masks" / "3.png")
    result = run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", tmp_path / "data"),
        *("--output_dir", tmp_path / "out"),
        expect=1,
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: The mask value 77 in ") and "masks/3.png is outside of the classes 0 to 2" in last


def test_every_option_of_fit_has_an_effect(drawn, tmp_path):
    run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--up_blocks", "0", "2"),
        *("--timesteps", "10", "20", "--noise", "fresh", "--num_members", "2", "--seed", "3", "--batch_size", "2"),
        *("--no_flip", "--recipe", "fast", "--min_label_fraction", "0", "--validation_fraction", "0.34"),
        *("--activation_dir", tmp_path / "scratch"),
        *("--dtype", "float32", "--device", "cpu", "--ignore_index", "254", "--output_dir", tmp_path / "out"),
    )
    config = json.loads((tmp_path / "out" / "segmentation_head" / "config.json").read_text())
    assert (config["blocks"], config["timesteps"], config["num_members"]) == ([1, 5], [10, 20], 2)
    assert (config["share_noise"], config["noise_seed"], config["ignore_index"]) == (False, 3, 254)
    assert (config["flip"], config["voting"], config["clean"]) == (False, "hard", False)
    report = json.loads((tmp_path / "out" / "head_training.json").read_text())
    assert report["num_images"] == 4 and report["validation"]["num_images"] == 2 and report["dtype"] == "float32"
    assert (tmp_path / "scratch").is_dir()
    run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--num_members", "2"),
        *("--recipe", "fast", "--validation_split", "test", "--noise", "none", "--output_dir", tmp_path / "two"),
    )
    assert json.loads((tmp_path / "two" / "segmentation_head" / "config.json").read_text())["clean"]
    assert json.loads((tmp_path / "two" / "head_training.json").read_text())["validation"]["num_images"] == 4


@pytest.mark.slow
def test_two_processes_fit_the_same_masks_as_one(drawn, tmp_path):
    data = ("--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--num_members", "3", "--recipe", "fast")
    # On CPUs `accelerate launch` wants MPI for several processes; on GPUs it does what torchrun does here.
    run(
        *("torchrun", "--nproc_per_node", "2", "training/train_segmentation_head.py", *data),
        *("--output_dir", tmp_path / "2"),
        OMP_NUM_THREADS="1",
    )
    run("diffuseseg", "fit", *data, "--output_dir", tmp_path / "1", OMP_NUM_THREADS="1")
    images, masks = sorted((drawn / "data" / "test" / "images").iterdir()), []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert json.loads((out / "head_training.json").read_text())["num_processes"] == processes
        masks.append(np.stack(load_pipeline(str(out), dtype="float32").segment(images, output_type="np").masks))
    assert (masks[0] == masks[1]).mean() > 0.97 and len(np.unique(masks[0])) == 3
