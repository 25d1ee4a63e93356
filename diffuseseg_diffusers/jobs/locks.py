# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Folders that a process keeps others of DiffuseSeg out of."""

import os
import time
from pathlib import Path

from .errors import UserError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HELD: dict[tuple[int, int], int] = {}  # descriptors of folders that this process holds until it ends
_LOCKED: list[int] = []  # descriptor of the folder that this process has locked


def lock_folder(folder: Path) -> None:
    """Keeps other processes of DiffuseSeg out of a run's folder until this one ends, or locks another folder.

    Raises:
        UserError: Another process is at work in it.
    """
    if not try_lock_folder(folder):
        raise UserError(f"Another process is at work in {folder}; wait for it, or choose another --output_dir.")


def try_lock_folder(folder: Path) -> bool:
    """Locks a folder as [`lock_folder`] does, if nobody else has; whether it did."""
    return fcntl is None or _lock(folder, fcntl.LOCK_EX)  # Windows has no such locks


def join_folder(folder: Path) -> None:
    """Locks a folder for this process and others that join it, and against those that want it for themselves.

    Raises:
        UserError: Another process has it for itself.
    """
    for _ in range(50):  # one that begins has it for itself for a moment
        if fcntl is None or _lock(folder, fcntl.LOCK_SH):
            return
        time.sleep(0.1)
    raise UserError(f"Another process is at work in {folder}; wait for it, or choose another --output_dir.")


def _lock(folder: Path, kind: int) -> bool:
    """Locks a folder in place of what this process has locked; whether that was possible."""
    number = os.stat(folder).st_ino
    if not _LOCKED or os.fstat(_LOCKED[0]).st_ino != number:
        unlock_folder()
        _LOCKED.append(os.open(folder, os.O_RDONLY))
    try:
        fcntl.flock(_LOCKED[0], kind | fcntl.LOCK_NB)
    except BlockingIOError:
        unlock_folder()
        return False
    except OSError:  # a file system without locks
        unlock_folder()
    return True


def hold_folder(folder: Path) -> bool:
    """Keeps other processes out of a folder until this one ends, whatever else it locks; whether nobody else has it."""
    stat = os.stat(folder)
    key = (stat.st_dev, stat.st_ino)
    if fcntl is None or key in _HELD:
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:  # a file system without locks
        pass
    _HELD[key] = descriptor
    return True


def unlock_folder() -> None:
    """Lets other processes into the folder that this one has locked; the end of a process does so too."""
    while _LOCKED:
        os.close(_LOCKED.pop())
