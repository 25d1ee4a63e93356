# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Atomic files, and output folders that only their own run may replace.

A run's folder holds a record, `.diffuseseg-run.json`: which command made it, with which settings, from which contents,
and which files are the run's own. Overwriting removes those files and nothing else; a folder with anything else in it
is refused.
"""

import fnmatch
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from .errors import UserError
from .locks import at_work, is_lock, taken


RECORD = ".diffuseseg-run.json"
JOINED = " + "  # between names of models that are used together
# What a process is writing has its number in the name; a kill leaves it behind.
_PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.partial")
# In an output folder that is there, what is to replace an earlier run's files; under this name once it is whole.
_NEW = ".diffuseseg-new-output"


def shown_name(model: str) -> str:
    """What reports and pictures call a model: names on the Hub, and of local folders and files the last part alone."""
    parts = [model] if os.path.exists(model) else model.split(JOINED)
    return JOINED.join(os.path.basename(os.path.abspath(p)) if os.path.exists(p) else p for p in parts)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its name once the block has ended well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno is None:  # of a library, about something else than the disk
            raise
        kept = "; the old file is kept" if path.exists() else ""
        raise OSError(error.errno, f"{path} could not be written ({error.strerror}){kept}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk, of libraries that do not say what they were writing, get a name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, f"{path} could not be written ({error.strerror})") from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
        if number is None:
            raise
        raise OSError(int(number[1]), f"{path} could not be written ({os.strerror(int(number[1]))})") from error


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # of names that are no text


def to_json(content: object, indent: int | None = None) -> str:
    """Strict JSON that can be written as UTF-8: `null` for numbers that are not finite; only names of files that are
    not text (`\\udc…`) are escaped."""
    try:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return to_json(_finite(content), indent)
    return json.dumps(content, indent=indent) if re.search("[\ud800-\udfff]", text) else text


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: str | os.PathLike, content: object) -> None:
    """Writes JSON atomically."""
    write_text(path, to_json(content, indent=2) + "\n")


def read_json(path: str | os.PathLike) -> dict:
    """Reads a JSON file; raises [`UserError`] if there is none, or it is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"There is no file {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no JSON file ({error}); repair or remove it.") from error


def read_object(path: str | os.PathLike) -> dict:
    """Reads a JSON file that holds an object; raises [`UserError`] if it is none."""
    content: object = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object, but {json.dumps(content)[:40]}; repair or remove it.")
    return content


def remove_matching(folder: Path, patterns: Iterable[str]) -> None:
    """Removes the files below a folder whose paths match one of the patterns (`fnmatch`), and what is empty then."""
    matches = _matching(patterns)
    _remove_files(folder, [path for path in _files(folder) if matches(path)])
    if not any(folder.iterdir()):
        folder.rmdir()


def flush_to_disk(folder: Path) -> None:
    """Waits until the files are on the disk, so that a machine that dies does not leave empty ones under good names."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def check_writable(folder: Path, argument: str) -> Path:
    """Where a folder really is, which need not be there; raises [`UserError`] that advises another `argument` if it, or
    one above it, is a file or cannot be written to."""
    real = Path(os.path.realpath(folder))
    existing = next(path for path in (real, *real.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, and a folder is needed; choose another {argument}.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} cannot be written to; choose another {argument}.")
    return real


def check_output_folder(folder: Path, overwrite: bool, inputs: Iterable[str] = (), command: str = "") -> None:
    """Refuses a folder that must not or cannot be written to, before the long work; removes nothing.

    Args:
        folder (`Path`): Where a run is to write; need not be there.
        overwrite (`bool`): Whether an earlier run's files may be replaced.
        inputs (iterable of `str`): Names of what the new run reads; those of files and folders are kept.
        command (`str`, *optional*): Of the new run, if it never reads what it wrote itself: an earlier report of it may
            be replaced below a folder that is read.

    Raises:
        UserError: The folder cannot be written to; holds something, and `overwrite` is off; holds what no run
            recorded, or what the new run reads.
    """
    real = check_writable(folder, "--output_dir")
    if not real.exists():
        return
    _replace(real)
    found, foreign = _found(real)
    if found and not overwrite:
        raise UserError(f"{folder} exists and is kept; choose another --output_dir, or pass --overwrite.")
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise UserError(
            f"{folder} holds files that no run of DiffuseSeg recorded ({foreign[0]}{more}) and is kept; --overwrite "
            f"replaces a run's own files alone: move the others away, or choose another --output_dir."
        )
    read = [Path(os.path.realpath(part)) for name in inputs for part in {name, *name.split(JOINED)} if part]
    if command and (read_record(real) or {}).get("command") == command:  # nothing reads what it wrote itself
        read = [given for given in read if given not in real.parents]
    for path in (real / name for name in found):
        if any(path.is_relative_to(given) for given in read):
            raise UserError(
                f"--overwrite would remove {path}, which this run is to read; choose another --output_dir than "
                f"{folder}."
            )


def clear_output_folder(folder: Path, inputs: Iterable[str] = ()) -> None:
    """Removes the files that the folder's record lists; to be called once all inputs are known to be valid.

    Raises:
        UserError: See [`check_output_folder`]; there are other files, or one of the files is an input.
    """
    check_output_folder(folder, True, inputs)
    folder = Path(os.path.realpath(folder))
    if folder.exists():
        _remove_run(folder)
        for abandoned in _abandoned(folder, _NEW):
            shutil.rmtree(abandoned)


@contextmanager
def output_folder(folder: Path, overwrite: bool, command: str, inputs: Iterable[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder; what is in it becomes the content of `folder` once the block has ended well.

    A new folder appears under its name whole. In one that is there (it may be a mount, a link, or the working folder)
    an earlier run's files stay until the new ones are whole; a process that is killed while it replaces them leaves
    that to the next one. Arguments and errors are those of [`check_output_folder`].
    """
    check_output_folder(folder, overwrite, inputs, command)
    real = Path(os.path.realpath(folder))
    real.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(real / _NEW) if real.exists() else _partial(real)
    for abandoned in (*_abandoned(real, _NEW), *_abandoned(real.parent, real.name)):
        shutil.rmtree(abandoned)
    partial.mkdir()
    try:
        with naming(folder):
            yield partial
        write_record(partial, command, owns=[exact_pattern(path) for path in _files(partial)])
        check_output_folder(folder, overwrite, inputs, command)  # it may have changed while the block ran
        if real.exists():
            partial.rename(real / _NEW)
            try:
                _replace(real)
            except BaseException:  # a signal, or an error that may pass
                _replace(real)
                raise
        else:
            partial.rename(real)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_record(
    folder: Path, command: str, owns: Iterable[str], settings: dict | None = None, reads: dict | None = None
) -> None:
    """Writes a run's record into its folder.

    Args:
        folder (`Path`): The run's; made if it is not there.
        command (`str`): Which command the run is of.
        owns (iterable of `str`): Files of the run, as patterns of paths below the folder (`fnmatch`; `*` also matches
            `/`) that do not begin with a wildcard. A folder below with another record must list them there too.
        settings, reads (`dict`, *optional*): Options on which its results depend, and contents of what it reads.
    """
    owns = list(owns)
    if wide := [pattern for pattern in owns if _is_wide(pattern)]:
        raise ValueError(f"The patterns {wide} also match files that are not of the run.")
    found = {"command": command, "owns": sorted(owns), "settings": settings or {}, "reads": reads or {}}
    write_json(folder / RECORD, found)


def read_record(folder: Path) -> dict | None:
    """A folder's record: `command`, `owns`, `settings`, `reads`; `None` if it has none.

    Raises:
        UserError: The file of that name is no record.
    """
    path = Path(folder, RECORD)
    if not path.is_file():
        return None
    record = read_json(path)
    kinds = {"command": str, "owns": list, "settings": dict, "reads": dict}
    full = {"reads": {}, **record} if isinstance(record, dict) else {}  # which earlier versions did not record
    if not all(isinstance(full.get(name), kind) for name, kind in kinds.items()) or {*map(type, full["owns"])} - {str}:
        raise UserError(f"{path} is no record of a run; remove it, or choose another --output_dir.")
    return record


def exact_pattern(path: str) -> str:
    """The pattern that matches this path alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def remove_partials(folder: Path) -> None:
    """Removes what a killed process left of [`atomic_file`] and [`output_folder`] among the files of the record."""
    found, foreign = _found(folder)
    _remove_files(folder, [path for path in found if path not in foreign and _final(path) != path])


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _final(path: str) -> str:
    """The path below a folder that a temporary one becomes, or is a part of; any other path as it is."""
    parts = [(part, _PARTIAL.fullmatch(part)) for part in path.split("/")]
    return "/".join(partial["name"] if partial else part for part, partial in parts)


def _abandoned(folder: Path, name: str) -> list[Path]:
    """Temporary folders of that name in a folder whose process has ended, or is this one."""
    found = []
    for path in folder.iterdir() if folder.is_dir() and os.access(folder, os.R_OK) else ():
        partial = _PARTIAL.fullmatch(path.name)
        if not partial or partial["name"] != name or path.is_symlink() or not path.is_dir():
            continue
        process = int(partial["process"])
        if process == os.getpid() or not psutil.pid_exists(process):
            found.append(path)
    return found


def _files(folder: Path) -> Iterator[str]:
    """Paths below a folder of all files and links but its record and locks; links are not followed."""
    for root, folders, files in os.walk(folder):
        if Path(root) == folder:
            folders[:] = [name for name in folders if _final(name) != _NEW]
            files = [name for name in files if not is_lock(name)]
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*links, *files]:
            path = os.path.relpath(os.path.join(root, name), folder)
            if path != RECORD:
                yield Path(path).as_posix()


def _found(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of all files below a folder; those that its record, or that of a folder between, does not list."""
    found = list(_files(folder))
    lists = {"": _matching((read_record(folder) or {"owns": []})["owns"])}
    for path in found:
        if path.endswith(f"/{RECORD}"):
            below = path.removesuffix(RECORD)
            lists[below] = _matching([*(read_record(folder / below) or {"owns": []})["owns"], RECORD])

    def is_own(path: str) -> bool:
        for below, matches in lists.items():
            name = path.removeprefix(below)
            *folders, last = _final(name).split("/")
            left = _NEW in (*folders, last) or is_lock(last)  # by a killed process
            if path.startswith(below) and not (left or matches(name) or matches(_final(name))):
                return False
        return True

    return found, sorted(path for path in found if not is_own(path))


def _matching(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Tells whether a path matches one of the patterns; most are exact, and those are looked up."""
    patterns = [pattern for pattern in patterns if not _is_wide(pattern)]
    exact = {pattern for pattern in patterns if not set(pattern) & set("*?[")}
    rest = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns if pattern not in exact) or "(?!)")
    return lambda path: path in exact or rest.match(path) is not None


def _is_wide(pattern: str) -> bool:
    """Whether a pattern begins with a wildcard, and so would match files that are not of a run."""
    return re.match(r"[^*?\[]|\[[*?\[]\]", pattern) is None


def _remove_run(folder: Path) -> None:
    """Removes the files of the folder's record, then the record, and folders that are empty because of it."""
    found, foreign = _found(folder)
    # Records of folders below go last: a kill on the way must not make their files foreign.
    own = sorted(set(found) - set(foreign), key=lambda path: path.endswith(f"/{RECORD}"))
    _remove_files(folder, own)
    (folder / RECORD).unlink(missing_ok=True)


def _remove_files(folder: Path, paths: Iterable[str]) -> None:
    parents = set()
    for path in paths:
        (folder / path).unlink(missing_ok=True)
        parents |= set(Path(path).parents) - {Path(".")}
    for parent in sorted(parents, key=lambda p: -len(p.parts)):
        if not any((folder / parent).iterdir()):
            (folder / parent).rmdir()


def _replace(folder: Path) -> None:
    """Puts whole new files, if there are any, in the place of an earlier run's; can be cut off and called again.

    The old record is the last old file to go and the new one the last to come, so that which step is next can be seen.
    """
    whole = folder / _NEW
    if not whole.is_dir():
        return
    with taken(folder / _NEW.removeprefix(".")) as mine:
        if not mine:
            raise at_work(folder)
        if (whole / RECORD).exists():
            if (folder / RECORD).exists():
                _remove_run(folder)
            for path in sorted(whole.iterdir(), key=lambda path: path.name == RECORD):
                if os.path.lexists(folder / path.name) and not (folder / path.name).is_dir():
                    raise UserError(f"{folder / path.name} is in the way of a run's results; move it away.")
                path.rename(folder / path.name)
        if whole.is_dir():
            whole.rmdir()
