# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""`diffuseseg segment` on datasets, and on several processes."""

import importlib.util
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from diffuseseg_diffusers.images.formats.pictures import PictureRaster
from diffuseseg_diffusers.pipelines.loading import load_pipeline

from ..conftest import ROOT, draw, run


def encoded(pixels):
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "png")
    return stored.getvalue()


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A dataset of 23 drawings in three Parquet files, of which row 7 is broken."""
    folder = tmp_path_factory.mktemp("collection")
    cells = [{"bytes": encoded(draw((16 + i % 3, 20), i)[0]), "path": f"{i}.png"} for i in range(23)]
    cells[7] = {"bytes": cells[7]["bytes"][:60], "path": "7.png"}
    features = Features({"image": ImageFeature(decode=False)})
    for k, part in enumerate((cells[:10], cells[10:15], cells[15:])):
        dataset = Dataset.from_dict({"image": part}, features=features).cast(Features({"image": ImageFeature()}))
        dataset.to_parquet(folder / "data" / f"train-{k:05d}-of-00003.parquet")
    return folder


def files(folder):
    """Bytes of all files that a run left."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".diffuseseg-run.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def test_a_dataset_becomes_a_dataset_with_masks(drawn, collection, tmp_path):
    out = tmp_path / "out"
    given = ("--model", drawn / "model", "--rows_per_file", "8", "--copy_images", "--batch_size", "4")
    result = run("diffuseseg", "segment", "--dataset_name", collection, *given, "--output_dir", out, expect=1)
    assert "22 of 23 images segmented" in result.stdout and "7.png" in (out / "unreadable.jsonl").read_text()
    assert sorted(files(out)) == [
        *(f"data/train-000000{k}.parquet" for k in range(3)),
        *("id2label.json", "segmentation.json", "unreadable.jsonl"),
    ]
    rows = load_dataset(str(out), split="train")
    assert len(rows) == 22 and rows["path"][:2] == ["0.png", "1.png"] and "7.png" not in rows["path"]
    pipe = load_pipeline(str(drawn / "model"))
    for row in (rows[0], rows[21]):
        image = draw((16 + int(row["index"]) % 3, 20), int(row["index"]))[0]
        assert np.array_equal(np.asarray(row["image"]), image)
        expected = pipe.segment([image], output_type="np")
        assert np.array_equal(np.asarray(row["mask"]), expected.masks[0]) and row["mask"].mode == "P"
        assert (row["height"], row["width"]) == image.shape
        share = [(expected.masks[0] == i).mean() for i in range(3)]
        assert row["class_fractions"] == pytest.approx(share, abs=1e-6) and row["uncertainty"] >= 0
    summary = json.loads((out / "segmentation.json").read_text())
    assert (summary["rows"], summary["unreadable"], summary["files"]) == (22, 1, 3)
    assert (
        "is complete" in run("diffuseseg", "segment", "--dataset_name", collection, *given, "--output_dir", out).stdout
    )


def test_a_stream_gives_the_same_masks_shard_by_shard(drawn, collection, tmp_path):
    given = ("--model", drawn / "model", "--dataset_name", collection, "--rows_per_file", "4")
    run("diffuseseg", "segment", *given, "--output_dir", tmp_path / "whole", expect=1)
    run("diffuseseg", "segment", *given, "--streaming", "--output_dir", tmp_path / "stream", expect=1)
    names = [name for name in files(tmp_path / "stream") if name.startswith("data/")]
    assert len(names) == 3 + 2 + 2 and names[0] == "data/train-00000-0000000.parquet"
    one, other = (load_dataset(str(tmp_path / name), split="train") for name in ("whole", "stream"))
    assert one["path"] == other["path"] and "image" not in one.column_names
    assert one["index"] == [i for i in range(23) if i != 7] and "shard" not in one.column_names
    places = [(shard, i) for shard, rows in enumerate((10, 5, 8)) for i in range(rows) if (shard, i) != (0, 7)]
    assert list(zip(other["shard"], other["index"])) == places
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one["mask"], other["mask"]))


def test_what_segment_wrote_is_pushed_without_folders_of_this_machine(drawn, hub, tmp_path):
    """Was: refused, as what `segment` left and no dataset."""
    for i in range(3):
        Image.fromarray(draw((16, 20), i)[0]).save(tmp_path / f"{i}.png")
    for kind, more in (("whole", ("--copy_images",)), ("masks", ())):
        given = ("--model", drawn / "model", "--format", "parquet", "--output_dir", tmp_path / kind, *more)
        run("diffuseseg", "segment", *(tmp_path / f"{i}.png" for i in range(3)), *given)
        run("diffuseseg", "push", tmp_path / kind, f"alice/{kind}")
        rows = load_dataset(f"alice/{kind}", split="train", cache_dir=tmp_path / "cache")
        assert rows["path"] == ["0.png", "1.png", "2.png"] and rows["index"] == [0, 1, 2]
        there = load_dataset(str(tmp_path / kind), split="train")
        assert there["path"][0] == str(tmp_path / "0.png")
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(rows["mask"], there["mask"]))
        card = hub.files("datasets", f"alice/{kind}")["README.md"].decode()
        assert "| 1 | disc |" in card and ("samples.png" in card) == (kind == "whole")
    files = tmp_path / "files"
    run("diffuseseg", "segment", tmp_path / "0.png", "--model", drawn / "model", "--output_dir", files)
    assert "holds what `diffuseseg segment` left" in run("diffuseseg", "push", files, "alice/x", expect=1).stderr


def test_files_go_into_parquet_too(drawn, tmp_path):
    for i in range(3):
        Image.fromarray(draw((16, 20), i)[0]).save(tmp_path / f"{i}.png")
    images = [tmp_path / f"{i}.png" for i in range(3)]
    given = ("--model", drawn / "model", "--format", "parquet", "--output_dir", tmp_path / "out")
    run("diffuseseg", "segment", *images, *given)
    rows = load_dataset(str(tmp_path / "out"), split="train")
    assert rows["path"] == [str(path) for path in images]
    assert PictureRaster(images[0], "a").size == (16, 20) == np.asarray(rows[0]["mask"]).shape


def worker_command(drawn, collection, out, *more):
    command = [sys.executable, "-m", "diffuseseg_diffusers", "segment", "--dataset_name", str(collection), *more]
    return [*command, "--model", str(drawn / "model"), "--rows_per_file", "2", "--output_dir", str(out)]


def start(command, folder=ROOT, **env):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_processes_two_launches_and_kills_leave_the_same_bytes(drawn, collection, tmp_path):
    once = worker_command(drawn, collection, tmp_path / "once")
    assert start(once).wait(timeout=120) == 1  # one image is broken
    expected = files(tmp_path / "once")
    # Two launches at once, each of two processes; a worker and a driver are killed on the way.
    out = tmp_path / "out"
    command = worker_command(drawn, collection, out, "--tasks", "2")
    launches = [start(command), start(command)]
    deadline = time.time() + 100
    while not list(out.glob("data/*.parquet")) and time.time() < deadline:
        time.sleep(0.02)
    launches[0].send_signal(signal.SIGKILL)
    assert launches[1].wait(timeout=120) == 1, launches[1].stdout.read()
    launches[0].wait()
    assert start(command).wait(timeout=120) in (0, 1)
    assert files(out) == expected


@pytest.mark.slow
def test_slurm_gets_a_job_whose_tasks_share_the_run(drawn, collection, tmp_path):
    pytest.importorskip("datatrove")
    tools = tmp_path / "bin"
    tools.mkdir()
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    # A stand-in for sbatch keeps the script that it gets, and the arguments, and gives a number.
    script = f"""#!/bin/bash
n=$(ls {jobs} | grep -c script)
for last; do :; done
cp "$last" {jobs}/$n.script
echo "$@" > {jobs}/$n.arguments
echo "Submitted batch job $((100 + n))"
"""
    for name, text in (
        ("sbatch", script),
        ("srun", '#!/bin/bash\nshift 3\nexec "$@"\n'),
        ("scontrol", "#!/bin/bash\necho node1\n"),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod((tools / name).stat().st_mode | stat.S_IXUSR)
    path = f"{tools}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    out = tmp_path / "out"
    options = ("--executor", "slurm", "--tasks", "2", "--executor_options", "partition=gpu", "time=00:10:00")
    command = worker_command(drawn, collection, out, *options, "gpus_per_task=1", "mem_per_cpu_gb=4")
    assert start(command, PATH=path).wait(timeout=120) == 0
    submitted = (jobs / "0.script").read_text()
    for line in ("partition=gpu", "time=00:10:00", "gpus=1", "array=0-1", "mem-per-cpu=4G"):
        assert f"--{line}" in submitted
    assert "launch_pickled_pipeline" in submitted
    assert not (out / "segmentation.json").exists()
    slurm = {"SLURM_NODELIST": "node1", "SLURM_JOB_ID": "100"}
    job = ["bash", str(jobs / "0.script")]
    tasks = [start(job, tmp_path, PATH=path, SLURM_ARRAY_TASK_ID=str(i), **slurm) for i in range(2)]
    assert [task.wait(timeout=200) for task in tasks] == [0, 0], tasks[0].stdout.read().decode()[-3000:]
    assert len(load_dataset(str(out), split="train")) == 22
    assert "is complete" in run("diffuseseg", *command[3:]).stdout
    wrong = run("diffuseseg", *worker_command(drawn, collection, tmp_path / "o", "--executor", "slurm")[3:], expect=1)
    assert "Slurm needs a partition and a time" in wrong.stderr


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs ray")
def test_ray_runs_two_workers_that_share_the_run(drawn, collection, tmp_path):
    out = tmp_path / "out"
    options = ("--executor", "ray", "--tasks", "2", "--executor_options", "cpus_per_task=1", "mem_per_cpu_gb=1")
    process = start(worker_command(drawn, collection, out, *options), RAY_DEDUP_LOGS="0")
    said = process.communicate(timeout=250)[0].decode()
    assert process.returncode == 1 and "22 of 23 images segmented" in said, said[-3000:]
    assert len(load_dataset(str(out), split="train")) == 22


def test_options_of_executors_are_checked(drawn, collection, tmp_path):
    given = ("segment", "--dataset_name", collection, "--model", drawn / "model", "--output_dir", tmp_path / "out")
    for words, message in (
        (("--tasks", "0"), "--tasks must be at least 1"),
        (("--executor_options", "partition=a"), "--executor_options are for --executor slurm or ray"),
        (("--executor", "slurm", "--executor_options", "partition"), "of the form name=value, got 'partition'"),
        (("--streaming", "--format", "files"), "leave --format files out"),
        (("--instances", "components"), "exclude each other"),
    ):
        if "slurm" in words and not importlib.util.find_spec("datatrove"):
            continue
        result = run("diffuseseg", *given, *words, expect=1)
        assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
