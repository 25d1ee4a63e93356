# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg generate`, and the folder that it leaves."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import load_dataset

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.cli import main

from ..conftest import ROOT, dataset_of, draw, make_head, make_pipeline, run


# Bytes are compared with those of other processes, which run with one thread.
pytestmark = pytest.mark.usefixtures("one_thread")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ARGUMENTS = ("--num_samples", "22", "--batch_size", "4", "--num_inference_steps", "2", "--seed", "5")
ARGUMENTS += ("--shard_mb", "0.004", "--dtype", "float32", "--device", "cpu")


def generate(*given, expect: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", *map(str, given)])
    assert ended.value.code == expect


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, label_names=["sky", "disc", "bar"])
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The dataset of a run that nothing disturbed, in a process of its own."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    run("diffuseseg", "generate", "--model", model, *ARGUMENTS, "--output_dir", folder, **ONE_THREAD)
    return folder


def shards(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "data").glob("*"))}


def test_the_folder_is_a_dataset_with_masks_and_figures(alone, tmp_path):
    dataset = load_dataset(str(alone), split="train", cache_dir=str(tmp_path))
    assert len(dataset) == 20  # of 22, the most uncertain tenth left out
    assert dataset["index"] == sorted(dataset["index"])
    labeled = load_labeled_images(alone, cache_dir=str(tmp_path))
    assert labeled.label_names == ["sky", "disc", "bar"] and labeled[0].mask.shape == (16, 16)
    assert {"samples.png", "uncertainty.png", "id2label.json", "generation.json"} <= {p.name for p in alone.iterdir()}
    assert len(shards(alone)) > 1 and not (alone / ".parts").exists()
    result = json.loads((alone / "generation.json").read_text())["result"]
    assert result["num_kept"] == 20 and sum(s["rows"] for s in result["shards"]) == 20
    assert np.isclose(result["mean_uncertainty"], np.array(dataset["uncertainty"]).mean())


def test_a_complete_run_is_not_made_again_and_another_one_is_refused(model, alone, capsys):
    before = {name: (alone / "data" / name).stat().st_mtime_ns for name in shards(alone)}
    generate("--model", model, *ARGUMENTS, "--output_dir", alone)
    assert "is complete" in capsys.readouterr().out
    assert before == {name: (alone / "data" / name).stat().st_mtime_ns for name in shards(alone)}
    generate("--model", model, *ARGUMENTS, "--seed", "6", "--output_dir", alone, expect=1)
    assert "--seed 5 (now 6)" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_the_dataset_that_one_gives(model, alone, tmp_path):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "training/generate_dataset.py", "--model", model]
    run(*command, *ARGUMENTS, "--output_dir", tmp_path / "out", **ONE_THREAD)
    assert shards(tmp_path / "out") == shards(alone)


@pytest.mark.slow
def test_killed_it_resumes_and_ends_with_the_same_bytes(model, alone, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diffuseseg_diffusers", "generate", "--model", str(model), *ARGUMENTS]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [*command, "--output_dir", str(out)], cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **ONE_THREAD}
        )
    deadline = time.monotonic() + 120
    while len(list(out.glob(".parts/*.parquet"))) < 2 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    done = {p: p.stat().st_mtime_ns for p in (out / ".parts").glob("*.parquet")}
    (out / "data").mkdir()
    (out / "data" / ".train-00000-of-00003.parquet.123.partial").write_bytes(b"cut off")
    generate("--model", model, *ARGUMENTS, "--output_dir", out)
    assert done and shards(out) == shards(alone)
    assert not list(out.rglob("*.partial"))


def test_overwriting_removes_the_runs_own_files_alone_and_only_if_the_inputs_are_valid(model, tmp_path, capsys):
    small = ("--model", model, *ARGUMENTS, "--num_samples", "4", "--output_dir", tmp_path / "out")
    generate(*small)
    assert f"4 of 4 images are in {tmp_path / 'out'}, in Parquet files: " in capsys.readouterr().out
    before = shards(tmp_path / "out")
    other = ("--seed", "6", "--overwrite")
    generate(*small, *other, "--model", tmp_path / "nothing", expect=1)
    generate(*small, *other, "--train_dataset_name", tmp_path / "nothing", expect=1)
    assert shards(tmp_path / "out") == before
    (tmp_path / "out" / "data" / "mine.txt").write_text("mine")
    generate(*small, *other, expect=1)
    assert "(data/mine.txt)" in capsys.readouterr().err
    (tmp_path / "out" / "data" / "mine.txt").rename(tmp_path / "mine.txt")
    generate(*small, *other)
    assert shards(tmp_path / "out").keys() == before.keys() and shards(tmp_path / "out") != before


def test_what_cannot_be_generated_is_a_sentence(model, tmp_path, capsys):
    make_pipeline().save_pretrained(tmp_path / "headless")
    say = ("--num_samples", "4", "--num_inference_steps", "2", "--output_dir", tmp_path / "out")
    for given, message in (
        (("--model", tmp_path / "headless"), "has no segmentation head"),
        (("--model", model, "--num_samples", "0"), "--num_samples must be at least 1"),
        (("--model", model, "--min_distance", "0.99", "--drop_uncertain", "0.9"), "Nothing of 4 images would be left"),
    ):
        generate(*say, *given, expect=1)
        assert message in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    generate("--model", model, *say[:-1], tmp_path / "full", expect=1)
    assert "exists and is kept" in capsys.readouterr().err


def test_a_synthetic_dataset_is_pushed_with_how_it_was_made_and_no_local_path(hub, model, tmp_path):
    trained_on = tmp_path / "trained-on"
    dataset_of(*zip(*[draw((16, 16), i) for i in range(3)])).to_parquet(trained_on / "train.parquet")
    generate(
        *("--model", model, "--num_samples", "4", "--batch_size", "2", "--num_inference_steps", "2", "--push_to_hub"),
        *("--hub_dataset_id", "alice/synthetic", "--output_dir", tmp_path / "out"),
        *("--train_data_dir", trained_on, "--cache_dir", tmp_path / "cache"),
    )
    files = hub.files("datasets", "alice/synthetic")
    assert {"samples.png", "uncertainty.png", "data/train-00000-of-00001.parquet"} < set(files)
    card = files["README.md"].decode()
    for said in ("## How it was made", "DDIMScheduler, 2 steps", "4 images, of which 4 are kept", "- synthetic"):
        assert said in card, said
    assert json.loads(files["generation.json"])["settings"]["train_dataset_name"] == "trained-on"
    assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
    loaded = load_labeled_images("alice/synthetic", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 4 and loaded.label_names == ["sky", "disc", "bar"]
