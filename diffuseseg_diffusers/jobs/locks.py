# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders and parts of runs that a process keeps others of DiffuseSeg out of.

A lock is a hidden file that is locked, not one that is there: what a killed process leaves locks nobody out. Who has a
folder for itself holds one lock; processes that share a run hold one each.
"""

import atexit
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError


logger = logging.getLogger(__name__)

LOCK = ".diffuseseg.lock"  # of who has a folder for itself, or joins it this moment
_SHARED = ".diffuseseg-{}.lock"  # of each process that shares a run
_HELD: dict[Path, FileLock] = {}  # until this process ends
_LOCKED: list[FileLock] = []  # of the folder that this process has locked


def is_lock(name: str) -> bool:
    """Whether a file of that name in an output folder is a lock."""
    return name == LOCK or (name.startswith(_SHARED.split("{")[0]) and name.endswith(".lock"))


def at_work(folder: Path) -> UserError:
    """The error for a folder that another process has."""
    return UserError(f"Another process is at work in {folder}; wait for it, or choose another --output_dir.")


def lock_folder(folder: Path) -> None:
    """Keeps other processes of DiffuseSeg out of a run's folder until this one ends, or locks another folder; raises
    [`UserError`] if another one is at work in it."""
    if not try_lock_folder(folder):
        raise at_work(folder)


def try_lock_folder(folder: Path) -> bool:
    """Locks a folder as [`lock_folder`] does, if nobody else has; whether it did."""
    own = _own(folder)
    lock = _take(folder / LOCK)
    others = [path for path in folder.glob(_SHARED.format("*")) if path != own] if lock else []
    if lock is None or not all(map(_is_free, others)):
        _release(lock)
        unlock_folder()
        return False
    _hold(lock)
    return True


def join_folder(folder: Path) -> None:
    """Locks a folder for this process and others that join it, and against those that want it for themselves; raises
    [`UserError`] if another one has it for itself."""
    for _ in range(50):  # one that begins has it for itself for a moment
        lock = _take(folder / LOCK)
        if lock is not None:
            shared = _take(_own(folder))
            if lock not in _LOCKED:
                _release(lock)
            _hold(shared)
            return
        time.sleep(0.1)
    raise at_work(folder)


def hold_folder(folder: Path) -> bool:
    """Takes an exclusive lock on a folder until this process ends, whatever else it locks; returns success."""
    folder = folder.resolve()
    lock = _HELD.get(folder) or _take(folder / LOCK, singleton=False)
    if lock is not None:
        _HELD[folder] = lock
    return lock is not None


@atexit.register
def unlock_folder() -> None:
    """Lets other processes into the folder that this one has locked; the end of a process does so too."""
    while _LOCKED:
        _release(_LOCKED.pop())


@contextmanager
def taken(path: Path) -> Iterator[bool]:
    """Takes a part for this process until the block ends, by a lock beside it; yields whether it could."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _take(path.with_name(f".{path.name}.lock"), singleton=False)
    try:
        yield lock is not None
    finally:
        _release(lock)


def _own(folder: Path) -> Path:
    return folder / _SHARED.format(f"{platform.node()}-{os.getpid()}")


def _hold(lock: FileLock | None) -> None:
    """Holds this lock in place of what was held."""
    before = [held for held in _LOCKED if held is not lock]
    _LOCKED[:] = [lock] if lock else []
    for held in before:
        _release(held)


def _take(path: Path, singleton: bool = True) -> FileLock | None:
    """Locks a file, or has it locked already if `singleton`; `None` if another process has."""
    lock = FileLock(path, thread_local=False, is_singleton=singleton)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except NotImplementedError:
        logger.warning("%s is on a file system without locks; start no second process there.", path.parent)
    return lock


def _is_free(path: Path) -> bool:
    """Whether nobody holds this lock; what a killed process left of it is removed."""
    lock = _take(path, singleton=False)
    _release(lock)
    return lock is not None


def _release(lock: FileLock | None) -> None:
    if lock is not None:
        if os.name != "nt":  # where it is removed by its release, and cannot be before
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release(force=True)
