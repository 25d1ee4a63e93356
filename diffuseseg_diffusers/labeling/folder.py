# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The folder of a session, which one process at a time has open."""

from pathlib import Path

from ..jobs.errors import UserError
from ..jobs.files import read_record, write_record
from ..jobs.locks import hold_folder


COMMAND = "app"
FEATURES, PIPELINE = "features", "pipeline"
FINISHED = "finished.json"  # the revision that the pipeline follows from


def open_folder(folder: Path) -> None:
    """Creates or opens the folder of a session and locks it until this process ends.

    Raises:
        UserError: The path is not a folder, it holds other files, or another process has the session open.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a folder is needed for the session.")
    if any(parent.is_file() for parent in folder.parents):
        raise UserError(f"{folder} lies below a file; choose another folder for the session.")
    record = read_record(folder) if folder.is_dir() else None
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} holds files that are no session; choose another folder for it.")
    if record is not None and record["command"] != COMMAND:
        raise UserError(f"{folder} was made by `diffuseseg {record['command']}`; choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    if not hold_folder(folder):
        raise UserError(f"Another process has the session in {folder} open; end it first.")
    if record is None:
        write_record(folder, COMMAND, [FINISHED, f"{FEATURES}/*", f"{PIPELINE}/*"])  # strokes are never removed
