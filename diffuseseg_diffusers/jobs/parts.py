# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Long work in parts that any number of processes share, on one machine or on many with a common folder.

A part is a file, or a folder, that is written atomically, and the same bytes whoever makes it. A process takes the next
part that is missing and not locked. Without locks two processes may make the same part, which costs time alone.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from .locks import taken


PARTS = ".parts"  # folder below an output folder for what is needed until the run is complete
POLL_SECONDS = 0.2


@dataclass
class Part:
    """A piece of a run."""

    path: Path  # what it makes
    make: Callable[[], None]  # makes it, atomically
    size: int = 0  # how far it moves the progress bar
    needs: Sequence[Path] = ()  # what has to be there first
    until: Sequence[Path] = ()  # once one of these is there, the part is needed no more, and may be gone

    @property
    def done(self) -> bool:
        """Whether it is there, or needed no more."""
        return self.path.exists() or any(path.exists() for path in self.until)


def finish_parts(parts: Sequence[Part], bar: tqdm) -> None:
    """Makes all parts in order, cooperatively with other workers; returns when all are there, as the bar shows."""
    waiting = parts
    while waiting:
        left, busy = [], False
        for part in waiting:
            if not part.done and all(need.exists() for need in part.needs):
                with taken(part.path) as mine:
                    if mine and not part.done:
                        part.make()
                        busy = True
            if part.done:
                bar.update(part.size)
            else:
                left.append(part)
        waiting = left
        if waiting and not busy:  # others are at work on what is left
            time.sleep(POLL_SECONDS)
