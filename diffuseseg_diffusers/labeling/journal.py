# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""An append-only journal of strokes and classes: one line of JSON each, synced to disk before the next is accepted.

Label maps are what the lines amount to. A stroke that is undone is left out, a class that was merged into another is
read as that one, so nothing that was drawn is ever lost, and strokes of two pages fit into one another.
"""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..images.image_processor import default_palette
from ..jobs.errors import UserError


Runs: TypeAlias = Sequence[Sequence[int]] | np.ndarray  # row, first column, column behind the last, class id
JOURNAL = "strokes.jsonl"  # in the folder of a session
IMPORT = "import"
KINDS = ("stroke", "accept", IMPORT)  # drawn; a predicted region that was accepted; annotations of another program
UNLABELED = 255
BROKEN = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, UserError)
MAX_CLASSES = 255  # ids 0 to 254
FEW_RUNS = 1000  # that a stroke may have in the smallest of pictures
MAX_PIXELS = 2**24  # of a picture; larger ones are to be cut first


@dataclass
class LabelClass:
    """A class of labels."""

    id: int  # 0 to 254; stays the same when classes before it are merged away
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
        UserError: A line of the file is broken. An incomplete last line is dropped.
    """

    path: Path
    classes: dict[int, LabelClass] = field(default_factory=dict)  # by id, in order, those that were not merged
    strokes: dict[int, Stroke] = field(default_factory=dict)
    undone: set[int] = field(default_factory=set)
    merged: dict[int, int] = field(default_factory=dict)
    revision: int = 0  # lines so far
    changed: dict[str, int] = field(default_factory=dict)  # by picture, the revision of its last change
    _maps: dict[str, LabelMap] = field(default_factory=dict)
    _read: int = 0  # bytes of the file that are in memory

    def __post_init__(self) -> None:
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}).") from error
        whole = content[: content.rfind(b"\n") + 1]
        self._read = len(whole)
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                self._apply(json.loads(line))
            except BROKEN as error:
                what = f"Line {number} of {self.path} is broken ({error!r})"
                raise UserError(f"{what}; remove it to go on without that stroke.") from error
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))

    def labels(self, picture: str, size: tuple[int, int]) -> LabelMap:
        """The labels of a picture, empty if there are none. Read-only."""
        return self._maps.get(picture) or LabelMap.empty(size)

    def resolved(self, ids: np.ndarray) -> np.ndarray:
        """Class ids after merging, of the same shape."""
        table = np.arange(256, dtype=np.uint8)
        for label in self.merged:
            table[label] = self.target(label)
        return table[ids]

    def target(self, label: int) -> int:
        """The class into which a class was merged, or itself."""
        while label in self.merged:
            label = self.merged[label]
        return label

    def active(self, picture: str | None = None) -> list[Stroke]:
        """Strokes that are not undone, in their order; of one picture, or all."""
        strokes = list(self.strokes.values())  # at once: another thread may draw
        found = (s for s in strokes if s.number not in self.undone)
        return [s for s in found if picture is None or s.picture == picture]

    def draw(self, picture: str, size: tuple[int, int], runs: Runs, kind: str = "stroke") -> int:
        """Adds a stroke; returns its number.

        Args:
            picture (`str`), size (two `int`): Which picture, and its height and width.
            runs (sequence of four `int`): Row, first column, column behind the last, class id or 255 to erase.
            kind (`str`): One of `KINDS`.

        Raises:
            UserError: A run lies outside the picture, is empty or has an unknown class, or there is none.
            OSError: The stroke could not be written, and is not accepted.
        """
        self.catch_up()
        given = _checked_runs(runs, picture, size)
        unknown = set(np.unique(given[:, 3]).tolist()) - {UNLABELED, *self.classes, *self.merged}
        if unknown:
            raise UserError(f"There is no class with the id {min(unknown)}; there are {sorted(self.classes)}.")
        if kind not in KINDS:
            raise UserError(f"A stroke is of the kind {', '.join(map(repr, KINDS))}, got {kind!r}.")
        number = max(self.strokes, default=0) + 1
        line = {"stroke": number, "picture": picture, "size": list(size), "kind": kind, "runs": given.tolist()}
        self._write(line)
        return number

    def set_undone(self, number: int, undone: bool = True) -> None:
        """Undoes or redoes a stroke.

        Raises:
            UserError: There is no such stroke.
        """
        self.catch_up()
        if number not in self.strokes:
            raise UserError(f"There is no stroke {number}.")
        if (number in self.undone) != undone:
            self._write({"undo" if undone else "redo": number})

    def add_class(self, name: str, color: Sequence[int] | None = None) -> LabelClass:
        """Adds a class; its colour is the next of the palette if none is given.

        Raises:
            UserError: The name is empty or taken, the colour is invalid, or there are 255 classes already.
        """
        self.catch_up()
        label = max([*self.classes, *self.merged], default=-1) + 1
        if label >= MAX_CLASSES:
            raise UserError(f"There are {MAX_CLASSES} classes at most.")
        given = default_palette(max(label + 1, 2))[label] if color is None else color
        self._write({"class": label, "name": self._free_name(name, label), "color": _checked_color(given)})
        return self.classes[label]

    def change_class(self, label: int, name: str | None = None, color: Sequence[int] | None = None) -> LabelClass:
        """Renames or recolours a class.

        Raises:
            UserError: There is no such class, the name is empty or taken, or the colour is invalid.
        """
        self.catch_up()
        own = self._class(label)
        name = own.name if name is None else self._free_name(name, label)
        self._write({"class": label, "name": name, "color": own.color if color is None else _checked_color(color)})
        return self.classes[label]

    def merge_classes(self, label: int, into: int) -> None:
        """Merges a class into another.

        Raises:
            UserError: There is no such class, or they are the same.
        """
        self.catch_up()
        self._class(label)
        self._class(into)
        if label == into:
            raise UserError("A class cannot be merged into itself.")
        self._write({"merge": label, "into": into})

    def catch_up(self) -> None:
        """Reads lines that another journal of this process appended to the same file."""
        if not self.path.exists() or self.path.stat().st_size <= self._read:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        for line in new.splitlines():
            self._apply(json.loads(line))
        self._read += len(new)

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
        if self.revision and not self.path.exists():
            lost = f"{self.path} is gone, and with it what was drawn; nothing more is taken"
            mend = "Download the labels, which are still in memory, before the page is ended"
            raise FileNotFoundError(errno.ENOENT, f"{lost}. {mend}")
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
        self._read = before + len(data)
        self._apply(line)

    def _apply(self, line: dict[str, Any]) -> None:
        """Applies a line to the state in memory."""
        self.revision += 1
        if "stroke" in line:
            size = (int(line["size"][0]), int(line["size"][1]))
            if not 0 < size[0] * size[1] <= MAX_PIXELS:
                raise ValueError(f"a picture of {size[1]} x {size[0]} pixels")
            runs = _checked_runs(line["runs"], str(line["picture"]), size)
            stroke = Stroke(int(line["stroke"]), str(line["picture"]), size, runs, str(line["kind"]))
            self.strokes[stroke.number] = stroke
            labels = self._maps.get(stroke.picture)
            if labels is None or labels.ids.shape != size:  # a picture that was replaced by one of another size
                labels = self._maps[stroke.picture] = LabelMap.empty(size)
            labels.draw(stroke)
            self.changed[stroke.picture] = self.revision
        elif "undo" in line or "redo" in line:
            number = int(line.get("undo") or line.get("redo"))
            self.undone = self.undone ^ {number}
            self._redraw(self.strokes[number].picture)
        elif "class" in line:
            label = int(line["class"])
            if not 0 <= label < MAX_CLASSES:
                raise ValueError(f"a class of the id {label}")
            self.classes[label] = LabelClass(label, str(line["name"]), [int(c) for c in line["color"]])
        elif "merge" in line:
            self.merged[int(line["merge"])] = int(line["into"])
            del self.classes[int(line["merge"])]
            self.changed = dict.fromkeys(self.changed, self.revision)
        else:
            raise ValueError("it says nothing that is known")

    def _redraw(self, picture: str) -> None:
        labels = LabelMap.empty(self._maps[picture].ids.shape)
        for stroke in self.active(picture):
            if stroke.size == labels.ids.shape:
                labels.draw(stroke)
        self._maps[picture] = labels
        self.changed[picture] = self.revision


def checked_name(name: str) -> str:
    """Validates the name of a class and strips white space.

    Raises:
        UserError: The name is empty, too long, or has unprintable characters.
    """
    name = " ".join(str(name).split())
    if not name or len(name) > 100 or not name.isprintable():
        raise UserError(f"A class needs a name of 1 to 100 characters that can be shown, got {name[:120]!a}.")
    return name


def _checked_runs(runs: Runs, picture: str, size: tuple[int, int]) -> np.ndarray:
    wrong_kind = "The runs of a stroke are lists of four whole numbers: row, start, stop, class id."
    try:
        given = np.array(runs)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(wrong_kind) from error
    if given.dtype.kind not in "iu" or given.ndim != 2 or given.shape[1] != 4 or not len(given):
        raise UserError(wrong_kind)
    if len(given) > max(FEW_RUNS, size[0] * size[1]):
        raise UserError(f"A stroke has {len(given):,} runs, more than {picture} has pixels.")
    rows, starts, stops, labels = given.T
    inside = (rows >= 0) & (rows < size[0]) & (starts >= 0) & (starts < stops) & (stops <= size[1])
    if not inside.all():
        wrong = given[~inside][0].tolist()
        raise UserError(f"A stroke lies outside {picture}, which is {size[1]} x {size[0]} pixels: run {wrong[:3]}.")
    if labels.min() < 0 or labels.max() > 255:
        raise UserError(f"A class id is 0 to 254, or 255 to erase; got {labels[(labels < 0) | (labels > 255)][0]}.")
    return given.astype(np.int32)


def _checked_color(color: Sequence[int]) -> list[int]:
    values = list(color) if isinstance(color, (list, tuple)) else []
    if len(values) != 3 or any(isinstance(c, bool) or not isinstance(c, int) or not 0 <= c <= 255 for c in values):
        raise UserError(f"A colour is three whole numbers from 0 to 255, got {color!r}.")
    return values
