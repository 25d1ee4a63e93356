# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The figures of the documentation come from the results of the benchmarks."""

import argparse
import json
import re
import sys

import pytest

from .conftest import ROOT


sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import tables
finally:
    sys.path.pop(0)

# What a cell with a measured figure begins with, and where other tables say that theirs are none.
FIGURE = re.compile(r"^\W*\d[\d.,]*\s*(%|s|ms|×|MB|MiB|GiB)?\**( \(.*\))?$")
EXEMPT = re.compile(r"<!-- not measured: .+ -->\n\Z")
# Times, memory and accuracy in a sentence, and the code blocks that may hold anything.
MEASURED = re.compile(
    r"\b\d[\d.,]*(?: (?:points?|GiB|ms|s|seconds?|minutes?|hours?|dB)\b| ?× as| times as)"
    r"|\b(?:mean )?IoU (?:of |is )?\d\.\d"
)
CODE = re.compile(r"^```.*?^```$", re.M | re.S)
RESULTS = sorted(tables.RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_tables_and_values_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert tables.written(text) == text, "run `make results`"


@pytest.mark.parametrize("place", tables.PICTURES)
def test_pictures_are_drawn_from_the_results(place):
    assert tables.current(ROOT / place, tables.PICTURES[place][0]), "run `make results`"


def unbacked(text: str) -> list[str]:
    """First lines of tables with figures that no result gave."""
    without = tables.TABLE.sub("", text)
    found = re.finditer(r"(?:^\|.*\n)+", without, re.M)
    rest = [m for m in found if not EXEMPT.search(without[: m.start()])]
    body = {m[0].splitlines()[0]: m[0].splitlines()[2:] for m in rest}
    return [head for head, rows in body.items() if any(FIGURE.match(c.strip()) for r in rows for c in r.split("|"))]


def by_hand(text: str) -> list[str]:
    """Measured figures in sentences that no result gave."""
    return [m[0] for m in MEASURED.finditer(CODE.sub("", tables.VALUE.sub("", tables.TABLE.sub("", text))))]


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_table_of_figures_comes_from_a_result(page):
    assert not unbacked(page.read_text(encoding="utf-8"))


def test_a_table_copied_by_hand_is_found():
    by_hand = "| | mean IoU |\n|---|---|\n| ours | **0.873** (0.871 to 0.874) |\n"
    assert unbacked(by_hand) == ["| | mean IoU |"]
    assert not unbacked(f"<!-- not measured: definitions -->\n{by_hand}")
    assert not unbacked("| option | meaning |\n|---|---|\n| `--dtype` | precision |\n")


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_no_sentence_holds_a_measured_figure_by_hand(page):
    assert not by_hand(page.read_text(encoding="utf-8"))


def test_a_figure_written_by_hand_is_found():
    assert by_hand("It takes about 1.5 s a megapixel.") == ["1.5 s"]
    assert by_hand("It reaches a mean IoU of 0.87.") == ["mean IoU of 0.8"]
    assert not by_hand("It peaks at <!-- value: memory peak any 1 -->3.5<!-- end --> GiB.")
    assert not by_hand("```bash\nsleep 5 s\n```\n")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_what_they_were_measured_with(path):
    result = json.loads(path.read_text(encoding="utf-8"))
    assert {"version", "commit", "processor", "threads", "date"} <= set(result["measured"])
    assert re.fullmatch(r"[0-9a-f]{7,}", result["measured"]["commit"])
    assert result["about"].endswith(".") and result["command"] and result["rows"]
    assert all(set(row) <= set(result["columns"]) for row in result["rows"])
    assert not re.search(r"/(root|home|tmp|work)/", result["command"])


def test_every_result_is_shown():
    shown = {m["name"] for page in tables.PAGES for m in tables.TABLE.finditer(page.read_text(encoding="utf-8"))}
    assert {path.stem for path in RESULTS} == shown


def test_values_in_sentences_are_written(monkeypatch):
    result = {"columns": {"labels": ["", "int"], "ours": ["", "percent"]}, "rows": [{"labels": 2, "ours": [0.7, 0.8]}]}
    monkeypatch.setattr(tables, "read", lambda name: result)
    text = "It is <!-- value: any ours 2 percent -->0<!-- end --> %."
    assert tables.written(text) == "It is <!-- value: any ours 2 percent -->75.0<!-- end --> %."


def test_a_benchmark_resumes_what_the_same_command_began(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    harness = pytest.importorskip("harness")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine", lambda: {"processor": "any", "threads": 1})
    columns = {"side": ("", "text"), "seconds": ("s", "1")}

    def result(command: str):
        monkeypatch.setattr(sys, "argv", command.split())
        return harness.Result("trial", columns, argparse.Namespace(seeds=[0]), "A trial.")

    assert result("bench_any.py --rounds 2").cell("one", lambda: 1) == 1
    assert result("bench_any.py --rounds 2").cell("one", lambda: 2) == 1
    assert result("bench_any.py --rounds 3").cell("one", lambda: 2) == 2


def test_sides_take_turns_and_ratios_are_of_the_same_round(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    harness = pytest.importorskip("harness")
    order: list[str] = []
    seconds = harness.in_turn({"ours": lambda: order.append("ours"), "theirs": lambda: order.append("theirs")}, 2)
    assert order == ["ours", "theirs"] * 3 and {len(values) for values in seconds.values()} == {2}
    assert harness.ratio({"slow": [4.0, 9.0, 6.0], "fast": [2.0, 3.0, 2.0]}, "slow", "fast") == 3.0
