# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""An append-only journal of strokes and classes: one line of JSON each, synced to disk before the next is accepted.

Label maps are what the lines amount to. A stroke that is undone is left out, a class that was merged into another is
read as that one, one that was deleted as no label, so nothing that was drawn is ever lost, and strokes of two pages fit
into one another.
"""

import errno
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..jobs.errors import UserError
from .checks import MAX_PIXELS, Runs, checked_color, checked_key, checked_name, checked_runs, class_color


JOURNAL = "strokes.jsonl"  # in the folder of a session
IMPORT = "import"
KINDS = ("stroke", "accept", IMPORT)  # drawn; a predicted region that was accepted; annotations of another program
UNLABELED = 255
BROKEN = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, UserError)
MAX_CLASSES = 255  # ids 0 to 254
REMOVED = 1000  # broken lines that may have been taken out of a file by hand, as its error advises
TAIL = 64  # bytes of the end of what was read, by which a replaced file is known
_WRITING = threading.RLock()  # of all journals of this process: two of them may have the same file
APPROVED, SKIPPED = "approved", "skipped"


@dataclass
class LabelClass:
    """A class of labels."""

    id: int  # 0 to 254; stays the same when others go, and is never given again
    name: str
    color: list[int]  # red, green, blue, 0 to 255


@dataclass(frozen=True)
class Stroke:
    """Pixels of a picture that were labelled together."""

    number: int  # counts all strokes of a session, from 1
    picture: str
    size: tuple[int, int]  # height and width of the picture
    runs: np.ndarray  # [N,4] int32: row, first column, column behind the last, class id (255 erases)
    kind: str  # one of `KINDS`
    planes: int = 1  # of the stack that the picture is a plane of


@dataclass
class LabelMap:
    """The labels of a picture."""

    ids: np.ndarray  # [H,W] uint8, class ids as they were drawn, before merging; 255 without a label
    strokes: np.ndarray  # [H,W] int32, number of the stroke that drew each pixel; 0 without a label

    @classmethod
    def empty(cls, size: tuple[int, int]) -> "LabelMap":
        return cls(np.full(size, UNLABELED, np.uint8), np.zeros(size, np.int32))

    def draw(self, stroke: Stroke) -> None:
        for row, start, stop, label in stroke.runs.tolist():
            self.ids[row, start:stop] = label
            self.strokes[row, start:stop] = 0 if label == UNLABELED else stroke.number


@dataclass
class Journal:
    """The strokes and classes of a session, in memory and in a file.

    Args:
        path (`Path`): The file; made with the first line.

    Raises:
        UserError: A line of the file is broken. Half a line at its end is dropped.
    """

    path: Path
    classes: dict[int, LabelClass] = field(default_factory=dict)  # by id, in order, without merged and deleted ones
    strokes: dict[int, Stroke] = field(default_factory=dict)
    undone: set[int] = field(default_factory=set)
    merged: dict[int, int] = field(default_factory=dict)
    deleted: set[int] = field(default_factory=set)
    keys: dict[str, int] = field(default_factory=dict)  # numbers of the strokes that a page gave keys
    states: dict[str, str] = field(default_factory=dict)  # by picture, `APPROVED` or `SKIPPED`
    revision: int = 0  # lines so far
    content: int = 0  # revision of the last change of strokes or classes
    changed: dict[str, int] = field(default_factory=dict)  # by picture, the revision of its last change of labels
    _maps: dict[str, LabelMap] = field(default_factory=dict)
    _read: int = 0  # bytes of the file that are in memory, whole lines
    _lines: int = 0  # in these bytes, with blank ones
    _tail: bytes = b""  # their end

    def __post_init__(self) -> None:
        with _WRITING:
            self._catch_up()

    def labels(self, picture: str, size: tuple[int, int]) -> LabelMap:
        """The labels of a picture, empty if there are none. Read-only."""
        return self._maps.get(picture) or LabelMap.empty(size)

    def resolved(self, ids: np.ndarray) -> np.ndarray:
        """Class ids after merging and deleting, of the same shape."""
        table = np.arange(256, dtype=np.uint8)
        for label in (*self.merged, *self.deleted):
            table[label] = self.target(label)
        return table[ids]

    def target(self, label: int) -> int:
        """The class into which a class was merged, or itself; `UNLABELED` if it was deleted."""
        while label in self.merged:
            label = self.merged[label]
        return UNLABELED if label in self.deleted else label

    def active(self, picture: str | None = None) -> list[Stroke]:
        """Strokes that are not undone, in their order; of one picture, or all."""
        strokes = list(self.strokes.values())  # at once: another thread may draw
        found = (s for s in strokes if s.number not in self.undone)
        return [s for s in found if picture is None or s.picture == picture]

    def draw(
        self, picture: str, size: tuple[int, ...], runs: Runs, kind: str = "stroke", key: str | None = None
    ) -> int:
        """Adds a stroke; returns its number.

        Args:
            picture (`str`), size (two or three `int`): Which picture, its height, width and, of a plane, planes.
            runs (sequence of four `int`): Row, first column, column behind the last, class id or 255 to erase.
            kind (`str`): One of `KINDS`.
            key (`str`, *optional*): Name of the stroke, 1 to 64 printable ASCII characters. The same key again draws
                nothing and returns the number of the stroke that has it.

        Raises:
            UserError: A run lies outside the picture, is empty or has an unknown class, or there is none; the key is
                none.
            OSError: The stroke could not be written, and is not accepted.
        """
        with self._turn():
            if key is not None and checked_key(key) in self.keys:
                return self.keys[key]
            given = checked_runs(runs, picture, (size[0], size[1]))
            self._check_drawable(set(np.unique(given[:, 3]).tolist()) - {UNLABELED})
            if kind not in KINDS:
                raise UserError(f"A stroke is of the kind {', '.join(map(repr, KINDS))}, got {kind!r}.")
            number = next(reversed(self.strokes), 0) + 1
            line = {"stroke": number, "picture": picture, "size": list(size), "kind": kind, "runs": given.tolist()}
            self._write(line if key is None else {**line, "key": key})
            return number

    def set_undone(self, number: int, undone: bool = True) -> None:
        """Undoes or redoes a stroke.

        Raises:
            UserError: There is no such stroke.
        """
        with self._turn():
            if number not in self.strokes:
                raise UserError(f"There is no stroke {number}.")
            if (number in self.undone) != undone:
                self._write({"undo" if undone else "redo": number})

    def set_state(self, picture: str, state: str | None) -> None:
        """Marks a picture as approved or skipped, or as neither; the next stroke, undo or redo in it takes that back.

        Raises:
            UserError: There is no such state.
        """
        if state not in (None, APPROVED, SKIPPED):
            raise UserError(f"A picture is {APPROVED!r}, {SKIPPED!r} or None, got {state!r}.")
        with self._turn():
            if self.states.get(picture) != state:
                self._write({"picture": picture, "state": state})

    def add_class(self, name: str, color: Sequence[int] | None = None) -> LabelClass:
        """Adds a class; its colour is the next of the palette if none is given.

        Raises:
            UserError: The name is empty or taken, the colour is invalid, or there were 255 classes already.
        """
        with self._turn():
            label = max([*self.classes, *self.merged, *self.deleted], default=-1) + 1
            if label >= MAX_CLASSES:
                raise UserError(f"There are {MAX_CLASSES} classes at most, with those that were merged or deleted.")
            given = class_color(label) if color is None else color
            self._write({"class": label, "name": self._free_name(name, label), "color": checked_color(given)})
            return self.classes[label]

    def change_class(self, label: int, name: str | None = None, color: Sequence[int] | None = None) -> LabelClass:
        """Renames or recolours a class.

        Raises:
            UserError: There is no such class, the name is empty or taken, or the colour is invalid.
        """
        with self._turn():
            own = self._class(label)
            name = own.name if name is None else self._free_name(name, label)
            self._write({"class": label, "name": name, "color": own.color if color is None else checked_color(color)})
            return self.classes[label]

    def merge_classes(self, label: int, into: int) -> None:
        """Merges a class into another.

        Raises:
            UserError: There is no such class, or they are the same.
        """
        with self._turn():
            self._class(label)
            self._class(into)
            if label == into:
                raise UserError("A class cannot be merged into itself.")
            self._write({"merge": label, "into": into})

    def delete_class(self, label: int) -> None:
        """Deletes a class; what was labelled with it is unlabelled, and its strokes stay in the file.

        Raises:
            UserError: There is no such class.
        """
        with self._turn():
            self._class(label)
            self._write({"delete": label})

    def order_classes(self, order: Sequence[int]) -> None:
        """Puts the classes into another order.

        Args:
            order (sequence of `int`): The ids of all classes.

        Raises:
            UserError: An id is missing, is given twice or is of no class.
        """
        with self._turn():
            if sorted(order) != sorted(self.classes):
                given = f"got {list(order)[:MAX_CLASSES]}"
                raise UserError(f"An order names each of the classes {sorted(self.classes)} once, {given}.")
            if list(order) != list(self.classes):
                self._write({"order": list(order)})

    def lost(self) -> str | None:
        """Why the file no longer begins with what was read and written here, in a sentence; `None` if it does."""
        mend = "nothing more is taken. Download the labels, which are still in memory, before the page is ended"
        try:
            if not self._read:
                return None
            with open(self.path, "rb") as file:
                file.seek(self._read - len(self._tail))
                same = file.read(len(self._tail)) == self._tail
        except FileNotFoundError:
            return f"{self.path} is gone, and with it what was drawn; {mend}"
        except OSError as error:
            return f"{self.path} cannot be read ({error.strerror}); {mend}"
        return None if same else f"{self.path} was replaced by another version, without all that was drawn; {mend}"

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """A turn to write, alone in this process and after reading what another journal of it appended.

        Raises `OSError` if the file is gone, was replaced, or a line that was appended is broken.
        """
        with _WRITING:
            if lost := self.lost():
                raise OSError(errno.ENOENT, lost)
            try:
                self._catch_up()
            except UserError as error:  # no fault of what is to be written, which is worth another try
                raise OSError(errno.EIO, str(error)) from error
            yield

    def _catch_up(self) -> None:
        """Reads the lines behind those that are in memory."""
        try:
            if not self.path.exists():
                return
            if self.path.is_fifo():  # which would be waited for
                raise UserError(f"{self.path} is a pipe and cannot be read; move it away.")
            with open(self.path, "rb") as file:
                file.seek(self._read)
                *lines, rest = file.read().split(b"\n")
            for line in lines:
                self._take(line)
            if rest:
                self._mend(rest)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read and mended ({error.strerror}).") from error

    def _mend(self, rest: bytes) -> None:
        """Takes or cuts off what is behind the last newline of the file."""
        # A stroke is confirmed once its newline is on the disk. What has none is of a kill, of a full disk or of
        # another program, since journals of this process take turns and those of others are locked out; it would spoil
        # the next line. A whole line, whose newline an editor dropped, may be a confirmed stroke: it gets one.
        try:
            whole = isinstance(json.loads(rest), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            os.truncate(self.path, self._read)
            return
        with open(self.path, "ab") as file:
            file.write(b"\n")
        self._take(rest)

    def _take(self, line: bytes) -> None:
        """Applies a line of the file, which is behind those in memory and ends in a newline."""
        try:
            if line.strip():
                self._apply(json.loads(line))
        except BROKEN as error:
            what = f"Line {self._lines + 1} of {self.path} is broken ({error!r})"
            raise UserError(f"{what}; remove it to go on without that stroke.") from error
        self._passed(line + b"\n")

    def _passed(self, data: bytes) -> None:
        self._read += len(data)
        self._lines += 1
        self._tail = (self._tail + data)[-TAIL:]

    def _check_drawable(self, labels: set[int]) -> None:
        """Raises [`UserError`] for ids of no class; those that were merged are of one."""
        for label in sorted(labels):
            if self.target(label) not in self.classes:
                if label in self.deleted or label in self.merged:
                    raise UserError(f"The class with the id {label} was deleted; draw with another.")
                self._class(label)

    def _class(self, label: int) -> LabelClass:
        if label not in self.classes:
            raise UserError(f"There is no class with the id {label}; there are {sorted(self.classes)}.")
        return self.classes[label]

    def _free_name(self, name: str, label: int) -> str:
        name = checked_name(name)
        if any(own.name == name and own.id != label for own in self.classes.values()):
            raise UserError(f"There is a class {name!r} already; merge the two if they are one.")
        return name

    def _write(self, line: dict[str, Any]) -> None:
        """Syncs a line to disk, then applies it; a partially written line is removed again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = json.dumps(line, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        before = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            why = f"{self.path} could not be written ({error.strerror}); what was there before is kept"
            raise OSError(error.errno, why) from error
        finally:
            os.close(descriptor)
        self._passed(data)
        self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        """Applies a line to the state in memory; changes nothing if it is broken."""
        now = self.revision + 1
        if "state" in line:
            self._apply_state(str(line["picture"]), line["state"])
        elif "stroke" in line or "undo" in line or "redo" in line:
            picture = self._apply_stroke(line, now) if "stroke" in line else self._apply_undo(line)
            self.states.pop(picture, None)
            self.changed[picture] = self.content = now
        else:
            if self._apply_class(line):
                self.changed = dict.fromkeys(self.changed, now)
            self.content = now
        self.revision = now  # last: who reads it first, without a lock, sees all that it counts

    def _apply_state(self, picture: str, state: str | None) -> None:
        if state is None:
            self.states.pop(picture, None)
        elif state in (APPROVED, SKIPPED):
            self.states[picture] = state
        else:
            raise ValueError(f"a picture in the state {state!r}")

    def _apply_stroke(self, line: dict[str, Any], now: int) -> str:
        """Draws the stroke of a line; returns its picture."""
        size, planes = (int(line["size"][0]), int(line["size"][1])), int((*line["size"], 1)[2])
        if not 0 < size[0] * size[1] <= MAX_PIXELS:
            raise ValueError(f"a picture of {size[1]} x {size[0]} pixels")
        number, before = int(line["stroke"]), next(reversed(self.strokes), 0)
        if not before < number <= now + REMOVED:  # the numbers of strokes are the sizes of tables
            raise ValueError(f"stroke {number} after stroke {before}")
        runs = checked_runs(line["runs"], str(line["picture"]), size)
        stroke = Stroke(number, str(line["picture"]), size, runs, str(line["kind"]), planes)
        if "key" in line:
            self.keys.setdefault(checked_key(line["key"]), number)
        self.strokes[number] = stroke
        labels = self._maps.get(stroke.picture)
        if labels is None or labels.ids.shape != size:  # a picture that was replaced by one of another size
            labels = self._maps[stroke.picture] = LabelMap.empty(size)
        labels.draw(stroke)
        return stroke.picture

    def _apply_undo(self, line: dict[str, Any]) -> str:
        """Undoes or redoes the stroke of a line; returns its picture."""
        number = int(line["undo" if "undo" in line else "redo"])
        picture = self.strokes[number].picture
        self.undone = self.undone | {number} if "undo" in line else self.undone - {number}
        self._redraw(picture)
        return picture

    def _apply_class(self, line: dict[str, Any]) -> bool:
        """Applies a line of classes; returns whether labels may have changed."""
        if "class" in line:
            label = int(line["class"])
            if not 0 <= label < MAX_CLASSES or label in self.merged or label in self.deleted:
                raise ValueError(f"a class of the id {label}")
            self.classes[label] = LabelClass(label, checked_name(line["name"]), checked_color(line["color"]))
            return False
        if "order" in line:
            order = [int(label) for label in line["order"]]
            if sorted(order) != sorted(self.classes):
                raise ValueError(f"the order {order} of the classes {sorted(self.classes)}")
            self.classes = {label: self.classes[label] for label in order}
            return False
        if "merge" in line:
            label, into = int(line["merge"]), int(line["into"])
            if label == into or label not in self.classes or into not in self.classes:  # no circles
                raise ValueError(f"class {label} merged into {into}, of the classes {sorted(self.classes)}")
            self.merged[label] = into
        elif "delete" in line:
            label = int(line["delete"])
            if label not in self.classes:
                raise ValueError(f"class {label} deleted, of the classes {sorted(self.classes)}")
            self.deleted.add(label)
        else:
            raise ValueError("it says nothing that is known")
        del self.classes[label]
        return True

    def _redraw(self, picture: str) -> None:
        labels = LabelMap.empty(self._maps[picture].ids.shape)
        for stroke in self.active(picture):
            if stroke.size == labels.ids.shape:
                labels.draw(stroke)
        self._maps[picture] = labels
