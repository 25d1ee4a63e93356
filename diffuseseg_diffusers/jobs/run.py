# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Runs that can be cut off: the same command line resumes, another one is refused."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from .errors import UserError
from .files import (
    check_output_folder,
    clear_output_folder,
    read_record,
    remove_partials,
    to_json,
    write_record,
    write_text,
)
from .locks import join_folder, lock_folder, try_lock_folder


def open_run(
    folder: Path,
    command: str,
    settings: dict,
    owns: Iterable[str],
    overwrite: bool,
    inputs: Iterable[object] = (),
    together: bool = False,
) -> bool:
    """Begins a run in a folder, or resumes the one that is there; to be called once all inputs are known to be valid.

    Args:
        folder (`Path`): The run's output folder; made if it is not there.
        command (`str`): Which command the run is of.
        settings (`dict`): What its results depend on, as JSON holds it.
        owns (iterable of `str`): Files that the run writes, as patterns of paths below the folder (`fnmatch`).
        overwrite (`bool`): Whether to remove an earlier run's files and begin anew.
        inputs (iterable): What the run reads: names of files and folders among them are not removed.
        together (`bool`, defaults to `False`): Whether other processes may be at work in the folder on the same run,
            each on parts that it takes (see [`finish_parts`]); not with `overwrite`.

    Returns:
        `bool`: Whether a run of these settings was there, to be resumed.

    Raises:
        UserError: The folder holds another run, and `overwrite` is off (what differs is named), or foreign files; or
            another process is at work in it.
    """
    alone = True
    if together:
        folder.mkdir(parents=True, exist_ok=True)
        alone = try_lock_folder(folder)
        if not alone and not overwrite:
            join_folder(folder)  # whoever was first has begun the run by then
    if folder.is_dir() and (alone or overwrite):
        lock_folder(folder)
    if overwrite:
        clear_output_folder(folder, inputs)
        folder.mkdir(parents=True, exist_ok=True)
    record = read_record(folder)
    if record is None:
        check_output_folder(folder, overwrite=False)
        write_record(folder, command, owns, settings)
        lock_folder(folder)
    elif record["command"] != command:
        raise UserError(
            f"{folder} holds a run of `diffuseseg {record['command']}`, not of `diffuseseg {command}`; choose another "
            f"--output_dir, or pass --overwrite."
        )
    else:
        check_same(folder, record["settings"], settings)
        if alone:
            remove_partials(folder)
    if together:
        join_folder(folder)
    return record is not None


def may_resume(folder: Path, command: str) -> bool:
    """Whether a folder holds a run of this command, so that its settings are to be compared before it is refused."""
    record = read_record(folder)
    return record is not None and record["command"] == command


def check_same(where: Path, there: dict, now: dict) -> None:
    """Compares the settings of a run that is there with those that are asked for now.

    Raises:
        UserError: They differ; says in what.
    """
    now = json.loads(json.dumps(now))  # tuples become lists, as in the record
    other = [name for name in now if there.get(name) != now[name]]
    if other:
        what = ", ".join(f"{name} {there.get(name)} (now {now[name]})" for name in other)
        raise UserError(f"{where} holds another run: {what}. Choose another --output_dir, or pass --overwrite.")


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
            check_same(path, self._first(lines[0]), settings)
        for line in lines[1:]:
            try:
                found = json.loads(line)
            except json.JSONDecodeError:  # cut off while it was written; it is computed again
                continue
            self.by_key[found["key"]] = found["result"]
        known = [{"settings": settings}, *({"key": key, "result": result} for key, result in self.by_key.items())]
        write_text(path, "".join(map(self._line, known)))

    def get(self, key: str, compute: Callable[[], dict]) -> dict:
        """The result of that key, as JSON holds it: the one that is there, or a new one."""
        if key not in self.by_key:
            line = self._line({"key": key, "result": compute()})
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
            self.by_key[key] = json.loads(line)["result"]
        return self.by_key[key]

    def _first(self, line: str) -> dict:
        try:
            return json.loads(line)["settings"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{self.path} holds no results of a run; remove it, or pass --overwrite.") from error

    @staticmethod
    def _line(content: object) -> str:
        return to_json(content) + "\n"


def fingerprint(*modules: torch.nn.Module) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all weights in float32: of U-Net and head, for instance."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
