# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The commands as a user types them."""

import argparse
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffuseseg_diffusers
from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.cli import COMMANDS
from diffuseseg_diffusers.hub.loading import load_pipeline

from ..conftest import draw, make_pipeline, run


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a U-Net, labelled drawings in two splits, and a model fitted on them by the command."""
    folder = tmp_path_factory.mktemp("drawn")
    make_pipeline().save_pretrained(folder / "ddpm")
    for split, seeds in (("train", range(6)), ("test", range(20, 24))):
        for kind in ("images", "masks"):
            (folder / "data" / split / kind).mkdir(parents=True)
        for seed in seeds:
            image, mask = draw((24, 30), seed)
            Image.fromarray(image).save(folder / "data" / split / "images" / f"{seed}.png")
            Image.fromarray(mask).save(folder / "data" / split / "masks" / f"{seed}.png")
    (folder / "data" / "id2label.json").write_text('["sky", "disc", "bar"]')
    run(
        *("diffuseseg", "fit", "--model", folder / "ddpm", "--dataset_name", folder / "data"),
        *("--recipe", "fast", "--num_members", "3", "--output_dir", folder / "model"),
        fresh=True,
    )
    return folder


def test_what_is_fitted_in_one_process_is_measured_in_another(drawn, tmp_path):
    data = ("--dataset_name", drawn / "data")
    evaluated = run(
        *("diffuseseg", "evaluate", "--model", drawn / "model", *data, "--output_dir", tmp_path / "eval"), fresh=True
    )
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["mean_iou"] > 0.7 and metrics["num_images"] == 4
    assert list(metrics["per_class_iou"]) == ["sky", "disc", "bar"]
    printed = [line for line in evaluated.stdout.splitlines() if line.startswith("mean IoU")][0].split()
    assert printed == f"mean IoU {metrics['mean_iou']:.4f}".split()
    page = Image.open(tmp_path / "eval" / "examples.png")
    assert page.width > 400 and page.height > 400


def test_evaluating_ignores_what_the_model_was_fitted_to_ignore(drawn, tmp_path):
    data = ("--dataset_name", drawn / "data")
    run(
        *(
            "diffuseseg",
            "fit",
            "--model",
            drawn / "ddpm",
            *data,
            "--num_members",
            "2",
            "--recipe",
            "fast",
            "--ignore_index",
            "0",
        ),
        *("--output_dir", tmp_path / "model"),
    )
    run("diffuseseg", "evaluate", "--model", tmp_path / "model", *data, "--output_dir", tmp_path / "eval")
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["per_class_iou"]["sky"] is None and metrics["mean_iou"] > 0.5


def test_the_unet_is_saved_as_it_was_whatever_it_ran_in(drawn, tmp_path):
    run(
        *("diffuseseg", "fit", "--model", drawn / "model", "--dataset_name", drawn / "data", "--num_members", "2"),
        *("--recipe", "fast", "--dtype", "bfloat16", "--output_dir", tmp_path / "out"),
    )
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (drawn / "ddpm" / name).read_bytes()
    head = DiffuseSegPipeline.from_pretrained(tmp_path / "out").segmentation_head
    assert head.config.num_members == 2 and head.dtype == torch.float32


def test_segmenting_writes_masks_overlays_and_a_line_for_each_picture(drawn, tmp_path):
    images = [draw((40 + i, 50), 80 + i, 3)[0] for i in range(3)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    Image.fromarray(images[0]).save(tmp_path / "a" / "photo.jpg")
    Image.fromarray(images[1]).save(tmp_path / "b" / "photo.png")
    Image.fromarray(images[2]).convert("RGBA").save(tmp_path / "other.png")
    result = run(
        *("diffuseseg", "segment", tmp_path / "a" / "photo.jpg", tmp_path / "b", tmp_path / "other.png"),
        *("--model", drawn / "model", "--output_dir", tmp_path / "out"),
        fresh=True,
    )
    assert "3 of 3 images segmented" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "segments.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == ["photo_mask.png", "photo-2_mask.png", "other_mask.png"]
    pipe = load_pipeline(str(drawn / "model"))
    for line, image in zip(lines, images):
        mask = Image.open(tmp_path / "out" / line["mask"])
        assert mask.mode == "P" and mask.size == image.shape[1::-1] == (line["width"], line["height"])
        assert Image.open(tmp_path / "out" / line["overlay"]).size == mask.size
        share = {n: (np.asarray(mask) == i).mean() for i, n in enumerate(["sky", "disc", "bar"])}
        assert line["class_fractions"] == pytest.approx(share, abs=1e-5) and 0 <= line["uncertainty"] < 1.1
    expected = pipe.segment(tmp_path / "other.png", output_type="np").masks[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "other_mask.png")), expected)


def test_a_broken_picture_is_named_and_the_others_are_segmented(drawn, tmp_path):
    Image.fromarray(draw((20, 20), 0)[0]).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:80])
    result = run(
        *("diffuseseg", "segment", tmp_path / "broken.png", tmp_path / "none.png", tmp_path / "good.png"),
        *("--model", drawn / "model", "--output_dir", tmp_path / "out"),
        expect=1,
    )
    assert "broken.png cannot be read" in result.stderr and "There is no file" in result.stderr
    assert "1 of 3 images segmented" in result.stdout and (tmp_path / "out" / "good_mask.png").exists()
    (tmp_path / "empty").mkdir()
    result = run(
        *("diffuseseg", "segment", tmp_path / "empty", "--model", drawn / "model", "--output_dir", tmp_path / "o"),
        expect=1,
    )
    assert result.stderr.strip().endswith("empty has no images in it.") and "Traceback" not in result.stderr


def test_segmenting_needs_no_extra_and_the_others_say_which(drawn, tmp_path):
    without = "import sys; sys.modules.update(dict.fromkeys(['datasets', 'evaluate', 'matplotlib', 'transformers']));"
    without += "from diffuseseg_diffusers.cli import main; main(sys.argv[1:])"
    pictures, model = drawn / "data" / "test" / "images", ("--model", drawn / "model")
    run("python", "-c", without, "segment", pictures, *model, "--output_dir", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 4
    for command in ("evaluate",):
        result = run("python", "-c", without, command, *model, "--output_dir", tmp_path / "o", expect=1)
        assert "is not installed; run `pip install 'datasets" in result.stderr


def all_commands(drawn):
    data = ("--dataset_name", drawn / "data")
    return {
        "fit": ("--model", drawn / "ddpm", *data, "--num_members", "2", "--recipe", "fast"),
        "evaluate": ("--model", drawn / "model", *data),
        "segment": (drawn / "data" / "test" / "images", "--model", drawn / "model"),
    }


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_files_that_no_run_recorded_are_kept_with_and_without_overwrite(drawn, overwrite, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    for command, arguments in all_commands(drawn).items():
        result = run("diffuseseg", command, *arguments, "--output_dir", out, *overwrite, expect=1)
        assert f"{out} " in result.stderr and "is kept" in result.stderr and "Traceback" not in result.stderr
        assert [p.name for p in out.iterdir()] == ["precious.txt"]


def test_overwriting_replaces_the_files_of_the_earlier_run_and_no_others(drawn, tmp_path):
    for command, arguments in all_commands(drawn).items():
        out = tmp_path / command
        run("diffuseseg", command, *arguments, "--output_dir", out)
        before = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
        assert "is kept" in run("diffuseseg", command, *arguments, "--output_dir", out, expect=1).stderr
        run("diffuseseg", command, *arguments, "--output_dir", out, "--overwrite")
        assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == before
        (out / "mine.txt").write_text("keep me")
        refused = run("diffuseseg", command, *arguments, "--output_dir", out, "--overwrite", expect=1)
        assert "mine.txt" in refused.stderr and (out / "mine.txt").read_text() == "keep me"
        assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == sorted([*before, Path("mine.txt")])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(all_commands(drawn)), "nothing is left beside them"


@pytest.mark.parametrize("command", ["fit", "evaluate", "segment"])
def test_overwrite_removes_nothing_while_an_input_is_wrong(drawn, command, tmp_path):
    arguments = all_commands(drawn)[command]
    run("diffuseseg", command, *arguments, "--output_dir", tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    wrong = [drawn / "nowhere" if word in (drawn / "ddpm", drawn / "model") else word for word in arguments]
    run("diffuseseg", command, *wrong, "--output_dir", tmp_path / "out", "--overwrite", expect=1)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_help_and_version_need_no_torch():
    code = "import sys; from diffuseseg_diffusers.cli import main\ntry: main([sys.argv[1]])\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules, 'torch'"
    for word in ("--help", "--version"):
        assert "diffuseseg" in run("python", "-c", code, word).stdout
    module = run("python", "-m", "diffuseseg_diffusers", "--version").stdout
    assert module == run("diffuseseg", "--version").stdout == f"diffuseseg {diffuseseg_diffusers.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_is_explained(command):
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[command][1], "diffuseseg_diffusers.cli").add_arguments(parser)
    for action in parser._actions:
        assert action.help, action.option_strings
    options = {option for action in parser._actions for option in action.option_strings}
    if "--model" in options and command not in ("train-student",):
        assert "--pretrained_model_name_or_path" in options
    if command not in ("export-onnx", "push"):
        assert {"--output_dir", "--overwrite"} <= options


def test_only_what_users_can_mend_is_one_line(drawn, monkeypatch, tmp_path):
    arguments = ("segment", drawn / "data" / "test" / "images", "--model", drawn / "model")
    wrong = ("diffuseseg", "segment", tmp_path / "none.png", "--model", tmp_path / "nowhere", "--output_dir", tmp_path)
    assert "Traceback" not in run(*wrong, expect=1).stderr
    assert "Traceback" in run(*wrong, expect=1, DIFFUSESEG_DEBUG="1").stderr
    monkeypatch.setattr(DiffuseSegPipeline, "segment", lambda *a, **k: [][1])
    ours = run("diffuseseg", *arguments, "--output_dir", tmp_path / "out", expect=1).stderr
    assert "Traceback" in ours and "IndexError" in ours


@pytest.mark.parametrize(
    "change, message",
    [
        (("--blocks", "7"), "Block 7 does not exist: this model has blocks 0 to 5"),
        (("--timesteps", "-1"), "Timestep -1 does not exist: this model has timesteps 0 to 999"),
        (("--split", "validation"), None),
        (("--mask_column", "depth"), "no column 'depth'; it has 'image', 'mask'"),
        (("--model", "nowhere/at/all"), "There is no folder nowhere/at/all."),
        (
            ("--model", "nobody/nothing"),
            "the pipeline nobody/nothing cannot be loaded: the Hub has none of that name",
        ),
        (("--dataset_name", "nobody/nothing"), "the dataset nobody/nothing cannot be loaded"),
        (("--dataset_name", "./nowhere"), "There is no folder ./nowhere."),
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


def test_a_model_without_a_head_says_how_to_fit_one(drawn, tmp_path):
    result = run(
        *("diffuseseg", "segment", drawn / "data" / "test" / "images", "--model", drawn / "ddpm"),
        *("--output_dir", tmp_path / "out"),
        expect=1,
    )
    assert "no segmentation head; fit one with" in result.stderr and "`diffuseseg fit`" in result.stderr


def test_every_option_of_fit_has_an_effect(drawn, tmp_path):
    run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--up_blocks", "0", "2"),
        *(
            "--timesteps",
            "10",
            "20",
            "--fresh_noise",
            "--num_members",
            "2",
            "--seed",
            "3",
            "--batch_size",
            "2",
            "--no_flip",
        ),
        *(
            "--recipe",
            "fast",
            "--min_label_fraction",
            "0",
            "--validation_fraction",
            "0.34",
            "--activation_dir",
            tmp_path / "scratch",
        ),
        *("--dtype", "float32", "--device", "cpu", "--ignore_index", "254", "--output_dir", tmp_path / "out"),
    )
    config = json.loads((tmp_path / "out" / "segmentation_head" / "config.json").read_text())
    assert (config["blocks"], config["timesteps"], config["num_members"]) == ([1, 5], [10, 20], 2)
    assert (config["share_noise"], config["noise_seed"], config["ignore_index"]) == (False, 3, 254)
    assert (config["flip"], config["voting"]) == (False, "hard")
    report = json.loads((tmp_path / "out" / "head_training.json").read_text())
    assert report["num_images"] == 4 and report["validation"]["num_images"] == 2 and report["dtype"] == "float32"
    assert (tmp_path / "scratch").is_dir()
    run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--num_members", "2"),
        *("--recipe", "fast", "--validation_split", "test", "--output_dir", tmp_path / "two"),
    )
    assert json.loads((tmp_path / "two" / "head_training.json").read_text())["validation"]["num_images"] == 4


def test_the_script_fits_the_same_masks_on_one_process_and_on_two(drawn, tmp_path):
    launchers = {
        1: ("accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"),
        # On CPUs `accelerate launch` wants MPI for several processes; on GPUs it does what torchrun does here.
        2: ("torchrun", "--nproc_per_node", "2"),
    }
    masks = []
    for processes, launcher in launchers.items():
        out = tmp_path / str(processes)
        run(
            *(*launcher, "training/train_segmentation_head.py", "--model", drawn / "ddpm"),
            *("--dataset_name", drawn / "data", "--num_members", "3", "--recipe", "fast", "--output_dir", out),
            OMP_NUM_THREADS="1",
        )
        assert json.loads((out / "head_training.json").read_text())["num_processes"] == processes
        pipe = load_pipeline(str(out), dtype="float32")
        pictures = sorted((drawn / "data" / "test" / "images").iterdir())
        masks.append(np.stack(pipe.segment(pictures, output_type="np").masks))
    assert (masks[0] == masks[1]).mean() > 0.97 and len(np.unique(masks[0])) == 3
