# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Contents of the files that a run reads, so that it is not resumed over others."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path


logger = logging.getLogger(__name__)

LISTED = 10_000  # files that a record lists one by one; of more it holds one hash
BY_NAME = "known by name alone"


def contents_of(names: Iterable[object]) -> dict[str, str | dict[str, str]]:
    """Sizes and SHA-256 of files, and of all files below folders.

    Linked folders are followed. Of folders with more than `LISTED` files one hash over all is kept. Addresses, and
    names of nothing on this machine, are known by name alone; a warning says so for addresses. `None` is left out.

    Examples:
        >>> contents_of(["cat.png"])
        {'cat.png': '1093 bytes, sha256 0b0a…'}
    """
    given = [os.fspath(name) if isinstance(name, (str, os.PathLike)) else str(name) for name in names if name]
    found: dict[str, str | dict[str, str]] = {}
    for name in given:
        if os.path.isdir(name):
            found[name] = listed({path: file_contents(Path(name, path)) for path in sorted(_files_below(name))})
        else:
            found[name] = file_contents(name) if os.path.isfile(name) else BY_NAME
    addresses = [name for name in given if "://" in name]
    if addresses:
        more = f" and {len(addresses) - 1} more are" if len(addresses) > 1 else " is"
        logger.warning("%s%s %s: changes there do not keep a run from being resumed.", addresses[0], more, BY_NAME)
    return found


def file_contents(path: str | os.PathLike) -> str:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return f"{file.tell()} bytes, sha256 {digest.hexdigest()}"


def bytes_contents(data: bytes) -> str:
    """What [`file_contents`] gives of a file with these bytes."""
    return f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"


def listed(found: dict[str, str]) -> dict[str, str]:
    """The same, or one hash over all if there are more than `LISTED`."""
    if len(found) <= LISTED:
        return found
    digest = hashlib.sha256()
    for name, content in found.items():
        digest.update(f"{name}\0{content}\n".encode(errors="surrogateescape"))
    return {f"all {len(found)} together": f"sha256 {digest.hexdigest()}"}


def differences(there: object, now: object) -> list[str]:
    """Names of what differs between two nested contents, such as `unet.weights`; empty if only one is nested."""
    if not (isinstance(there, Mapping) and isinstance(now, Mapping)):
        return []
    found = []
    for name in dict.fromkeys([*now, *there]):
        if name not in there or name not in now or there[name] != now[name]:
            below = differences(there.get(name), now.get(name))
            found += [f"{name}.{part}" for part in below] or [str(name)]
    return found


def _files_below(folder: str) -> Iterator[str]:
    """Paths below a folder of its files, each linked folder once."""
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = sorted(name for name in folders if os.path.realpath(os.path.join(root, name)) not in seen)
        for name in files:
            if os.path.isfile(os.path.join(root, name)):
                yield Path(os.path.relpath(os.path.join(root, name), folder)).as_posix()
