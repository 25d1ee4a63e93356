# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs that can be cut off: the same command line resumes, another one is refused."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from .config import WritesFolder
from .contents import differences
from .errors import UserError
from .executors import is_worker
from .files import (
    check_output_folder,
    clear_output_folder,
    read_record,
    remove_partials,
    to_json,
    write_record,
    write_text,
)
from .locks import join_folder, lock_folder, try_lock_folder, unlock_folder


def open_run(
    config: WritesFolder, command: str, reads: Mapping[str, Any], owns: Iterable[str], together: bool = False
) -> bool:
    """Begins a run in `config.output_dir`, or resumes the one that is there; call it once all inputs are known to be
    valid.

    Its identity is all fields with influence, and the content of what it reads. With `config.overwrite` an earlier
    run's own files are removed first, but never by a process that shares the run with the one that began it.

    Args:
        config ([`WritesFolder`]): The task's configuration.
        command (`str`): Name of its command.
        reads (mapping): What the result depends on beside the fields, as JSON holds it: by name of the field that names
            it, such as `model`, the content (see [`contents_of`]); by other names further values, such as a precision.
        owns (iterable of `str`): Files that the run writes, as patterns of paths below the folder (`fnmatch`).
        together (`bool`, defaults to `False`): Whether other processes may share the run (see [`finish_parts`]).

    Returns:
        `bool`: Whether a run of this identity was there, to be resumed.

    Raises:
        UserError: The folder holds another run (what differs is named), or foreign files; or another process works in
            it.

    Examples:
        >>> reads = {"model": pipe.identity(), "images": contents_of(images), "dtype": "bfloat16"}
        >>> resumed = open_run(config, "segment", reads, ["masks/*.png", "segments.jsonl"])
    """
    try:
        return _begin(config, command, _as_json(reads), owns, together)
    except BaseException:
        unlock_folder()
        raise


def _begin(config: WritesFolder, command: str, reads: dict, owns: Iterable[str], together: bool) -> bool:
    folder, settings, alone = config.output_dir, settings_of(config), True
    if folder.is_symlink():  # perhaps to a folder that is yet to be made
        folder = Path(os.path.realpath(folder))
    overwrite = config.overwrite and not is_worker()
    if together:
        folder.mkdir(parents=True, exist_ok=True)
        alone = try_lock_folder(folder)
        if not alone and not overwrite:
            join_folder(folder)  # whoever was first has begun the run by then
    if folder.is_dir() and (alone or overwrite):
        lock_folder(folder)
    if overwrite:
        clear_output_folder(folder, config.inputs())
        folder.mkdir(parents=True, exist_ok=True)
    record = read_record(folder)
    if record is None:
        check_output_folder(folder, overwrite=False)
        write_record(folder, command, owns, settings, reads)
        lock_folder(folder)
    elif record["command"] != command:
        raise UserError(
            f"{folder} holds a run of `diffuseseg {record['command']}`, not of `diffuseseg {command}`; choose another "
            f"--output_dir, or pass --overwrite."
        )
    elif other := _differences(config, record, settings, reads):
        raise UserError(
            f"{folder} holds another run: {'; '.join(other)}. Choose another --output_dir, or pass --overwrite."
        )
    elif alone:
        remove_partials(folder)
    if together:
        join_folder(folder)
    return record is not None


def check_run(config: WritesFolder, command: str) -> None:
    """Refuses an output folder in which this run could neither begin nor resume; see [`check_output_folder`]."""
    if not is_worker() and (config.overwrite or not may_resume(config.output_dir, command)):
        check_output_folder(config.output_dir, config.overwrite, config.inputs())


def adopt_run(config: WritesFolder, command: str, reads: Mapping[str, Any], owns: Iterable[str]) -> None:
    """Gives the run in `config.output_dir` this identity, so that [`open_run`] resumes it whatever it was before."""
    write_record(config.output_dir, command, owns, settings_of(config), _as_json(reads))


def settings_of(config: WritesFolder) -> dict[str, Any]:
    """All fields with influence; local files and folders as absolute paths, so that a run resumes from anywhere."""

    def absolute(name: Any) -> Any:
        return os.path.abspath(name) if isinstance(name, str) and os.path.exists(name) else name

    options, found = config.options(), config.settings()
    for name, value in found.items():
        if options[name].reads:
            found[name] = list(map(absolute, value)) if isinstance(value, list) else absolute(value)
    return found


def _as_json(value: Any) -> Any:
    return json.loads(to_json(value))  # tuples become lists, as in the record


def _differences(config: WritesFolder, record: dict, settings: dict, reads: dict) -> list[str]:
    """What differs between a record and a run that is about to resume it, a clause each."""
    if "reads" not in record:
        return ["it is of an earlier version of DiffuseSeg, which did not record what a run reads"]
    there, known, options = record["settings"], record["reads"], config.options()
    labels = {name: name if own.positional else f"--{name}" for name, own in options.items()}
    found = []
    for name in dict.fromkeys([*settings, *there]):
        if _get(there, name) != _get(settings, name):
            found.append(f"{labels.get(name, name)} {_shown(there, name)} (now {_shown(settings, name)})")
    for name in dict.fromkeys([*reads, *known]):
        which = differences(known.get(name), reads.get(name))
        if which or (name in options and options[name].reads and _get(known, name) != _get(reads, name)):
            more = f" and {len(which) - 3} more" if len(which) > 3 else ""
            names = f" ({', '.join(which[:3])}{more})" if which else ""
            found.append(f"the contents of {labels.get(name, name)} differ{names}")
        elif _get(known, name) != _get(reads, name):
            found.append(f"{name} {_shown(known, name)} (now {_shown(reads, name)})")
    return found


def _get(values: Mapping[str, Any], name: str) -> Any:
    return values.get(name, "not recorded")  # by another version, which differs from None


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = str(_get(values, name))
    return text if len(text) <= 80 else f"{text[:77]}…"


def may_resume(folder: Path, command: str) -> bool:
    """Whether a folder holds a run of this command, so that its settings are to be compared before it is refused."""
    record = read_record(folder)
    return record is not None and record["command"] == command


class Results:
    """Results of a run by key, a line of JSON each, so that a run that was cut off resumes after the last whole one.

    Args:
        path (`Path`): File to read and append to.
        settings (`dict`): What the results depend on.

    Raises:
        UserError: The file holds results of other settings; says which differ.
    """

    def __init__(self, path: Path, settings: dict):
        self.path: Path = path
        self.by_key: dict[str, dict] = {}
        # Not `splitlines`, which also parts at characters that JSON leaves in texts.
        lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
        if any(lines):
            self._check(lines[0], _as_json(settings))
        for line in lines[1:]:
            try:
                found = json.loads(line)
            except json.JSONDecodeError:  # cut off while it was written; it is computed again
                continue
            self.by_key[found["key"]] = found["result"]
        known = [{"settings": settings}, *({"key": key, "result": result} for key, result in self.by_key.items())]
        write_text(path, "".join(to_json(one) + "\n" for one in known))

    def get(self, key: str, compute: Callable[[], dict]) -> dict:
        """The result of that key, as JSON holds it: the one that is there, or a new one."""
        if key not in self.by_key:
            line = to_json({"key": key, "result": compute()}) + "\n"
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
            self.by_key[key] = json.loads(line)["result"]
        return self.by_key[key]

    def _check(self, line: str, settings: dict) -> None:
        try:
            there = json.loads(line)["settings"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} holds no results of a run; remove it, or pass --overwrite.") from error
        other = [f"{name} {there.get(name)} (now {now})" for name, now in settings.items() if there.get(name) != now]
        if other:
            what = ", ".join(other)
            raise UserError(f"{self.path} holds another run: {what}. Choose another --output_dir, or pass --overwrite.")
