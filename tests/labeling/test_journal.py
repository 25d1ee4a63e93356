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
from diffuseseg_diffusers.labeling.folder import keep_port, kept_port, kept_token
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
        (lambda j: j.delete_class(7), "no class with the id 7"),
        (lambda j: j.order_classes([0, 1]), r"names each of the classes \[0, 1, 2\] once, got \[0, 1\]"),
        (lambda j: j.order_classes([0, 1, 1]), "once, got"),
        (lambda j: j.order_classes([0, 1, 2, 3]), "once, got"),
        (lambda j: j.set_state("a.png", "done"), "'approved', 'skipped' or None, got 'done'"),
        (lambda j: j.draw("a.png", SIZE, [[0, 0, 1, 0]], key=""), "1 to 64 printable ASCII characters, got ''"),
        (lambda j: j.draw("a.png", SIZE, [[0, 0, 1, 0]], key="x" * 65), "1 to 64 printable"),
        (lambda j: j.draw("a.png", SIZE, [[0, 0, 1, 0]], key="ü"), "1 to 64 printable"),
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
BROKEN += ['{"class":300,"name":"x","color":[0,0,0]}', '{"undo":1e999}', '{"merge":0,"into":0}', '{"merge":0,"into":9}']
BROKEN += ['{"delete":9}', '{"order":[0,1]}', '{"order":[0,1,1]}', '{"picture":"a.png","state":"done"}']
STROKE = '{"stroke":%s,"picture":"a.png","size":[4,6],"kind":"stroke","runs":[[0,0,1,0]]%s}'
BROKEN += [STROKE % (0, ""), STROKE % (2**30, ""), STROKE % (1, ',"key":""'), STROKE % (1, ',"key":7')]
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


def test_a_stroke_that_is_sent_again_is_drawn_once(journal):
    assert journal.draw("a.png", SIZE, [[0, 0, 3, 1]], key="k1") == 1
    assert journal.draw("a.png", SIZE, [[1, 0, 3, 1]]) == 2
    before = journal.path.read_bytes()
    for state in (journal, Journal(journal.path)):
        assert state.draw("a.png", SIZE, [[2, 0, 3, 1]], key="k1") == 1
        assert (state.labels("a.png", SIZE).ids[2] == UNLABELED).all() and state.path.read_bytes() == before
    lines = [json.loads(line) for line in before.splitlines()[3:]]
    assert lines[0]["key"] == "k1" and "key" not in lines[1]
    assert journal.draw("a.png", SIZE, [[2, 0, 3, 1]], key="k2") == 3


def test_two_journals_of_a_file_know_each_others_keys(journal):
    other = Journal(journal.path)
    assert journal.draw("a.png", SIZE, [[0, 0, 3, 1]], key="k") == other.draw("a.png", SIZE, [[0, 0, 3, 1]], key="k")
    assert len(other.strokes) == 1


def test_a_picture_is_approved_or_skipped_until_a_stroke_in_it_changes(journal):
    number = journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    for act in (
        lambda: journal.draw("a.png", SIZE, [[1, 0, 3, 1]]),
        lambda: journal.set_undone(number),
        lambda: journal.set_undone(number, False),
        lambda: journal.set_state("a.png", None),
    ):
        journal.set_state("b.png", "skipped")
        journal.set_state("a.png", "approved")
        assert Journal(journal.path).states == journal.states == {"a.png": "approved", "b.png": "skipped"}
        act()
        assert Journal(journal.path).states == journal.states == {"b.png": "skipped"}
    journal.set_state("a.png", "approved")
    before = (journal.revision, dict(journal.changed), journal.content)
    journal.set_state("a.png", "approved")  # no line for what is known
    assert (journal.revision, journal.changed, journal.content) == before
    journal.set_state("a.png", "skipped")  # no change of labels
    assert (journal.revision, journal.changed, journal.content) == (before[0] + 1, *before[1:])
    journal.merge_classes(1, 2)
    journal.delete_class(0)
    assert journal.states == {"a.png": "skipped", "b.png": "skipped"}


def test_a_deleted_class_unlabels_and_its_id_is_not_given_again(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1], [1, 0, 3, 2], [2, 0, 3, 0]])
    journal.merge_classes(1, 2)
    known = journal.revision
    journal.delete_class(2)
    assert journal.changed["a.png"] > known
    with pytest.raises(UserError, match="no class with the id 2"):
        journal.delete_class(2)
    for state in (journal, Journal(journal.path)):
        ids = state.resolved(state.labels("a.png", SIZE).ids)
        assert (ids[:2] == UNLABELED).all() and (ids[2, :3] == 0).all()
        assert list(state.classes) == [0] and len(state.strokes) == 1
        for label in (1, 2):
            with pytest.raises(UserError, match=f"The class with the id {label} was deleted"):
                state.draw("a.png", SIZE, [[0, 0, 3, label]])
    journal.delete_class(0)
    assert journal.add_class("new").id == 3 and journal.add_class("sky").id == 4


def test_classes_keep_the_order_that_they_were_put_into(journal):
    journal.order_classes([2, 0, 1])
    journal.change_class(0, "moon")
    journal.add_class("new")
    for state in (journal, Journal(journal.path)):
        assert [c.name for c in state.classes.values()] == ["bar", "moon", "disc", "new"]
        assert [*state.classes] == [2, 0, 1, 3]
    before = journal.revision
    journal.order_classes([2, 0, 1, 3])
    assert journal.revision == before


@pytest.mark.parametrize(
    "lines",
    [
        ['{"merge":1,"into":2}', '{"merge":2,"into":1}'],
        ['{"merge":1,"into":2}', '{"class":1,"name":"disc","color":[0,0,0]}'],
        ['{"delete":1}', '{"class":1,"name":"disc","color":[0,0,0]}'],
        ['{"delete":1}', '{"merge":0,"into":1}'],
        [STROKE % (2, ""), STROKE % (2, "")],
        [STROKE % (2, ""), STROKE % (1, "")],
    ],
    ids=range(6),
)
def test_lines_that_contradict_those_before_are_broken(journal, lines):
    with open(journal.path, "a") as file:
        file.write("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"Line 5 of .*strokes.jsonl is broken"):
        Journal(journal.path)


def test_strokes_stay_when_broken_lines_before_them_are_removed(journal):
    """As the error advises: the numbers behind are then above the number of lines."""
    for row in range(4):
        journal.draw("a.png", SIZE, [[row, 0, 3, 1]])
    for _ in range(8):
        journal.draw("a.png", SIZE, [[3, 3, 6, 1]])
    lines = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(lines[:3] + lines[-1:]))
    again = Journal(journal.path)
    assert [*again.strokes] == [12] and again.draw("a.png", SIZE, [[0, 0, 3, 1]]) == 13


def test_blank_lines_are_skipped_and_counted_by_none(journal):
    journal.path.write_bytes(journal.path.read_bytes().replace(b"\n", b"\r\n") + b"\n  \n")
    again = Journal(journal.path)
    assert again.revision == 3 and again.draw("a.png", SIZE, [[0, 0, 3, 1]]) == 1
    assert Journal(journal.path).revision == 4
    with open(journal.path, "a") as file:
        file.write("{}\n")
    with pytest.raises(UserError, match="Line 7 of"):
        Journal(journal.path)


REPLACED = [
    lambda content: content[: content[:-1].rfind(b"\n") + 1],  # an older version
    lambda content: content.replace(b"a.png", b"b.png"),
    lambda content: content.replace(b"a.png", b"b.png") + content,
    lambda content: content[:-1],
    lambda content: b"",
]


@pytest.mark.parametrize("change", REPLACED, ids=range(len(REPLACED)))
def test_a_journal_that_was_replaced_takes_nothing_more(journal, change):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    other = change(journal.path.read_bytes())
    journal.path.write_bytes(other)
    said = "was replaced by another version, .*; nothing more is taken. Download the labels"
    for act in (lambda: journal.draw("a.png", SIZE, [[1, 0, 3, 1]]), lambda: journal.set_undone(1)):
        with pytest.raises(OSError, match=said):
            act()
    assert journal.path.read_bytes() == other and (journal.labels("a.png", SIZE).ids[0, :3] == 1).all()


def test_half_a_line_of_another_program_does_not_spoil_the_next_stroke(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    with open(journal.path, "a") as file:
        file.write('{"stroke":2,"pict')
    assert journal.draw("a.png", SIZE, [[1, 0, 3, 1]]) == 2
    again = Journal(journal.path)
    assert (again.labels("a.png", SIZE).ids[:2, :3] == 1).all() and len(again.strokes) == 2


def test_a_stroke_whose_newline_an_editor_dropped_is_kept(journal):
    journal.draw("a.png", SIZE, [[0, 0, 3, 1]])
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-1])
    again = Journal(journal.path)
    assert len(again.strokes) == 1 and journal.path.read_bytes() == whole
    with open(journal.path, "a") as file:
        file.write(STROKE % (2, ""))
    assert again.draw("a.png", SIZE, [[1, 0, 3, 1]]) == 3
    assert [*Journal(journal.path).strokes] == [1, 2, 3]


def test_a_broken_line_that_comes_while_it_is_open_is_named_until_it_is_removed(journal):
    good = journal.path.read_bytes() + (STROKE % (1, "")).encode() + b"\n"
    journal.path.write_bytes(good + b'{"undo":9}\n')
    for _ in range(2):
        with pytest.raises(OSError, match="Line 5 of .* is broken"):
            journal.draw("a.png", SIZE, [[1, 0, 3, 1]])
        assert journal.path.read_bytes() == good + b'{"undo":9}\n' and journal.revision == 4
    journal.path.write_bytes(good)
    assert journal.draw("a.png", SIZE, [[1, 0, 3, 1]]) == 2
    assert [*Journal(journal.path).strokes] == [1, 2]


@pytest.mark.parametrize("line", ['{"class":1,"name":"b","color":[999,-1,3]}', '{"class":1,"name":"","color":[1,2,3]}'])
def test_a_class_that_could_not_have_been_added_is_a_broken_line(tmp_path, line):
    (tmp_path / "strokes.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="Line 1 of .* is broken"):
        Journal(tmp_path / "strokes.jsonl")


def test_a_pipe_in_place_of_the_journal_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "strokes.jsonl")
    with pytest.raises(UserError, match="strokes.jsonl is a pipe and cannot be read"):
        Journal(tmp_path / "strokes.jsonl")
    for make in (os.mkfifo, os.mkdir):
        folder = tmp_path / make.__name__
        folder.mkdir()
        make(folder / "port")
        keep_port(folder, 8000)
        assert kept_port(folder) is None
        make(folder / "token")
        with pytest.raises(UserError, match="token is no file"):
            kept_token(folder)


def test_classes_have_colours_of_their_own_and_none_is_black_or_white(tmp_path):
    journal = Journal(tmp_path / "strokes.jsonl")
    colors = [tuple(journal.add_class(f"class {i}").color) for i in range(20)]
    assert len(set(colors)) == 20 and not {(0, 0, 0), (255, 255, 255)} & set(colors)
