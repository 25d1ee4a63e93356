# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What is not ours is not touched, and what was there is there until the new is."""

import errno
import fnmatch
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import (
    RECORD,
    atomic_file,
    check_output_folder,
    clear_output_folder,
    exact_pattern,
    output_folder,
    read_json,
    read_record,
    remove_partials,
    write_json,
    write_record,
    write_text,
)

from ..conftest import ROOT


OLD = {"a.txt": "old a", "unet/x.txt": "old x", "unet/gone.txt": "old"}
NEW = {"a.txt": "new a", "unet/x.txt": "new x", "more/y.txt": "new y"}


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    """All files below a folder with their texts, but for the record."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_text() for name, p in files.items() if name != RECORD}


def make(folder: Path, files: dict[str, str], overwrite: bool = False) -> None:
    with output_folder(folder, overwrite, "test") as partial:
        put(partial, files)


def test_a_file_is_written_atomically_or_the_old_one_is_kept(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "old")
    for error in (RuntimeError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)), atomic_file(path) as partial:
            partial.write_text("half")
            raise error
    message = r"a.txt could not be written \(no space\); the old file is kept"
    with pytest.raises(OSError, match=message) as caught, atomic_file(path):
        raise OSError(errno.ENOSPC, "no space")
    assert caught.value.errno == errno.ENOSPC
    assert content(tmp_path) == {"new/a.txt": "old"}


@given(st.text(max_size=20) | st.just("\udcff.png"))
@settings(deadline=None)
def test_json_is_read_as_it_was_written_whatever_it_holds(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "x.json"
    write_json(path, {"text": text})
    assert read_json(path) == {"text": text}


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    write_json(tmp_path / "file.json", {"mean_iou": float("nan"), "rows": [(1.5, float("inf"))]})
    strict = json.loads((tmp_path / "file.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert strict == {"mean_iou": None, "rows": [[1.5, None]]}


def test_what_is_no_json_is_named(tmp_path):
    write_text(tmp_path / "a.json", '{"cut": ')
    for name, message in (
        ("a.json", "a.json is no JSON file"),
        ("b.json", "There is no file .*b.json"),
        ("", "no file"),
    ):
        with pytest.raises(UserError, match=message):
            read_json(tmp_path / name)


@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_an_exact_pattern_matches_its_path_and_no_other(path, other):
    assert fnmatch.fnmatchcase(path, exact_pattern(path))
    assert other == path or not fnmatch.fnmatchcase(other, exact_pattern(path))


def test_overwriting_removes_the_files_of_the_record_and_refuses_all_others(tmp_path):
    out = tmp_path / "out"
    make(out, OLD)
    with pytest.raises(UserError, match="exists and is kept; choose another --output_dir, or pass --overwrite"):
        make(out, NEW)
    for foreign in ("mine.txt", "unet/mine.txt", ".hidden", "A.TXT", "unet/x.txt.bak", "deep/er/mine.txt"):
        put(out, {foreign: "keep me"})
        before = content(out)
        for overwriting in (lambda: make(out, NEW, True), lambda: clear_output_folder(out)):
            with pytest.raises(UserError, match=f"no run of DiffuseSeg recorded .{foreign}.*is kept"):
                overwriting()
            assert content(out) == before and not list(tmp_path.glob(".*"))
        (out / foreign).unlink()
    make(out, NEW, True)
    assert content(out) == NEW and read_record(out)["command"] == "test"
    clear_output_folder(out)
    assert content(out) == {} and read_record(out) is None


def test_overwriting_a_home_costs_nothing(tmp_path, monkeypatch):
    put(tmp_path, {".profile": "mine", "photos/cat.jpg": "mine"})
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path("."), Path("photos/..")):
        for overwriting in (lambda f=folder: make(f, NEW, True), lambda f=folder: clear_output_folder(f)):
            with pytest.raises(UserError, match="is kept"):
                overwriting()
    assert content(tmp_path) == {".profile": "mine", "photos/cat.jpg": "mine"}


names = st.sampled_from(["a", "b", "sub/a", "sub/b", "sub/sub/a", "c*", "[c]", "sub/.a.7.partial"])


@given(owned=st.dictionaries(names, st.text(max_size=3)), foreign=st.dictionaries(names, st.text(max_size=3)))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_clearing_a_folder_removes_what_is_recorded_or_nothing(tmp_path_factory, owned, foreign):
    folder = tmp_path_factory.mktemp("run")
    put(folder, {**owned, **foreign})
    write_record(folder, "test", owns=map(exact_pattern, owned))
    temporary = {"sub/.a.7.partial"} if "sub/a" in owned else set()  # what a killed process left of an own file
    if foreign.keys() - owned.keys() - temporary:
        before = content(folder)
        with pytest.raises(UserError, match="is kept"):
            clear_output_folder(folder)
        assert content(folder) == before
    else:
        clear_output_folder(folder)
        assert list(folder.iterdir()) == []


def test_a_record_of_a_folder_below_protects_what_is_not_in_it(tmp_path):
    write_record(tmp_path, "demo", owns=["model/*"])
    make(tmp_path / "model", NEW)
    put(tmp_path, {"model/mine.txt": "keep me"})
    with pytest.raises(UserError, match="recorded .model/mine.txt"):
        clear_output_folder(tmp_path)
    (tmp_path / "model" / "mine.txt").unlink()
    put(tmp_path, {"model/.a.txt.7.partial": "", ".model.7.partial/unet/half": ""})  # of killed processes
    put(tmp_path, {"model/..diffuseseg-new-output.7.partial/half": "", "model/.diffuseseg-new-output.lock": ""})
    remove_partials(tmp_path)
    assert content(tmp_path / "model") == NEW | {".diffuseseg-new-output.lock": ""}
    assert [p.name for p in tmp_path.glob("*") if p.name != RECORD] == ["model"]
    clear_output_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("is_there", [False, True])
def test_an_output_that_fails_leaves_the_old_one_and_nothing_else(error, is_there, tmp_path):
    out = tmp_path / "out"
    if is_there:
        make(out, OLD)
    with pytest.raises(error), output_folder(out, True, "test") as partial:
        put(partial, {"a.txt": "half"})
        raise error
    assert content(out) == (OLD if is_there else {})
    assert sorted(p.name for p in tmp_path.rglob(".*")) == ([RECORD] if is_there else [])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_whatever_rename_fails_the_old_output_or_the_new_one_is_there_whole(error, tmp_path, monkeypatch):
    """Point 3 of what was found: the second of two renames could fail, and neither output was under its name."""
    rename, outcomes = Path.rename, []
    for failing in range(1, 20):
        out = tmp_path / str(failing)
        make(out, OLD)
        calls = iter(range(1, 1000))

        def breaking(self, target, failing=failing, calls=calls):
            if next(calls) == failing:
                raise error
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", breaking)
        try:
            make(out, NEW, True)
            outcomes.append(content(out))
        except (OSError, KeyboardInterrupt):
            outcomes.append(content(out))
            assert content(out) in (OLD, NEW) and read_record(out)["owns"] == sorted(content(out))
        monkeypatch.undo()
        assert {p.name for p in out.iterdir()} == {*(k.split("/")[0] for k in outcomes[-1]), RECORD}
        if next(calls) <= failing:  # all of them succeeded
            break
    assert OLD in outcomes and outcomes[-1] == NEW and len(outcomes) > 4


def test_a_kill_at_any_step_is_mended_by_the_next_run(tmp_path):
    """Runs in processes of their own that end without any clean-up before the n-th change, as SIGKILL does."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from diffuseseg_diffusers.jobs.files import output_folder\n"
        "for n in range(1, 20):\n"
        "    if os.fork() == 0:\n"
        "        left = iter(range(1, n))\n"
        "        def counted(name):\n"
        "            done = getattr(Path, name)\n"
        "            step = lambda *a, **k: done(*a, **k) if next(left, None) else os._exit(9)\n"
        "            setattr(Path, name, step)\n"
        "        with output_folder(Path(sys.argv[1], str(n)), True, 'test') as partial:\n"
        "            (partial / 'more').mkdir(); (partial / 'more' / 'y.txt').write_text('new y')\n"
        "            (partial / 'a.txt').write_text('new a')\n"
        "            [counted(name) for name in ('rename', 'unlink', 'rmdir')]\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    new = {"a.txt": "new a", "more/y.txt": "new y"}
    for n in range(1, 20):
        make(tmp_path / str(n), OLD)
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=ROOT, timeout=60)
    found = []
    for n in range(1, 20):
        out = tmp_path / str(n)
        with pytest.raises(UserError, match="exists and is kept"):
            check_output_folder(out, overwrite=False)
        there = {k: v for k, v in content(out).items() if "new-output" not in k}  # is swept by the next that writes
        assert there in (OLD, new) and read_record(out)["owns"] == sorted(there), n
        found.append(there)
        make(out, NEW, True)
        assert content(out) == NEW and {p.name for p in out.iterdir()} == {"a.txt", "more", "unet", RECORD}
    assert found[0] == OLD and found[-1] == new and len({str(there) for there in found}) == 2


def test_a_file_that_came_between_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    make(out / ".diffuseseg-new-output", NEW)  # of a process that was killed while it replaced the old
    put(out, {"a.txt": "mine"})
    for overwrite in (False, True):
        with pytest.raises(UserError, match="a.txt is in the way of a run's results; move it away"):
            make(out, NEW, overwrite)
    assert (out / "a.txt").read_text() == "mine"
    (out / "a.txt").unlink()
    with pytest.raises(UserError, match="exists and is kept"):
        make(out, OLD)
    assert content(out) == NEW


def test_a_pattern_that_matches_everything_lists_nothing(tmp_path):
    put(tmp_path, {"photo.jpg": "mine", "sub/photo.jpg": "mine"})
    for pattern in ("*", "*.jpg", "?*", "[!x]*"):
        with pytest.raises(ValueError, match="match files that are not of the run"):
            write_record(tmp_path, "test", [pattern])
        write_json(tmp_path / RECORD, {"command": "test", "owns": [pattern], "settings": {}})
        with pytest.raises(UserError, match="no run of DiffuseSeg recorded"):
            clear_output_folder(tmp_path)
    assert content(tmp_path) == {"photo.jpg": "mine", "sub/photo.jpg": "mine"}


def test_a_killed_run_is_swept_by_the_next_one_and_a_live_one_is_not(tmp_path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    partial, live = (tmp_path / f".out.{pid}.partial" for pid in (int(dead.stdout), os.getppid()))
    put(partial, {"half.txt": ""})
    put(live, {"half.txt": ""})
    make(tmp_path / "out", NEW)
    assert not partial.exists() and live.exists() and content(tmp_path / "out") == NEW


def test_a_link_a_mount_and_the_working_folder_are_filled_and_stay_what_they_are(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    inode = (tmp_path / "disk").stat().st_ino
    for files in (OLD, NEW):
        make(tmp_path / "link", files, True)
        assert (tmp_path / "link").is_symlink() and content(tmp_path / "disk") == files
    monkeypatch.chdir(tmp_path / "disk")
    make(Path("."), OLD, True)
    assert content(Path(os.getcwd())) == OLD and (tmp_path / "disk").stat().st_ino == inode  # a mount cannot be renamed
    assert (tmp_path / "disk" / "empty").is_dir()
    (tmp_path / "dangling").symlink_to(tmp_path / "later")
    make(tmp_path / "dangling", NEW)
    assert content(tmp_path / "later") == NEW


def test_links_inside_of_an_output_are_removed_not_followed(tmp_path):
    put(tmp_path / "elsewhere", {"a": "mine"})
    write_record(tmp_path / "out", "test", owns=["link", "sub/*"])
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    clear_output_folder(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == [] and content(tmp_path / "elsewhere") == {"a": "mine"}


def test_what_cannot_be_written_to_is_refused_before_the_work(tmp_path, monkeypatch):
    put(tmp_path, {"file": ""})
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="file is a file, and a folder is needed"):
            check_output_folder(folder, False)
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    with pytest.raises(UserError, match="cannot be written to; choose another --output_dir"):
        check_output_folder(tmp_path / "new" / "out", False)


def test_a_folder_that_two_runs_make_at_once_is_that_of_the_first_to_end(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="exists and is kept"), output_folder(out, False, "slow") as partial:
        put(partial, OLD)
        with output_folder(tmp_path / "aside", False, "quick") as other:
            put(other, NEW)
        (tmp_path / "aside").rename(out)
    assert content(out) == NEW and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_of_the_records_name_that_is_none_is_named(tmp_path):
    record = {"command": "test", "owns": ["a"], "settings": {}, "reads": {}}
    broken = [{**record, "owns": [1]}, {**record, "reads": []}, {**record, "reads": None}]
    for text in ("[]", '{"owns": ["*"]}', "no JSON", "", *map(json.dumps, broken)):
        write_text(tmp_path / RECORD, text)
        put(tmp_path, {"a": "keep me"})
        with pytest.raises(UserError, match=RECORD):
            clear_output_folder(tmp_path)
        assert (tmp_path / "a").exists()


def test_a_library_that_cannot_write_its_weights_gets_a_name_and_leaves_nothing(tmp_path):
    network = {"weight": torch.zeros(1000)}
    refused = pytest.raises(OSError, match=r"out could not be written \(")
    with refused as found, output_folder(tmp_path / "out", False, "fit") as folder:
        save_file(network, folder / "missing" / "model.safetensors")
    assert found.value.errno == errno.ENOENT and not list(tmp_path.iterdir())
