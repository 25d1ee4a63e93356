# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Atomic files, and output folders that only their own run may replace.

A run's folder holds a record, `.diffuseseg-run.json`: which command made it, with which settings, and which files are
the run's own. Overwriting removes those files and nothing else; a folder with anything else in it is refused.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


RECORD = ".diffuseseg-run.json"


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its name once the block has ended well.

    Raises:
        OSError: It could not be written, as on a full disk; an old file of that name is kept.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(
            error.errno, f"{path} could not be written ({error.strerror or error}); an old one is kept"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: object) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Reads a JSON file.

    Raises:
        UserError: It is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON file ({error}); repair or remove it.") from error


def flush_to_disk(folder: Path) -> None:
    """Waits until the files are on the disk, so that a machine that dies does not leave empty ones under good names."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def check_output_folder(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that must not be written to, before the long work; removes nothing.

    Args:
        folder (`Path`): Where a run is to write; need not be there.
        overwrite (`bool`): Whether an earlier run's files may be replaced.

    Raises:
        UserError: The folder is a file; holds something, and `overwrite` is off; or holds what no run recorded.
    """
    _restore(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is needed; choose another --output_dir.")
    found = list(_files(folder))
    if found and not overwrite:
        raise UserError(f"{folder} exists and is kept; choose another --output_dir, or pass --overwrite.")
    foreign = _foreign(folder, found)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder} holds files that no run of DiffuseSeg recorded ({foreign[0]}{more}) and is kept; --overwrite "
            f"replaces a run's own files alone: move the others away, or choose another --output_dir."
        )


def clear_output_folder(folder: Path) -> None:
    """Removes the files that the folder's record lists; to be called once all inputs are known to be valid.

    Raises:
        UserError: There are other files.
    """
    check_output_folder(folder, overwrite=True)
    _remove_run(folder)


@contextmanager
def output_folder(folder: Path, overwrite: bool, command: str) -> Iterator[Path]:
    """Yields a temporary folder that takes the name of `folder` once the block has ended well.

    An old folder stays until then, and comes back if anything fails.

    Args:
        folder (`Path`): What is to be made.
        overwrite (`bool`): Whether an earlier run's folder may be replaced.
        command (`str`): For the record.

    Raises:
        UserError: See [`check_output_folder`].
    """
    folder = Path(os.path.abspath(folder))
    check_output_folder(folder, overwrite)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, replaced = folder.with_name(f".{folder.name}.{os.getpid()}.partial"), _replaced(folder)
    partial.mkdir()
    try:
        yield partial
        write_record(partial, command, owns=[exact_pattern(path) for path in _files(partial)])
        check_output_folder(folder, overwrite)  # it may have changed while the block ran
        if folder.exists():
            if replaced.exists():  # of a run that ended before it had removed all of it
                _remove_run(replaced)
                replaced.rmdir()
            folder.rename(replaced)
        partial.rename(folder)
    except BaseException:
        _restore(folder)
        raise
    finally:
        _remove_tree(partial)
    if replaced.exists():
        _remove_run(replaced)
        replaced.rmdir()


def write_record(folder: Path, command: str, owns: Iterable[str], settings: dict | None = None) -> None:
    """Writes a run's record into its folder.

    Args:
        folder (`Path`): The run's; made if it is not there.
        command (`str`): Which command the run is of.
        owns (iterable of `str`): Files of the run, as patterns of paths below the folder (`fnmatch`).
        settings (`dict`, *optional*): What its results depend on.
    """
    write_json(folder / RECORD, {"command": command, "owns": sorted(owns), "settings": settings or {}})


def read_record(folder: Path) -> dict | None:
    """A folder's record: `command`, `owns`, `settings`; `None` if it has none."""
    return read_json(folder / RECORD) if (folder / RECORD).is_file() else None


def _files(folder: Path) -> Iterator[str]:
    """Paths below a folder of all that is no folder, but for the record; links are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*links, *files]:
            path = os.path.relpath(os.path.join(root, name), folder)
            if path != RECORD:
                yield Path(path).as_posix()


def remove_partials(folder: Path) -> None:
    """Removes what a killed process left of [`atomic_file`]: temporary files of those that the record lists."""
    foreign = set(_foreign(folder, found := list(_files(folder))))
    for path in found:
        if path not in foreign and _without_partial(path) != path:
            (folder / path).unlink(missing_ok=True)


def _foreign(folder: Path, found: list[str]) -> list[str]:
    owns = (read_record(folder) or {"owns": []})["owns"]
    return sorted(
        path for path in found if not any(fnmatch.fnmatchcase(_without_partial(path), pattern) for pattern in owns)
    )


def _without_partial(path: str) -> str:
    """The path that [`atomic_file`] writes to under this temporary one; any other path as it is."""
    return re.sub(r"(^|/)\.([^/]+)\.\d+\.partial$", r"\1\2", path)


def _remove_run(folder: Path) -> None:
    """Removes the files of the folder's record, then the record, and folders that are empty because of it."""
    foreign = set(_foreign(folder, found := list(_files(folder))))
    parents = set()
    for path in found:
        if path not in foreign:
            (folder / path).unlink()
            parents |= set((folder / path).relative_to(folder).parents) - {Path(".")}
    (folder / RECORD).unlink(missing_ok=True)
    for parent in sorted(parents, key=lambda p: -len(p.parts)):
        if not any((folder / parent).iterdir()):
            (folder / parent).rmdir()


def _remove_tree(folder: Path) -> None:
    """Removes a temporary folder of this process, if it is there."""
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            os.unlink(os.path.join(root, name))
        for name in folders:
            path = os.path.join(root, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    if folder.exists():
        folder.rmdir()


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _restore(folder: Path) -> None:
    """Brings an old folder back that was moved aside by a run which ended before the new one took its place."""
    folder = Path(os.path.abspath(folder))
    if not folder.exists() and _replaced(folder).is_dir():
        _replaced(folder).rename(folder)


def exact_pattern(path: str) -> str:
    """The pattern that matches this path alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
