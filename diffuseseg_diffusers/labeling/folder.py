# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The folder of a session, which one process at a time has open."""

import os
import re
import secrets
from pathlib import Path

from ..jobs.errors import UserError
from ..jobs.files import read_record, write_record, write_text
from ..jobs.locks import hold_folder


COMMAND = "app"
FEATURES, PIPELINE = "features", "pipeline"
FINISHED = "finished.json"  # the revision that the pipeline follows from
TOKEN, PORT = "token", "port"  # of the page's address, which stays the same; neither is exported
OWNED = [FINISHED, TOKEN, PORT, f"{FEATURES}/*", f"{PIPELINE}/*"]  # strokes are never removed


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
    if record is None or record["owns"] != sorted(OWNED):  # an earlier version had no token in it
        write_record(folder, COMMAND, OWNED)


def kept_token(folder: Path) -> str:
    """The token of a session's page: that of its folder, which the first call makes, readable by its owner alone.

    Raises:
        UserError: The file of the token is a link or a folder, or cannot be read or written.
    """
    path = folder / TOKEN
    try:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UserError(f"{path} is no file, and the token of the page is kept there; move it away.")
        if path.exists():
            os.chmod(path, 0o600)
            token = path.read_text(encoding="utf-8", errors="replace").strip()
            if re.fullmatch(r"[\w-]{32}", token, re.ASCII):
                return token
            path.unlink()  # a kill came between making and writing it
        token = secrets.token_urlsafe(24)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(token + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be used ({error.strerror}); the token of the page is kept there.") from error
    return token


def kept_port(folder: Path) -> int | None:
    """The port at which the page was last, if it is known."""
    try:
        path = folder / PORT
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if re.fullmatch(r"[1-9]\d{0,4}", text, re.ASCII) and int(text) < 2**16 else None


def keep_port(folder: Path, port: int) -> None:
    """Remembers the port for the next start, unless something else has the name of that file."""
    if (path := folder / PORT).is_file() or not path.exists():
        write_text(path, f"{port}\n")
