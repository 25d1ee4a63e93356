# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the site needs beside its plugins: the table of public names, and links of the form [`Name`] in docstrings."""

import ast
import re
from pathlib import Path


PACKAGE = Path(__file__).parent.parent / "diffuseseg_diffusers"


def public_names() -> dict[str, str]:
    """The public names and where they are defined, read from `__init__.py` without importing it."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC":
            return {name: f"{PACKAGE.name}.{module}.{name}" for name, module in ast.literal_eval(node.value).items()}
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


def on_page_markdown(markdown: str, page, config, files) -> str:
    rows = "".join(f"| [`{name}`][{full}] | {summary(full)} |\n" for name, full in public_names().items())
    return markdown.replace("<!-- public names -->", f"| name | |\n|---|---|\n{rows}")


def on_page_content(html: str, page, config, files) -> str:
    known = definitions()

    def link(match: re.Match) -> str:
        name = match[2].removeprefix("diffuseseg_diffusers.")
        shown = name.split(".")[-1] if match[1] else name
        code = f"<code>{shown}</code>"
        return f'<autoref identifier="{known[name]}" optional>{code}</autoref>' if name in known else code

    return re.sub(r"\[<code>(~?)([\w.]+)</code>\](?!\()", link, html)
