# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a command begins and ends."""

import ctypes
import errno
import logging
import os
import re
import sys
from collections.abc import Callable

from .errors import StoppedError, UserError
from .locks import unlock_folder


DEBUG = "DIFFUSESEG_DEBUG"  # set to 1, every error shows its traceback

# errno values of environment failures.
_ENVIRONMENT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.EIO}
_ENVIRONMENT |= {errno.ENAMETOOLONG, errno.EFBIG}


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed blocks instead of returning them to the system; returns whether it does.

    Saves a seventh of a U-Net's pass in bfloat16 on a CPU, with about the same peak of memory. It holds until the
    process ends; other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    # M_MMAP_THRESHOLD, which some versions limit to 32 MiB, and M_TRIM_THRESHOLD of malloc.h.
    return bool(mallopt and any(mallopt(-3, size) for size in (2**30, 2**25)) and mallopt(-1, 2**31 - 1))


def show_log() -> None:
    """Shows what the package logs, from here on, on standard error."""
    logging.basicConfig(format="%(message)s")  # of other libraries, warnings only
    logging.getLogger(__package__.partition(".")[0]).setLevel(logging.INFO)


def run_command(command: Callable[[], int | None]) -> None:
    """Runs a command and ends the process.

    What users can mend ([`UserError`], a full disk, missing rights) is one line on stderr and exit status 1; Ctrl-C
    gives 130, and work that a signal ended ([`StoppedError`]) 128 and the signal's number. Anything else is a bug and
    shows its traceback; with `DIFFUSESEG_DEBUG=1`, every error does.
    """
    keep_freed_memory()
    try:
        status = command()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except StoppedError as error:
        print(error, file=sys.stderr)
        status = 128 + error.signal
    except Exception as error:
        mendable = isinstance(error, UserError) or _is_of_machine(error)
        if not mendable or os.environ.get(DEBUG, "0") not in ("", "0"):
            raise
        print(f"error: {_sentence(error)}", file=sys.stderr)
        status = 1
    finally:
        unlock_folder()
    sys.exit(status or 0)


def _is_of_machine(error: Exception) -> bool:
    """Whether the system refused something; PyTorch and safetensors have classes of their own for a full disk."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _ENVIRONMENT
    found = re.search(r"\(os error (\d+)\)", str(error))
    return found is not None and int(found[1]) in _ENVIRONMENT


def _sentence(error: Exception) -> str:
    """The error's text; of the system's errors without their number."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
