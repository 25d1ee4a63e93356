# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tqdm.auto import tqdm

from diffuseseg_diffusers.jobs.files import write_text
from diffuseseg_diffusers.jobs.parts import Part, finish_parts, taken

from ..conftest import ROOT


WORKER = """
import sys, time
from pathlib import Path
from tqdm.auto import tqdm
from diffuseseg_diffusers.jobs.files import write_text
from diffuseseg_diffusers.jobs.parts import Part, finish_parts

folder, number, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def make(i, path):
    with open(folder / "made", "a") as log:
        log.write(f"{i}\\n")
    time.sleep(seconds)
    write_text(path, f"part {i}\\n")
def join():
    write_text(folder / "whole", "".join(path.read_text() for path in paths))
paths = [folder / f"{i:03d}" for i in range(number)]
parts = [Part(p, lambda i=i, p=p: make(i, p), 1, until=(folder / "whole",)) for i, p in enumerate(paths)]
finish_parts([*parts, Part(folder / "whole", join, needs=paths)], tqdm(disable=True))
"""


def start(folder, number=30, seconds=0.02):
    command = [sys.executable, "-c", WORKER, str(folder), str(number), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_processes_share_the_parts_and_each_is_made_once(tmp_path):
    workers = [start(tmp_path) for _ in range(3)]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0, 0]
    made = (tmp_path / "made").read_text().split()
    assert sorted(map(int, made)) == list(range(30))
    assert (tmp_path / "whole").read_text() == "".join(f"part {i}\n" for i in range(30))
    assert not list(tmp_path.glob(".*"))  # no lock is left


def test_whoever_is_killed_loses_nothing_and_the_others_go_on(tmp_path):
    rng = random.Random(0)
    alive = [start(tmp_path, 40, 0.05) for _ in range(2)]
    deadline = time.time() + 60
    while not (tmp_path / "made").exists() and time.time() < deadline:
        time.sleep(0.02)
    for _ in range(5):
        time.sleep(rng.uniform(0.05, 0.3))
        victim = alive.pop(rng.randrange(len(alive)))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        alive.append(start(tmp_path, 40, 0.05))
    assert [worker.wait(timeout=60) for worker in alive] == [0, 0]
    assert (tmp_path / "whole").read_text() == "".join(f"part {i}\n" for i in range(40))
    made = (tmp_path / "made").read_text().split()
    assert len(made) <= 40 + 5 and set(map(int, made)) == set(range(40))  # those that were under way are made again


def test_a_part_that_is_taken_is_not_taken_twice(tmp_path):
    with taken(tmp_path / "a") as mine, taken(tmp_path / "b") as other:
        assert mine and other
        with taken(tmp_path / "a") as again:
            assert not again
    with taken(tmp_path / "a") as again:
        assert again
    assert not list(tmp_path.iterdir())


def test_parts_wait_for_what_they_need_and_errors_come_through(tmp_path):
    order = []

    def make(name):
        order.append(name)
        write_text(tmp_path / name, name)

    parts = [
        Part(tmp_path / n, lambda n=n: make(n), needs=[tmp_path / m for m in needs])
        for n, needs in (("c", "ab"), ("a", ""), ("b", "a"))
    ]
    finish_parts(parts, tqdm(disable=True))
    assert order == ["a", "b", "c"]

    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        finish_parts([Part(tmp_path / "d", fail)], tqdm(disable=True))
    with taken(tmp_path / "d") as mine:
        assert mine
