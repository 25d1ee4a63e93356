# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.labeling.journal import UNLABELED, Journal

from .conftest import full_disk


SIZE = (4, 6)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "strokes.jsonl")
    for name in ("sky", "disc", "bar"):
        journal.add_class(name)
    return journal


def runs_of_rows():
    run = st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 6), st.sampled_from([0, 1, 2, UNLABELED]))
    return st.lists(run.map(lambda r: [r[0], r[1], max(r[2], r[1] + 1), r[3]]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(runs_of_rows(), st.tuples(st.sampled_from("ur"), st.integers(1, 8))), max_size=12))
def test_labels_are_the_strokes_that_are_not_undone_one_over_the_other(tmp_path_factory, actions):
    """Against the plain formula, and the same after it is read again."""
    path = tmp_path_factory.mktemp("journal") / "strokes.jsonl"
    journal = Journal(path)
    for name in ("sky", "disc", "bar"):
        journal.add_class(name)
    strokes, undone = [], set()
    for action in actions:
        if isinstance(action, list):
            strokes.append(action)
            assert journal.draw("a.png", SIZE, action) == len(strokes)
        elif action[1] <= len(strokes):
            journal.set_undone(action[1], action[0] == "u")
            undone = undone | {action[1]} if action[0] == "u" else undone - {action[1]}
    ids, numbers = np.full(SIZE, UNLABELED), np.zeros(SIZE, int)
    for number, runs in enumerate(strokes, 1):
        for y, start, stop, label in runs if number not in undone else ():
            for x in range(start, stop):
                ids[y, x], numbers[y, x] = label, 0 if label == UNLABELED else number
    for state in (journal, Journal(path)):
        found = state.labels("a.png", SIZE)
        assert (found.ids == ids).all() and (found.strokes == numbers).all()
        assert [s.number for s in state.active()] == [n for n in range(1, len(strokes) + 1) if n not in undone]
        assert state.revision == journal.revision


def test_merged_classes_are_one_and_their_ids_are_not_used_again(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1], [1, 0, 3, 2]])
    journal.merge_classes(1, 2)
    journal.merge_classes(2, 0)
    assert list(journal.classes) == [0] and journal.add_class("new").id == 3
    for state in (journal, Journal(journal.path)):
        resolved = state.resolved(state.labels("a.png", SIZE).ids)
        assert (resolved[:2, :3] == 0).all() and (resolved[2:] == UNLABELED).all()
    # A page that does not know of it yet may still draw with the old id.
    journal.draw("a.png", SIZE, [[3, 0, 6, 1]])
    assert (journal.resolved(journal.labels("a.png", SIZE).ids)[3] == 0).all()


def test_classes_are_renamed_and_recoloured(journal):
    journal.change_class(1, name="  moon  ")
    journal.change_class(1, color=[1, 2, 3])
    again = Journal(journal.path).classes[1]
    assert (again.name, again.color) == ("moon", [1, 2, 3])


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([[0, 0, 7, 0]], "lies outside a.png, which is 6 x 4 pixels"),
        ([[4, 0, 1, 0]], "lies outside"),
        ([[-1, 0, 1, 0]], "lies outside"),
        ([[0, 2, 2, 0]], "lies outside"),
        ([[0, 0, 1, 9]], r"There is no class with the id 9; there are \[0, 1, 2\]"),
        ([[0, 0, 1, 256]], "0 to 254"),
        ([[0, 0, 1, -1]], "0 to 254"),
        ([[0, 0, 1]], "lists of four whole numbers"),
        ([[0, 0, 1, 2**70]], "lists of four whole numbers"),
        ([], "lists of four whole numbers"),
        ("runs", "lists of four whole numbers"),
    ],
)
def test_strokes_that_do_not_fit_are_refused_and_change_nothing(journal, runs, said):
    before = (journal.path.read_bytes(), journal.revision)
    with pytest.raises(UserError, match=said):
        journal.draw("a.png", SIZE, runs)
    assert (journal.path.read_bytes(), journal.revision) == before


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda j: j.add_class("sky"), "merge the two"),
        (lambda j: j.add_class("  "), "1 to 100 characters"),
        (lambda j: j.add_class("x" * 101), "1 to 100 characters"),
        (lambda j: j.add_class("x\ud800"), "characters that can be shown"),
        (lambda j: j.draw("a.png", SIZE, [[0, 0, 1, 0]] * 1001), "1,001 runs, more than a.png has pixels"),
        (lambda j: j.draw("a.png", SIZE, [[0, 0, 1.5, 0]]), "four whole numbers"),
        (lambda j: j.add_class("new", [0, 0, 256]), "three whole numbers from 0 to 255"),
        (lambda j: j.add_class("new", "red"), "three whole numbers from 0 to 255"),
        (lambda j: j.change_class(7, "new"), "no class with the id 7"),
        (lambda j: j.change_class(0, "disc"), "merge the two"),
        (lambda j: j.merge_classes(0, 0), "into itself"),
        (lambda j: j.merge_classes(0, 7), "no class with the id 7"),
        (lambda j: j.set_undone(1), "no stroke 1"),
        (lambda j: j.draw("a.png", SIZE, [[0, 0, 1, 0]], "guess"), "'stroke', 'accept', 'import', got 'guess'"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(journal, act, said):
    before = journal.path.read_bytes()
    with pytest.raises(UserError, match=said):
        act(journal)
    assert journal.path.read_bytes() == before


def test_255_classes_are_the_most(tmp_path):
    journal = Journal(tmp_path / "strokes.jsonl")
    with open(journal.path, "w") as file:
        for i in range(255):
            file.write(json.dumps({"class": i, "name": f"c{i}", "color": [0, 0, 0]}) + "\n")
    with pytest.raises(UserError, match="255 classes at most"):
        Journal(journal.path).add_class("one more")


def test_what_a_kill_left_of_a_line_is_dropped(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole + b'{"stroke":2,"picture":"a.p')
    again = Journal(journal.path)
    assert again.revision == journal.revision and journal.path.read_bytes() == whole
    assert again.draw("a.png", SIZE, [[1, 0, 3, 1]]) == 2


BROKEN = ["{}", "nothing", '{"stroke":1}', '{"undo":7}', "[1]", '{"merge":9,"into":0}', "[" * 100_000]
BROKEN += ['{"class":300,"name":"x","color":[0,0,0]}', '{"undo":1e999}']
for size, run in (("[99999,99999]", "[0,0,1,0]"), ("[4,6]", "[0,0,99999999999,0]"), ("[4,6]", "[0,0,1,300]")):
    BROKEN.append(f'{{"stroke":1,"picture":"a.png","size":{size},"kind":"stroke","runs":[{run}]}}')


@pytest.mark.parametrize("line", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_line_is_named(journal, line):
    with open(journal.path, "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"Line 4 of .*strokes.jsonl is broken"):
        Journal(journal.path)


def test_a_full_disk_loses_only_the_stroke_that_did_not_fit(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    whole = journal.path.read_bytes()
    with full_disk(len(whole) + 10), pytest.raises(OSError, match="what was there before is kept"):
        journal.draw("a.png", SIZE, [[1, 0, 3, 1]])
    assert journal.path.read_bytes() == whole
    assert (journal.labels("a.png", SIZE).ids == Journal(journal.path).labels("a.png", SIZE).ids).all()
    assert journal.draw("a.png", SIZE, [[1, 0, 3, 1]]) == 2


@pytest.mark.slow
def test_kill_9_loses_at_most_the_stroke_in_the_air(tmp_path):
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from diffuseseg_diffusers.labeling.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "journal.add_class('sky')\n"
        "while True:\n"
        "    print(journal.draw('a.png', (4, 6), [[0, 0, 3, 0]] * 50), flush=True)\n"
    )
    path = tmp_path / "strokes.jsonl"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = 20 + len(process.stdout.read().splitlines())
    process.wait()
    strokes = len(Journal(path).strokes)
    assert acknowledged <= strokes <= acknowledged + 1


def test_a_picture_that_was_replaced_by_one_of_another_size_begins_anew(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    journal.draw("a.png", (8, 8), [[7, 0, 3, 2]])
    assert journal.labels("a.png", (8, 8)).ids[7, 0] == 2
    journal.set_undone(2)
    assert (journal.labels("a.png", (8, 8)).ids == UNLABELED).all()


def test_a_journal_that_is_gone_takes_nothing_more(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    journal.path.unlink()
    with pytest.raises(OSError, match="is gone, and with it what was drawn; nothing more is taken"):
        journal.draw("a.png", SIZE, [[1, 0, 3, 1]])
    assert not journal.path.exists() and len(journal.active()) == 1
    (journal.path).mkdir()
    with pytest.raises(UserError, match="strokes.jsonl cannot be read"):
        Journal(journal.path)


def test_strokes_are_listed_while_others_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    journal = Journal(tmp_path / "strokes.jsonl")
    journal.add_class("sky")
    for _ in range(1000):
        journal.draw("a.png", SIZE, [[0, 0, 3, 0]])
    errors, done = [], threading.Event()

    def look():
        while not done.is_set():
            try:
                journal.active()
            except RuntimeError as error:
                errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(200):
        journal.draw("a.png", SIZE, [[0, 0, 3, 0]])
    done.set()
    thread.join()
    assert errors == []
