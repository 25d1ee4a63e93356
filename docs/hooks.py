# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the site needs beside its plugins: public names, tables of options, and links [`Name`] in docstrings."""

import ast
import re
import sys
import typing
from dataclasses import MISSING
from pathlib import Path


PACKAGE = Path(__file__).parent.parent / "diffuseseg_diffusers"
sys.path.insert(0, str(PACKAGE.parent))

from diffuseseg_diffusers.jobs.config import Config  # noqa: E402
from diffuseseg_diffusers.tasks import TASKS, named  # noqa: E402


def public_names() -> dict[str, str]:
    """The public names and where they are defined, read from `__init__.py` without importing it."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC":
            public = dict(ast.literal_eval(node.value))
            public |= {name: module for pair in TASKS.values() for module, name in (place.split(":") for place in pair)}
            scripts = f"{PACKAGE.name}.training."  # which stand beside the package in a clone
            return {n: f"{PACKAGE.name}.{m}.{n}".replace(scripts, "training.") for n, m in sorted(public.items())}
    raise LookupError("diffuseseg_diffusers/__init__.py holds no _PUBLIC.")


def definitions() -> dict[str, str]:
    """Full names of classes, methods and functions by the names that docstrings use; ambiguous ones are left out."""
    found: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.setdefault(node.name, set()).add(f"{module}.{node.name}")
                for member in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                        name = f"{node.name}.{member.name}"
                        found.setdefault(name, set()).add(f"{module}.{name}")
    return {name: next(iter(places)) for name, places in found.items() if len(places) == 1}


def summary(full_name: str) -> str:
    """First line of an object's docstring."""
    module, name = full_name.rsplit(".", 1)
    tree = ast.parse((PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n")[0]
    return ""


def option_tables(config: type[Config]) -> str:
    """The options of a configuration as Markdown, a table for each heading of the help."""
    options, hints, text = config.options(), typing.get_type_hints(config), ""
    for heading, names in config.grouped().items():
        text += f"\n*{heading}*\n\n" if heading else "\n"
        text += "| option | type | default | |\n|---|---|---|---|\n"
        for name in names:
            own, default = options[name], config.__dataclass_fields__[name].default
            flags = [name] if own.positional else [f"--{name}", *own.aliases, *([own.negative] if own.negative else [])]
            shown = "required" if default is MISSING else "" if default in (None, False, ()) else f"`{default}`"
            kind = getattr(hints[name], "__name__", str(hints[name])) if isinstance(hints[name], type) else hints[name]
            words = f"{own.help} One of {', '.join(map(str, own.choices))}." if own.choices else own.help
            kind = str(kind).replace("pathlib.", "").replace("|", "\\|")
            text += f"| {', '.join(f'`{flag}`' for flag in flags)} | `{kind}` | {shown} | {words} |\n"
    return text


def all_options() -> str:
    """A section for each command."""
    found = ""
    for command, (where, function) in TASKS.items():
        config = named(where)
        names = f"{config.__name__}, {function.partition(':')[2]}"
        first = f"{config.__doc__.splitlines()[0]} In Python: `from {PACKAGE.name} import {names}`."
        found += f"\n## {command}\n\n{first}\n{option_tables(config)}"
    return found


def on_page_markdown(markdown: str, page, config, files) -> str:
    rows = "".join(f"| [`{name}`][{full}] | {summary(full)} |\n" for name, full in public_names().items())
    markdown = markdown.replace("<!-- public names -->", f"| name | |\n|---|---|\n{rows}")
    return markdown.replace("<!-- options -->", all_options()) if "<!-- options -->" in markdown else markdown


def on_page_content(html: str, page, config, files) -> str:
    known = definitions()

    def link(match: re.Match) -> str:
        name = match[2].removeprefix("diffuseseg_diffusers.")
        shown = name.split(".")[-1] if match[1] else name
        code = f"<code>{shown}</code>"
        return f'<autoref identifier="{known[name]}" optional>{code}</autoref>' if name in known else code

    return re.sub(r"\[<code>(~?)([\w.]+)</code>\](?!\()", link, html)
