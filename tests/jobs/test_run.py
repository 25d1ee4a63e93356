# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The same command line resumes; any other is refused, and says what differs."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import RECORD
from diffuseseg_diffusers.jobs.run import Results, fingerprint, may_resume, open_run


OWNS = ("parts/*", "result.json")
SETTINGS = {"seed": 0, "size": (64, 64), "data": None}


def test_the_same_settings_resume_and_others_are_refused_by_name(tmp_path):
    out = tmp_path / "out"
    assert not may_resume(out, "generate")
    assert open_run(out, "generate", SETTINGS, OWNS, overwrite=False) is False
    (out / "parts").mkdir()
    (out / "parts" / "0.parquet").write_text("done")
    (out / "parts" / ".1.parquet.7.partial").write_text("cut off")
    assert may_resume(out, "generate") and not may_resume(out, "train-student")
    assert open_run(out, "generate", SETTINGS, OWNS, overwrite=False) is True
    assert [p.name for p in (out / "parts").iterdir()] == ["0.parquet"]
    with pytest.raises(UserError, match=r"holds another run: seed 0 \(now 1\). Choose another --output_dir, or pass"):
        open_run(out, "generate", {**SETTINGS, "seed": 1}, OWNS, overwrite=False)
    with pytest.raises(UserError, match="a run of `diffuseseg generate`, not of `diffuseseg analyze`"):
        open_run(out, "analyze", SETTINGS, OWNS, overwrite=False)
    assert (out / "parts" / "0.parquet").exists()


def test_overwriting_a_run_begins_anew_and_never_costs_a_foreign_file(tmp_path):
    open_run(tmp_path, "generate", SETTINGS, OWNS, overwrite=False)
    (tmp_path / "result.json").write_text("{}")
    assert open_run(tmp_path, "analyze", {"seed": 5}, ["*.csv"], overwrite=True) is False
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]
    (tmp_path / "result.json").write_text("mine now")
    for overwrite in (True, False):
        with pytest.raises(UserError, match="result.json|holds another run"):
            open_run(tmp_path, "analyze", {"seed": 6}, ["*.csv"], overwrite)
    assert (tmp_path / "result.json").read_text() == "mine now"


def test_a_folder_that_no_run_made_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is kept"):
            open_run(tmp_path, "generate", SETTINGS, ["*"], overwrite)
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


def test_a_fingerprint_is_of_the_weights_and_not_of_their_precision():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2).bfloat16()
    assert fingerprint(layer) == fingerprint(layer.float()) and len(fingerprint(layer)) == 16
    other = torch.nn.Linear(3, 2)
    assert len({fingerprint(layer), fingerprint(other), fingerprint(layer, other)}) == 3
