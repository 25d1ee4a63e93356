# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The same command line resumes; any other is refused, and says what differs."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.jobs.config import WritesFolder, option
from diffuseseg_diffusers.jobs.contents import contents_of
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import RECORD, write_json
from diffuseseg_diffusers.jobs.locks import unlock_folder
from diffuseseg_diffusers.jobs.run import Results, adopt_run, check_run, may_resume, open_run


OWNS = ("parts/*", "result.json")


@dataclass(frozen=True, kw_only=True)
class DrawConfig(WritesFolder):
    """Draw."""

    pictures: tuple[str, ...] = option((), "Pictures.", positional=True, reads=True)
    model: str | None = option(None, "Model.", reads=True)
    seed: int = option(0, "Seed.")
    size: tuple[int, int] = option((64, 64), "Size.")
    tasks: int = option(1, "Processes.", influence=False, why="the same bytes from any number")


def begin(folder, reads=None, command="draw", owns=OWNS, **changes) -> bool:
    resumed = open_run(DrawConfig(output_dir=folder, **changes), command, reads or {}, owns)
    unlock_folder()  # as at the end of a process
    return resumed


def test_the_same_identity_resumes_and_another_is_refused_with_what_differs(tmp_path):
    out = tmp_path / "out"
    assert not may_resume(out, "draw")
    assert begin(out) is False
    (out / "parts").mkdir()
    (out / "parts" / "0.parquet").write_text("done")
    (out / "parts" / ".1.parquet.7.partial").write_text("cut off")
    assert may_resume(out, "draw") and not may_resume(out, "train-student")
    assert begin(out, tasks=3) is True
    assert [p.name for p in (out / "parts").iterdir()] == ["0.parquet"]
    wanted = (
        r"holds another run: --seed 0 \(now 1\); --size \[64, 64\] \(now \[8, 8\]\). Choose another --output_dir, or"
    )
    with pytest.raises(UserError, match=wanted):
        begin(out, seed=1, size=(8, 8))
    with pytest.raises(UserError, match="a run of `diffuseseg draw`, not of `diffuseseg analyze`"):
        begin(out, command="analyze")
    assert (out / "parts" / "0.parquet").exists()


def test_other_contents_under_the_same_names_are_refused_and_named(tmp_path):
    names = [str(tmp_path / f"{i}.png") for i in range(6)]
    for name in names:
        Path(name).write_bytes(b"picture")

    def start(weights="ab", dtype="float32") -> bool:
        reads = {"pictures": contents_of(names), "model": {"unet": {"weights": weights}}, "dtype": dtype}
        return begin(tmp_path / "out", reads, pictures=names, model="m")

    assert [start(), start()] == [False, True]
    with pytest.raises(UserError, match=r"the contents of --model differ \(unet.weights\); dtype float32 \(now bf"):
        start("cd", "bfloat16")
    for name in names[:5]:
        Path(name).write_bytes(b"pictuRe")
    with pytest.raises(
        UserError, match=r"the contents of pictures differ \(.*0.png, .*1.png, .*2.png and 2 more\)\. Ch"
    ):
        start()


def test_a_run_resumes_wherever_it_is_named_from(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert begin(tmp_path / "out", model="model") is False
    monkeypatch.chdir(tmp_path / "model")
    assert begin(Path("../out"), model="../model") is True
    with pytest.raises(UserError, match=r"--model .*model \(now org/model\)"):
        begin(Path("../out"), model="org/model")


def test_a_run_of_a_version_that_recorded_no_contents_is_refused(tmp_path):
    write_json(tmp_path / RECORD, {"command": "draw", "owns": list(OWNS), "settings": {"seed": 0}})
    with pytest.raises(UserError, match="of an earlier version of DiffuseSeg, which did not record what a run reads"):
        begin(tmp_path)
    assert begin(tmp_path, overwrite=True) is False


def test_a_run_that_is_adopted_is_resumed_with_what_it_is_now(tmp_path):
    begin(tmp_path)
    adopt_run(DrawConfig(output_dir=tmp_path, seed=3), "draw", {}, OWNS)
    assert begin(tmp_path, seed=3) is True


def test_a_folder_that_is_not_the_runs_is_refused_before_the_work(tmp_path):
    config = DrawConfig(output_dir=tmp_path / "out")
    check_run(config, "draw")
    begin(tmp_path / "out")
    write_json(tmp_path / "out" / "result.json", {})
    check_run(config, "draw")
    with pytest.raises(UserError, match="exists and is kept"):
        check_run(config, "analyze")
    check_run(replace(config, overwrite=True), "analyze")
    (tmp_path / "out" / "mine").write_text("keep me")
    with pytest.raises(UserError, match="no run of DiffuseSeg recorded .mine"):
        check_run(replace(config, overwrite=True), "draw")


def test_overwriting_a_run_begins_anew_and_never_costs_a_foreign_file(tmp_path):
    begin(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    assert begin(tmp_path, command="analyze", owns=["map*.csv"], seed=5, overwrite=True) is False
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]
    (tmp_path / "result.json").write_text("mine now")
    for overwrite in (True, False):
        with pytest.raises(UserError, match="result.json|holds another run"):
            begin(tmp_path, command="analyze", owns=["map*.csv"], seed=6, overwrite=overwrite)
    assert (tmp_path / "result.json").read_text() == "mine now"


def test_a_process_that_shares_a_run_never_overwrites_it(tmp_path, monkeypatch):
    begin(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    monkeypatch.setenv("DIFFUSESEG_WORKER", "1")
    assert begin(tmp_path, overwrite=True) is True
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize("together", [False, True])
def test_a_link_to_a_folder_that_is_yet_to_be_made_is_followed(tmp_path, together):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    config = DrawConfig(output_dir=tmp_path / "link")
    assert not open_run(config, "draw", {}, OWNS, together)
    unlock_folder()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "out" / RECORD).is_file()


def test_a_folder_that_no_run_made_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is kept"):
            begin(tmp_path, owns=["mine*"], overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=5))
@settings(max_examples=50, deadline=None)
def test_results_are_there_again_whatever_their_keys_and_texts(tmp_path_factory, wanted):
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    results = Results(path, {"seed": 0})
    for key, value in wanted.items():
        assert results.get(key, lambda value=value: {"value": value}) == {"value": value}

    def never():
        raise AssertionError("computed twice")

    again = Results(path, {"seed": 0})
    assert again.by_key == {key: {"value": value} for key, value in wanted.items()}
    assert all(again.get(key, never) == {"value": value} for key, value in wanted.items())


def test_a_result_that_was_cut_off_anywhere_is_computed_again(tmp_path):
    path = tmp_path / "results.jsonl"
    results = Results(path, {"seed": 0})
    for key in "ab":
        results.get(key, lambda key=key: {"of": key})
    whole = path.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        again = Results(path, {"seed": 0})
        assert again.get("a", dict) == {"of": "a"} and again.get("b", lambda: {"of": "b"}) == {"of": "b"}
        assert path.read_bytes() == whole
    with pytest.raises(UserError, match=r"seed 0 \(now 1\)"):
        Results(path, {"seed": 1})
    path.write_text("no results\n")
    with pytest.raises(UserError, match="holds no results of a run"):
        Results(path, {"seed": 0})


def test_a_result_is_the_same_whether_it_was_just_computed_or_read(tmp_path):
    first = Results(tmp_path / "r.jsonl", {}).get("a", lambda: {"pair": (1, 2), 3: None})
    assert first == Results(tmp_path / "r.jsonl", {}).get("a", dict) == json.loads('{"pair": [1, 2], "3": null}')
