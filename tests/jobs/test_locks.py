# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One process for itself, or several that share; who is killed locks nobody out."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.locks import (
    hold_folder,
    is_lock,
    join_folder,
    lock_folder,
    try_lock_folder,
    unlock_folder,
)

from ..conftest import ROOT


PROGRAM = (
    "import sys; from pathlib import Path; from diffuseseg_diffusers.jobs import locks\n"
    "getattr(locks, sys.argv[1])(Path(sys.argv[2])); print('done', flush=True); sys.stdin.read()"
)


@pytest.fixture
def start() -> Iterator[Callable[[str, Path], subprocess.Popen]]:
    """Starts processes that lock a folder until they are killed or their standard input ends."""
    started = []

    def begin(function: str, folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, function, folder]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        assert started[-1].stdout.readline() == "done\n"
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()
    unlock_folder()


def test_a_folder_is_of_one_process_until_it_ends_even_by_a_kill(tmp_path, start):
    other = start("lock_folder", tmp_path)
    with pytest.raises(UserError, match="Another process is at work in"):
        lock_folder(tmp_path)
    other.kill()
    other.wait()
    lock_folder(tmp_path)
    assert all(is_lock(path.name) for path in tmp_path.iterdir())
    unlock_folder()
    assert not list(tmp_path.iterdir())


def test_those_who_share_keep_out_who_wants_it_alone_and_the_killed_do_not(tmp_path, start):
    one, two = (start("join_folder", tmp_path) for _ in range(2))
    join_folder(tmp_path)
    unlock_folder()
    assert not try_lock_folder(tmp_path)
    one.kill()
    one.wait()
    assert not try_lock_folder(tmp_path)
    two.communicate()  # ends well
    assert try_lock_folder(tmp_path) and len(list(tmp_path.iterdir())) == 1
    join_folder(tmp_path)  # as who begins a run and shares it from then on
    three = start("join_folder", tmp_path)
    assert not try_lock_folder(tmp_path)
    three.communicate()
    assert try_lock_folder(tmp_path)


def test_a_process_locks_one_folder_and_holds_any_number(tmp_path, start):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    assert hold_folder(folders[0]) and hold_folder(folders[0])
    lock_folder(folders[1])
    lock_folder(folders[2])
    assert not list(folders[1].iterdir())
    assert not try_lock_folder(folders[0])
    program = PROGRAM.replace("getattr", "print(getattr").replace("[2]))", "[2])))")
    command = [sys.executable, "-c", program, "hold_folder", folders[0]]
    found = subprocess.run(command, input="", capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.startswith("False")
