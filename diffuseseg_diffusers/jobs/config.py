# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Typed configurations: a dataclass for each task, from which its command line, record and documentation follow."""

import math
import numbers
import re
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from .errors import UserError


@dataclass(frozen=True)
class Option:
    """What is known of a field beside its name, type and default."""

    help: str  # one line, imperative or a noun phrase; the default is added where it is shown
    aliases: tuple[str, ...] = ()  # further names of the option on the command line, such as --train_data_dir
    negative: str = ""  # name of the option that sets a flag to False
    group: str = ""  # heading in the help; that of the class (`title`) if empty
    choices: tuple = ()  # values that are allowed; all if empty
    minimum: float | None = None  # limits of the number, or of each number of a tuple
    above: float | None = None
    maximum: float | None = None
    parse: Callable[[str], Any] | None = None  # makes the value of a word of the command line
    positional: bool = False  # whether the command line takes it without a name
    influence: bool = True  # whether results depend on the value, so that it is part of a run's identity
    why: str = ""  # of fields without influence, why: a half-sentence for the reader of the code and the test
    reads: bool = False  # whether the value names files or folders that the task reads, and must not remove


def option(default: Any = MISSING, help: str = "", **more: Any) -> Any:
    """A field of a [`Config`]; further arguments are those of [`Option`]. Without a default it is required."""
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configurations: normalises and checks its values once, whoever gives them.

    Lists and single values become tuples where several are taken, and names of files paths; numbers must be finite,
    within the limits of their field, and at least 0 where it states none. Subclasses are frozen keyword-only
    dataclasses. What does not go together is refused in `check`.

    Raises:
        UserError: A value is of another type or out of range, or some do not go together; names the options.
    """

    title: ClassVar[str] = ""  # heading of the fields in the help

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name, own in self.options().items():
            value = getattr(self, name)
            if own.parse is not None and isinstance(value, str):
                try:
                    value = own.parse(value)
                except ValueError as error:
                    raise UserError(f"--{name}: {error}.") from error
            value = _normalised(value, hints[name])
            if not _is_of(value, hints[name]):
                kind = getattr(hints[name], "__name__", None) if isinstance(hints[name], type) else None
                raise UserError(f"--{name} must be of type {kind or hints[name]}, got {value!r}.")
            object.__setattr__(self, name, value)
            _check(name, value, own)
        self.check()

    def check(self) -> None:
        """Refuses what does not go together; subclasses extend it and call that of their bases."""

    @classmethod
    def options(cls) -> dict[str, Option]:
        """Each field's [`Option`] by its name."""
        return {one.name: one.metadata["option"] for one in fields(cls)}

    @classmethod
    def grouped(cls) -> dict[str, list[str]]:
        """Names of the fields by heading, those of the class itself first."""
        found: dict[str, list[str]] = {}
        options = cls.options()
        for home in cls.__mro__:
            for name in home.__dict__.get("__annotations__", {}):
                if options.get(name) and not any(name in names for names in found.values()):
                    found.setdefault(options[name].group or home.__dict__.get("title", ""), []).append(name)
        return found

    def settings(self) -> dict[str, Any]:
        """Values of all fields on which results depend, as JSON holds them."""
        return {name: _as_json(getattr(self, name)) for name, own in self.options().items() if own.influence}

    def arguments(self) -> list[str]:
        """The command line that gives this configuration; parsing it gives an equal one."""
        words: list[str] = []
        positional: list[str] = []
        for one in fields(self):
            value, own = getattr(self, one.name), one.metadata["option"]
            several = list(map(str, _each(value)))
            if value == one.default or value is None:
                continue
            if own.positional:
                positional += several
            elif isinstance(value, bool):
                words.append(f"--{one.name}" if value else own.negative)
            elif isinstance(value, tuple):  # a word with a hyphen in front would be taken for an option
                words += [f"--{one.name}", *("\\" * word.startswith("-") + word for word in several)]
            else:
                words.append(f"--{one.name}={value}")
        dashes = any(word.startswith("-") for word in positional)
        return [*words, "--", *positional] if dashes else [*positional, *words]

    def inputs(self) -> list[str]:
        """Names of the files and folders that the task reads."""
        found: list[str] = []
        for name, own in self.options().items():
            value = getattr(self, name)
            if own.reads and value is not None:
                found += map(str, _each(value))
        return found


@dataclass(frozen=True, kw_only=True)
class WritesFolder(Config):
    """`--output_dir` and `--overwrite`."""

    title = "output"

    output_dir: Path = option(help="Folder for the results.", influence=False, why="where, not what")
    overwrite: bool = option(
        False,
        "Replace an earlier run in that folder: its own files are removed, and no others.",
        influence=False,
        why="what was there, not what is made",
    )


def exclusive(config: Config, *names: str) -> None:
    """Raises [`UserError`] if several of these fields are given."""
    given = [f"--{name}" for name in names if getattr(config, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; give one of them.")


def _each(value: Any) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def _check(name: str, value: Any, own: Option) -> None:
    minimum = 0 if own.minimum is None else own.minimum
    for number in _each(value):
        if own.choices and number is not None and number not in own.choices:
            raise UserError(f"--{name} must be one of {', '.join(map(str, own.choices))}; got {number}.")
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            continue
        if not math.isfinite(number):
            raise UserError(f"--{name} must be a finite number, got {number}.")
        if own.above is not None and not number > own.above:
            raise UserError(f"--{name} must be above {own.above:g}, got {number}.")
        if own.maximum is not None and own.above is None and not minimum <= number <= own.maximum:
            raise UserError(f"--{name} must lie in {minimum:g} to {own.maximum:g}, got {number}.")
        if own.maximum is not None and number > own.maximum:
            raise UserError(f"--{name} must be at most {own.maximum:g}, got {number}.")
        if own.above is None and number < minimum:
            raise UserError(f"--{name} must be at least {minimum:g}, got {number}.")


def _normalised(value: Any, hint: Any) -> Any:
    kinds = _kinds(hint)
    several = next((kind for kind in kinds if typing.get_origin(kind) is tuple), None)
    if several is not None and value is not None:
        found = value if isinstance(value, (list, tuple, range)) else (value,)
        element = typing.get_args(several)[0]
        return tuple(str(x) if element is str and isinstance(x, int) else _normalised(x, element) for x in found)
    if isinstance(value, str) and Path in kinds and str not in kinds:
        return Path(value).expanduser()  # of `--output_dir=~/out` most shells leave the `~` to us
    if isinstance(value, Path):
        return value.expanduser() if Path in kinds else str(value)
    if isinstance(value, str) and {int, str} <= set(kinds) and re.fullmatch(r"\s*-?[0-9]+\s*", value):
        return int(value)  # as on the command line
    if isinstance(value, numbers.Real) and not isinstance(value, bool):  # NumPy's too
        is_whole = isinstance(value, numbers.Integral) and (int in kinds or float not in kinds)
        return int(value) if is_whole else float(value)  # type: ignore[call-overload]
    return value


def _kinds(hint: Any) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a normalised value is of a type."""
    for kind in _kinds(hint):
        if typing.get_origin(kind) is tuple and isinstance(value, tuple):
            each = typing.get_args(kind)
            each = (each[0],) * len(value) if Ellipsis in each else each
            if len(value) == len(each) and all(map(_is_of, value, each)):
                return True
        elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return True
    return False


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(one) for one in value]
    return str(value) if isinstance(value, Path) else value
