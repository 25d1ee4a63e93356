# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Command lines made from configurations, parsed by cyclopts."""

import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, MissingArgumentError, Parameter, Token, convert

from .command import run_command, show_log
from .config import Config, Option


def command_line(name: str, description: str, version: str, configs: Mapping[str, type[Config]]) -> App:
    """The parser of a program with a command for each configuration; a command's help begins with its docstring."""
    app = _app(name, description, version=version)
    for command, config in configs.items():
        app.command(_app(command, config.__doc__, default=config))
    return app


def config_line(name: str, config: type[Config]) -> App:
    """The parser of a script with one configuration."""
    return _app(name, config.__doc__, default=config)


def parse(app: App, words: list[str]) -> Config | None:
    """The configuration that a command line gives; `None` where help or version were asked for, and printed.

    Raises:
        SystemExit: The words are not understood (status 2); the usage of the command and a sentence are on stderr.
        UserError: A value is out of range, or some do not go together.
    """
    try:
        words = _with_phrases(words)
        function, bound, *_ = app.parse_args(words, exit_on_error=False, print_error=False, verbose=False)
    except CycloptsError as error:
        print(_explained(app, error, words), file=sys.stderr)
        sys.exit(2)
    return function(*bound.args, **bound.kwargs)


def _explained(app: App, error: CycloptsError, words: list[str]) -> str:
    """The usage of the command that was meant, and what is wrong with the words."""
    command = " ".join([*app.name, *(error.command_chain or ())])
    for word in error.command_chain or ():
        app = app[word]
    known = list(app.assemble_argument_collection()) if app.default_command else []
    form = "".join(f" {one.name}" for one in known if not one.name.startswith("--"))
    form = f"[OPTIONS]{form}" if app.default_command else "COMMAND"
    sentence = str(error)
    if isinstance(error, MissingArgumentError) and not (error.tokens_so_far or error.keyword):
        given = {word.partition("=")[0] for word in words}
        required = [one for one in known if one.required and one.name.startswith("--")]
        missing = (one for one in required if not given & set(one.names))
        absent = list(dict.fromkeys([error.argument.name, *(one.name for one in missing)]))  # type: ignore[union-attr]
        sentence = f"{' and '.join(absent)} {'are' if len(absent) > 1 else 'is'} required."
    return f"usage: {command} {form}; {command} --help lists them\nerror: {sentence}"


def _with_phrases(words: list[str]) -> list[str]:
    """The same words, but values of several words that begin as options do, such as `"--size 64"`, joined by `=`."""
    joined: list[str] = []
    for word in words:
        phrase = word.startswith("--") and " " in word.partition("=")[0]  # "--prompt=a photo" is an option
        if phrase and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def run_script(config: type[Config], function: Callable[[Any], Any]) -> None:
    """Runs a task with the configuration that the process's command line gives, and ends the process."""

    def run() -> int:
        given = parse(config_line(Path(sys.argv[0]).name, config), sys.argv[1:])
        if given is not None:
            if getattr(given, "verbose", False):
                show_log()
            function(given)
        return 0

    run_command(run)


def _app(name: str, description: str | None, default: type[Config] | None = None, **more: Any) -> App:
    """A parser whose options are named as the fields are, with underscores."""
    usual = Parameter(name_transform=lambda field: field, negative=(), allow_repeating=True)  # the last one holds
    app = App(name=name, help=description, help_format="plaintext", default_parameter=usual, **more)
    if default is not None:
        app.default(_constructor(default))
    else:
        app.version_flags = ("--version",)
    return app


def _constructor(config: type[Config]) -> Any:
    """A function with a parameter for each field that makes the configuration."""
    hints = typing.get_type_hints(config)
    headings = {field: heading for heading, names in config.grouped().items() for field in names}
    groups = {name: Group(name or "Options", sort_key=i) for i, name in enumerate(dict.fromkeys(headings.values()))}
    parameters, several = [], None
    for one in fields(config):
        own, hint = one.metadata["option"], hints[one.name]
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        kind = inspect.Parameter.POSITIONAL_ONLY if own.positional else inspect.Parameter.KEYWORD_ONLY
        if own.positional and typing.get_origin(hint) is tuple:
            several, kind = one.name, inspect.Parameter.VAR_POSITIONAL
            hint, default = typing.get_args(hint)[0], inspect.Parameter.empty
        annotation: Any = Annotated[hint, _parameter(one.name, own, hint, default, groups[headings[one.name]])]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(one.name, kind, default=default, annotation=annotation))
    parameters.sort(key=lambda parameter: parameter.kind)
    single = [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.POSITIONAL_ONLY]

    def construct(*words: Any, **options: Any) -> Config:
        if several:
            options[several] = words[len(single) :]
        return config(**dict(zip(single, words)), **options)

    construct.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return construct


def _last_given(hint: Any, tokens: Sequence[Token]) -> Any:
    """The values of an option that takes several; of one that is given twice, those of the last time.

    A backslash protects a hyphen in front of a value: `--object_classes "\\-tumour" other`.
    """
    last = max((i for i, token in enumerate(tokens) if token.index == 0), default=0)
    return convert(hint, [t.evolve(value=t.value[t.value.startswith("\\-") :]) for t in tokens[last:]])


def _parameter(name: str, own: Option, hint: Any, default: Any, group: Group) -> Parameter:
    more: dict[str, Any] = {} if own.positional else {"name": (f"--{name}", *own.aliases)}
    if own.negative:
        more["negative"] = own.negative
    elif default == () or bool in (hint, *typing.get_args(hint)):
        more["show_default"] = False
    if own.parse is not None:
        parse_word = own.parse
        more["converter"] = lambda kind, tokens: parse_word(tokens[0].value)
    if any(typing.get_origin(kind) is tuple for kind in (hint, *typing.get_args(hint))):
        more |= {"consume_multiple": True, "converter": _last_given}
    return Parameter(
        help=own.help + (f" [choices: {', '.join(map(str, own.choices))}]" if own.choices else ""), group=group, **more
    )
