# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What all commands have in common."""

from pathlib import Path

import pytest

import diffuseseg_diffusers
from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.jobs.command_line import command_line, parse
from diffuseseg_diffusers.tasks import TASKS, named
from diffuseseg_diffusers.tasks import evaluate as evaluate_task
from diffuseseg_diffusers.tasks.generate import GenerateConfig

from ..conftest import run


def all_commands(drawn):
    data = ("--dataset_name", drawn / "data")
    return {
        "fit": ("--model", drawn / "ddpm", *data, "--num_members", "2", "--recipe", "fast"),
        "evaluate": ("--model", drawn / "model", *data),
        "segment": (drawn / "data" / "test" / "images", "--model", drawn / "model"),
    }


def test_files_that_no_run_recorded_are_kept(drawn, tmp_path):
    """With `--overwrite` too, see the next test and tests/jobs/test_files.py."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")
    for command, arguments in all_commands(drawn).items():
        result = run("diffuseseg", command, *arguments, "--output_dir", out, expect=1)
        assert f"{out} " in result.stderr and "is kept" in result.stderr and "Traceback" not in result.stderr
        assert [p.name for p in out.iterdir()] == ["precious.txt"]


def test_overwriting_replaces_the_files_of_the_earlier_run_and_no_others(drawn, tmp_path):
    for command, arguments in all_commands(drawn).items():
        out = tmp_path / command
        run("diffuseseg", command, *arguments, "--output_dir", out)
        before = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
        if command == "segment":  # which resumes, and finds nothing left to do
            assert "is complete" in run("diffuseseg", command, *arguments, "--output_dir", out).stdout
        else:
            assert "is kept" in run("diffuseseg", command, *arguments, "--output_dir", out, expect=1).stderr
        run("diffuseseg", command, *arguments, "--output_dir", out, "--overwrite")
        assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == before
        (out / "mine.txt").write_text("keep me")
        refused = run("diffuseseg", command, *arguments, "--output_dir", out, "--overwrite", expect=1)
        assert "mine.txt" in refused.stderr and (out / "mine.txt").read_text() == "keep me"
        assert sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file()) == sorted([*before, Path("mine.txt")])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(all_commands(drawn)), "nothing is left beside them"


@pytest.mark.parametrize("command", ["fit", "evaluate", "segment"])
def test_overwrite_removes_nothing_while_an_input_is_wrong(drawn, command, tmp_path):
    arguments = all_commands(drawn)[command]
    run("diffuseseg", command, *arguments, "--output_dir", tmp_path / "out")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    wrong = [drawn / "nowhere" if word in (drawn / "ddpm", drawn / "model") else word for word in arguments]
    run("diffuseseg", command, *wrong, "--output_dir", tmp_path / "out", "--overwrite", expect=1)
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


def test_help_and_mistyped_options_of_every_command_need_no_torch_and_show_its_own_usage():
    code = """
import sys
from diffuseseg_diffusers.cli import main
for command in sys.argv[1:]:
    for word in ("--help", "--frobnicate"):
        try:
            main([command, word])
        except SystemExit as end:
            print(command, word, end.code, file=sys.stderr)
assert not {"torch", "diffusers", "datasets", "transformers"} & set(sys.modules)
"""
    said = run("python", "-c", code, *TASKS).stderr
    for command in TASKS:
        usage = f"usage: diffuseseg {command} [OPTIONS]"
        assert f"{command} --help 0\n{usage}" in said and f"{command} --frobnicate 2\n" in said, said


def test_help_and_version_need_no_torch():
    code = "import sys; from diffuseseg_diffusers.cli import main\ntry: main([sys.argv[1]])\n"
    code += "except SystemExit as end: assert not end.code\nassert 'torch' not in sys.modules, 'torch'"
    for word in ("--help", "--version"):
        assert "diffuseseg" in run("python", "-c", code, word).stdout
    module = run("python", "-m", "diffuseseg_diffusers", "--version").stdout
    assert module == run("diffuseseg", "--version").stdout == f"diffuseseg {diffuseseg_diffusers.__version__}\n"


def test_only_what_users_can_mend_is_one_line(drawn, monkeypatch, tmp_path):
    arguments = ("segment", drawn / "data" / "test" / "images", "--model", drawn / "model")
    wrong = ("diffuseseg", "segment", tmp_path / "none.png", "--model", tmp_path / "nowhere", "--output_dir", tmp_path)
    assert "Traceback" not in run(*wrong, expect=1).stderr
    assert "Traceback" in run(*wrong, expect=1, DIFFUSESEG_DEBUG="1").stderr
    monkeypatch.setattr(DiffuseSegPipeline, "segment", lambda *a, **k: [][1])
    ours = run("diffuseseg", *arguments, "--output_dir", tmp_path / "out", expect=1).stderr
    assert "Traceback" in ours and "IndexError" in ours


def test_a_missing_package_is_named_with_what_to_install(drawn, monkeypatch, tmp_path):
    words = ("diffuseseg", "evaluate", "--model", drawn / "model", "--dataset_name", drawn / "data")
    for name, said in (("datasets.features", "error: datasets.features is not installed; run `pip"), ("ours", "Trace")):

        def absent(config, name=name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(evaluate_task, "evaluate", absent)
        assert run(*words, "--output_dir", tmp_path / "out", expect=1).stderr.startswith(said)


def test_every_option_of_every_configuration_is_explained_and_shared_ones_alike():
    helps: dict[str, set[str]] = {"overwrite": set(), "cache_dir": set()}
    for config, _ in TASKS.values():
        options = named(config).options()
        assert all(own.help for own in options.values()) and all(o.why or o.influence for o in options.values())
        assert all(
            base.__dict__.get("title") or not base.__dict__.get("__annotations__")
            for base in named(config).__mro__
            if base.__module__.endswith("options")
        ), "shared options stand under a heading of their own"
        for name in helps.keys() & options.keys() if "output_dir" in options else ():  # not of a single file
            helps[name].add(options[name].help)
        if "model" in options and not options["model"].positional:
            assert "--pretrained_model_name_or_path" in options["model"].aliases
    assert all(len(found) == 1 for found in helps.values())


def test_values_with_spaces_are_values_and_no_options():
    """Also behind a flag, and where the value itself begins as an option does."""
    app = command_line("diffuseseg", "", "", {"generate": GenerateConfig})
    required = ["generate", "--model=m", "--output_dir=o", "--num_samples=1"]
    found = parse(app, [*required, "--overwrite", "--prompt=a photo of a cat"])
    assert (found.overwrite, found.prompt) == (True, "a photo of a cat")
    assert parse(app, [*required, "--prompt", "--size 64"]).prompt == "--size 64"
