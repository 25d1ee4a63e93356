# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One line for what users can mend, a traceback for what is a bug of ours."""

import errno
import platform
import signal
import subprocess
import sys

import pytest

from diffuseseg_diffusers.jobs.command import run_command
from diffuseseg_diffusers.jobs.errors import IncompleteError, NotFiniteError, StoppedError, UserError
from diffuseseg_diffusers.jobs.files import atomic_file


def raising(error: BaseException):
    def command():
        raise error

    return command


def exit_status(command) -> int:
    with pytest.raises(SystemExit) as end:
        run_command(command)
    return end.value.code


MENDABLE = [
    (UserError("There is no folder x."), "error: There is no folder x."),
    (NotFiniteError("The loss is not finite."), "error: The loss is not finite."),
    (
        IncompleteError("1 image could not be read; it is listed in x."),
        "error: 1 image could not be read; it is listed in x.",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), "error: /x: Permission denied"),
    (OSError(errno.ENOSPC, "No space left"), "error: No space left"),
]


@pytest.mark.parametrize("error, line", MENDABLE)
def test_what_users_can_mend_is_one_line(error, line, capsys, monkeypatch):
    monkeypatch.delenv("DIFFUSESEG_DEBUG", raising=False)
    assert exit_status(raising(error)) == 1
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), FileNotFoundError(errno.ENOENT, "No file", "x")])
def test_a_bug_of_ours_shows_its_traceback(error, capsys, monkeypatch):
    """Point 11 of what was found: one line for every `ValueError` hid bugs."""
    monkeypatch.delenv("DIFFUSESEG_DEBUG", raising=False)
    with pytest.raises(type(error)):
        run_command(raising(error))
    assert capsys.readouterr().err == ""


def test_every_error_shows_its_traceback_with_diffuseseg_debug(monkeypatch):
    monkeypatch.setenv("DIFFUSESEG_DEBUG", "1")
    for error, _ in MENDABLE:
        with pytest.raises(type(error)):
            run_command(raising(error))
    monkeypatch.setenv("DIFFUSESEG_DEBUG", "0")
    assert exit_status(raising(UserError("x"))) == 1


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, capsys):
    def command():
        with atomic_file(tmp_path / "mask.png"):
            raise OSError(errno.ENOSPC, "No space left on device")

    assert exit_status(command) == 1
    line = f"error: {tmp_path / 'mask.png'} could not be written (No space left on device)\n"
    assert capsys.readouterr().err == line


def test_the_status_of_a_command_is_that_of_the_process(capsys):
    assert [exit_status(lambda s=s: s) for s in (None, 0, 3)] == [0, 0, 3]
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert exit_status(raising(StoppedError("12 steps are saved.", signal.SIGTERM))) == 143
    assert capsys.readouterr().err == "12 steps are saved.\n"


def test_errors_for_users_are_still_value_errors():
    assert issubclass(UserError, ValueError) and issubclass(NotFiniteError, (UserError, FloatingPointError))


def test_what_a_command_frees_is_not_paid_for_again_page_by_page():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("other C libraries are left as they are")
    program = (
        "import ctypes, resource\n"
        "from diffuseseg_diffusers.jobs.command import keep_freed_memory\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]\n"
        "libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]\n"
        "def faults(size):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(10):\n"
        "        block = libc.malloc(size)\n"
        "        libc.memset(block, 1, size)\n"
        "        libc.free(block)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "size = 30 * 2**20\n"
        "first = faults(size)\n"
        "assert keep_freed_memory()\n"
        "faults(size)\n"
        "print(first, faults(size))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, ended.stdout.split())
    assert after < 20 < before
