# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg generate`, in fresh processes."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from diffuseseg_diffusers import load_labeled_images

from .conftest import ROOT, make_head, make_pipeline, run


ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ARGUMENTS = ("--num_samples", "22", "--batch_size", "4", "--num_inference_steps", "2", "--seed", "5")
ARGUMENTS += ("--shard_mb", "0.004", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, label_names=["sky", "disc", "bar"])
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model, tmp_path_factory):
    """The dataset of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("alone") / "out"
    run("diffuseseg", "generate", "--model", model, *ARGUMENTS, "--output_dir", folder, **ONE_THREAD)
    return folder


def shards(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "data").glob("*"))}


def test_the_folder_is_a_dataset_with_masks_and_pictures_to_look_at(alone, tmp_path):
    dataset = load_dataset(str(alone), split="train", cache_dir=str(tmp_path))
    assert len(dataset) == 20 and dataset["index"] == sorted(
        dataset["index"]
    )  # of 22, the most uncertain tenth left out
    labeled = load_labeled_images(alone, cache_dir=str(tmp_path))
    assert labeled.label_names == ["sky", "disc", "bar"] and labeled[0].mask.shape == (16, 16)
    assert {"samples.png", "uncertainty.png", "id2label.json", "generation.json"} <= {p.name for p in alone.iterdir()}
    assert len(shards(alone)) > 1 and not (alone / ".parts").exists()
    result = json.loads((alone / "generation.json").read_text())["result"]
    assert result["num_kept"] == 20 and sum(s["rows"] for s in result["shards"]) == 20
    uncertain = np.array(dataset["uncertainty"])
    assert np.isclose(result["mean_uncertainty"], uncertain.mean())


def test_a_run_that_is_complete_is_not_made_again_and_another_one_is_refused(model, alone):
    before = {name: (alone / "data" / name).stat().st_mtime_ns for name in shards(alone)}
    said = run("diffuseseg", "generate", "--model", model, *ARGUMENTS, "--output_dir", alone, **ONE_THREAD)
    assert "is complete" in said.stdout
    assert before == {name: (alone / "data" / name).stat().st_mtime_ns for name in shards(alone)}
    other = list(ARGUMENTS)
    other[other.index("--seed") + 1] = "6"
    said = run("diffuseseg", "generate", "--model", model, *other, "--output_dir", alone, expect=1, **ONE_THREAD)
    assert "seed 5 (now 6)" in said.stderr and "Traceback" not in said.stderr


def test_two_processes_give_the_dataset_that_one_gives(model, alone, tmp_path):
    command = ["torchrun", "--standalone", "--nproc_per_node", "2", "training/generate_dataset.py", "--model", model]
    run(*command, *ARGUMENTS, "--output_dir", tmp_path / "out", **ONE_THREAD)
    assert shards(tmp_path / "out") == shards(alone)


def test_killed_four_times_it_ends_with_the_same_bytes(model, alone, tmp_path):
    command = [sys.executable, "-m", "diffuseseg_diffusers.cli", "generate", "--model", str(model), *ARGUMENTS]
    command += ["--output_dir", str(tmp_path / "out")]
    chance = random.Random(0)
    for kill in range(4):
        with open(tmp_path / f"log-{kill}", "w") as log:
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, **ONE_THREAD})
        wanted, deadline = kill + 1, time.monotonic() + 120
        while len(list((tmp_path / "out").glob(".parts/*.parquet"))) < wanted and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
    run("diffuseseg", "generate", "--model", model, *ARGUMENTS, "--output_dir", tmp_path / "out", **ONE_THREAD)
    assert shards(tmp_path / "out") == shards(alone)
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_disk_that_is_full_in_the_middle_of_a_shard_costs_nothing(model, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = ("diffuseseg", "generate", "--model", model, *ARGUMENTS)
    command += ("--num_samples", "60", "--batch_size", "1", "--shard_mb", "500")
    run(*command, "--output_dir", whole, **ONE_THREAD)
    (shard,) = shards(whole).values()
    # The kernel refuses to let files grow further, as it does on a full disk: batches fit, half a shard does.
    limit = f"ulimit -f {len(shard) // 2048}; trap '' XFSZ; exec " + shlex.join(
        [str(Path(sys.executable).parent / command[0]), *map(str, command[1:])]
    )
    said = run("bash", "-c", f"{limit} --output_dir {cut}", expect=1, **ONE_THREAD)
    assert "train-00000-of-00001.parquet could not be written" in said.stderr
    assert "the same command line goes on" in said.stderr and "Traceback" not in said.stderr
    assert not shards(cut) and len(list((cut / ".parts").iterdir())) == 60
    run(*command, "--output_dir", cut, **ONE_THREAD)
    assert shards(cut) == shards(whole)


def test_what_cannot_be_generated_is_a_sentence(model, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "headless")
    say = (
        "diffuseseg",
        "generate",
        "--num_samples",
        "4",
        "--num_inference_steps",
        "2",
        "--output_dir",
        tmp_path / "out",
    )
    said = run(*say, "--model", tmp_path / "headless", expect=1)
    assert "has no segmentation head" in said.stderr
    said = run(*say, "--model", model, "--min_distance", "0.99", "--drop_uncertain", "0.9", expect=1)
    assert "Nothing of 4 images would be left" in said.stderr
    assert "Traceback" not in said.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    said = run(*say[:-1], tmp_path / "full", "--model", model, expect=1)
    assert "exists and is kept" in said.stderr


def test_a_synthetic_dataset_is_pushed_with_how_it_was_made(hub, model, tmp_path):
    run(
        *("diffuseseg", "generate", "--model", model, "--num_samples", "4", "--batch_size", "2"),
        *("--num_inference_steps", "2", "--push_to_hub", "--hub_dataset_id", "alice/synthetic"),
        *("--output_dir", tmp_path / "out"),
        HF_HUB_OFFLINE="0",
        **ONE_THREAD,
    )
    files = hub.files("datasets", "alice/synthetic")
    assert {"samples.png", "uncertainty.png", "data/train-00000-of-00001.parquet"} < set(files)
    card = files["README.md"].decode()
    for said in ("## How it was made", "DDIMScheduler, 2 steps", "4 images, of which 4 are kept", "- synthetic"):
        assert said in card, said
    loaded = load_labeled_images("alice/synthetic", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 4 and loaded.label_names == ["sky", "disc", "bar"]
