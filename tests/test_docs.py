# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every code block of the documentation is executed, or parsed by what it calls.

Python blocks run, page by page, in a folder that holds what the pages name: MODEL, DATA, photo.jpg and so on. Each
command of a shell block is parsed by the parser it would meet. A comment right above a block asks for something else:

    <!-- run -->                            the commands are executed
    <!-- run with: OPTIONS | OPTIONS -->    with further options for each line, to save time
    <!-- not run: REASON -->                parsed or imported only; nobody has what it needs
"""

import argparse
import ast
import os
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import diffuseseg_diffusers
from diffuseseg_diffusers import cli
from diffuseseg_diffusers.cli import main
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.jobs import command_line
from diffuseseg_diffusers.students.networks import DEFAULT_STUDENT, make_processor
from diffuseseg_diffusers.tasks import TASKS, named

from .conftest import ROOT, draw, make_pipeline


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "training/README.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
# Programs that are none of ours. What they are given is not checked.
FOREIGN = {"cd", "git", "hf", "pre-commit", "source"}


@dataclass
class Block:
    page: Path
    line: int
    language: str
    mark: str
    text: str

    def commands(self) -> list[list[str]]:
        lines = [shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines()]
        return [line for line in lines if line]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text[: m.start()].count("\n") + 1, m["language"], m["mark"] or "", m["text"])
        for m in BLOCK.finditer(text)
    ]


def of_every_page(language: str):
    found = [block for page in PAGES for block in blocks(page) if block.language == language]
    return pytest.mark.parametrize("block", found, ids=lambda b: f"{b.page.relative_to(ROOT)}:{b.line}")


class Parsed(BaseException):
    """Raised once the arguments of a command are parsed; nothing behind it runs."""


@pytest.fixture
def parse_only(monkeypatch):
    def then_stop(parse):
        def stopped(*args, **kwargs):
            raise Parsed(parse(*args, **kwargs))

        return stopped

    for place, name in ((argparse.ArgumentParser, "parse_args"), (command_line, "parse"), (cli, "parse")):
        monkeypatch.setattr(place, name, then_stop(getattr(place, name)))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", list(sys.path))


@of_every_page("bash")
def test_commands_are_understood_by_what_they_call(block, parse_only, monkeypatch, capsys):
    for command in block.commands():
        while re.fullmatch(r"[A-Z_]+=\S+", command[0]):
            command = command[1:]
        program, arguments = command[0], command[1:]
        scripts = [i for i, word in enumerate(arguments) if word.endswith(".py")]
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M), command
        elif program in ("pip", "python") and "install" in arguments:
            check_install(arguments)
        elif program == "python" and arguments[0] == "-c":
            run_imports(arguments[1])
        elif program == "python" and arguments[0] == "-m":
            assert arguments[1] in ("venv", "diffuseseg_diffusers", "pytest"), command
        elif program == "diffuseseg":
            assert understood(main, arguments), (command, capsys.readouterr().err)
        elif program in ("python", "accelerate", "torchrun") and scripts:
            script = ROOT / arguments[scripts[0]]
            monkeypatch.setattr(sys, "argv", [str(script), *arguments[scripts[0] + 1 :]])
            monkeypatch.syspath_prepend(str(script.parent))
            assert understood(runpy.run_path, str(script), None, "__main__"), (command, capsys.readouterr().err)
        else:
            assert program in FOREIGN, f"{block.page.name}:{block.line} calls {program}, which no test knows"


def understood(function, *args) -> bool:
    try:
        function(*args)
    except Parsed:
        return True
    except SystemExit as end:
        return not end.code  # --help and --version end by themselves
    return False


def check_install(arguments: list[str]) -> None:
    for before, word in zip(arguments, arguments[1:]):
        if before == "-c":
            assert (ROOT / word).is_file()
        if before == "-e":
            extras = re.fullmatch(r"\.(?:\[(.+)\])?", word)[1]
            for extra in extras.split(",") if extras else ():
                assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def run_imports(code: str) -> None:
    for node in ast.walk(compile(code, "block", "exec", ast.PyCF_ONLY_AST)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), "block", "exec"), {})


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the pages name."""
    folder = tmp_path_factory.mktemp("workplace")
    pipe = make_pipeline(head=True, in_channels=3, out_channels=3)
    pipe.save_pretrained(folder / "out" / "model")
    shutil.copytree(folder / "out" / "model", folder / "user" / "faces-diffuseseg")
    names, pipe.segmentation_head = pipe.label_names, None
    pipe.save_pretrained(folder / "MODEL")
    for place, seeds in {
        "DATA/train": range(3),
        "DATA/test": range(3, 5),
        "my/labelled/images": range(3),
    }.items():
        for kind in ("images", "masks"):
            (folder / place / kind).mkdir(parents=True)
        for seed in seeds:
            image, mask = draw((16, 16), seed)
            Image.fromarray(image).save(folder / place / "images" / f"{seed}.png")
            Image.fromarray(mask).save(folder / place / "masks" / f"{seed}.png")
    (folder / "folder" / "of" / "images").mkdir(parents=True)
    for seed, name in enumerate(("photo.jpg", "other.png", "folder/of/images/a.png")):
        Image.fromarray(draw((20, 24), seed, channels=3)[0]).save(folder / name)
    config = SegformerConfig(
        hidden_sizes=[8, 8, 8, 8],
        num_attention_heads=[1, 1, 1, 1],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
        id2label=dict(enumerate(names)),
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder / "out" / "student")
    make_processor(DEFAULT_STUDENT, (32, 32)).save_pretrained(folder / "out" / "student")
    return folder


def shorten_recipes(monkeypatch):
    monkeypatch.setattr("diffuseseg_diffusers.training.train_segmentation_head.MAX_MINUTES", 0.02)
    for name, recipe in RECIPES.items():
        fewer = replace(recipe, max_steps=20, augmented_images=min(recipe.augmented_images, 6))
        monkeypatch.setitem(RECIPES, name, fewer)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(b.language == "python" or b.mark.startswith("run") for b in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_blocks_run_in_the_order_of_their_page(page, workplace, tmp_path, monkeypatch, capsys):
    shutil.copytree(workplace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    shorten_recipes(monkeypatch)
    names = {"__name__": "page"}
    for block in blocks(page):
        if block.mark.startswith("not run: "):
            if block.language == "python":
                run_imports(block.text)
        elif block.language == "python":
            # Blank lines in front: a traceback then shows the line of the page.
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
        elif block.mark.startswith("run"):
            further = re.fullmatch(r"run(?: with: (.*))?", block.mark)[1] or ""
            for command, options in zip(block.commands(), further.split("|") + [""] * len(block.commands())):
                assert command[0] == "diffuseseg"
                if "--output_dir" in command:  # what another page left there
                    shutil.rmtree(command[command.index("--output_dir") + 1], ignore_errors=True)
                with pytest.raises(SystemExit) as end:
                    main([*command[1:], *shlex.split(options)])
                assert not end.value.code, (command, capsys.readouterr().err)
        else:
            assert not block.mark, f"{page.name}:{block.line} has an unknown mark: {block.mark}"


# The others need a checkpoint, a dataset of the paper, or the Hub.
@pytest.mark.parametrize("name", ["analyze", "evaluate", "export-onnx", "fit", "generate", "segment"])
def test_examples_of_tasks_run_as_they_stand(name, workplace, tmp_path, monkeypatch):
    shutil.copytree(workplace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shorten_recipes(monkeypatch)
    lines = re.findall(r"^ *>>> (.*)$", named(TASKS[name][1]).__doc__, re.M)
    assert lines
    exec("\n".join(lines), {"__name__": "example"})


# Public functions that work on what the pages name.
EXAMPLES = [
    *("choose_tiling", "extract_activations", "fit_decisions", "fit_head", "fit_segmentation_head"),
    *("load_labeled_images", "open_raster", "recipe_extractor", "segment_tiled"),
]


def test_examples_of_public_functions_run_as_they_stand(workplace, tmp_path, monkeypatch):
    shutil.copytree(workplace, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    shorten_recipes(monkeypatch)
    for name in EXAMPLES:
        lines = re.findall(r"^ *>>> (.*)$", getattr(diffuseseg_diffusers, name).__doc__, re.M)
        assert lines, name
        exec("\n".join(lines), {"__name__": "example"})


def anchors(page: Path) -> set[str]:
    """What links to a page's headings may say: where GitHub and MkDocs make the same of them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)).strip().lower() for title in titles]
    return {re.sub(r"\s", "-", title) for title in plain} & {re.sub(r"[\s-]+", "-", title) for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target
        # The site holds nothing beside docs/.
        assert (ROOT / "docs") not in page.parents or (ROOT / "docs") in [*Path(os.path.abspath(place)).parents]


def test_the_readme_lists_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `diffuseseg ([\w-]+)` \|", text, re.M)) == set(TASKS)


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 10_000


def test_nothing_names_a_package_that_nobody_owns():
    for page in PAGES:
        assert "pip install diffuseseg" not in page.read_text(encoding="utf-8")


def test_messages_that_troubleshooting_quotes_are_printed_by_the_code():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "diffuseseg_diffusers").rglob("*.py"))
    quoted = re.findall(r'\*\*"(.+?)"', (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert quoted
    for part in (part.strip("` .") for message in quoted for part in message.split("…")):
        assert part in code, part
