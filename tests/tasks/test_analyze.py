# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import csv
import json

import pytest
from PIL import Image

from diffuseseg_diffusers.jobs.files import RECORD
from diffuseseg_diffusers.paper import corruptions
from diffuseseg_diffusers.tasks.analyze import AnalyzeConfig, load_study

from ..conftest import drawn_dataset, make_pipeline, run
from ..paper.common import shorten


STUDIES = ("blocks-timesteps", "clusters", "noise", "labels", "corruptions")
FIGURES = ("blocks-timesteps", "blocks-timesteps-map", "clusters", "labels", "corruptions")
CHOICE = ("--blocks", "1", "5", "--timesteps", "50", "200", "--counts", "1", "4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze")
    make_pipeline(sample_size=32).save_pretrained(folder / "model")
    for split, seed in (("train", 0), ("test", 50)):
        (folder / "drawn" / "data").mkdir(parents=True, exist_ok=True)
        rows = drawn_dataset(4, size=(32, 32), seed=seed).dataset
        rows.to_parquet(folder / "drawn" / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def short(monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(corruptions, "corruption_names", lambda: ["gaussian_noise", "contrast"])


def analyze(folders, *more, **kwargs):
    given = ("--model", folders / "model", "--dataset_name", folders / "drawn", "--folds", "2", "--draws", "1")
    return run("diffuseseg", "analyze", *given, "--cache_dir", folders / "cache", *more, OMP_NUM_THREADS="1", **kwargs)


@pytest.mark.slow
def test_all_studies_run_and_leave_tables_and_figures_and_resume(folders, tmp_path, short):
    out = tmp_path / "out"
    said = analyze(folders, "--study", *STUDIES, *CHOICE, "--output_dir", out)
    assert "Best: block" in said.stdout
    for name in STUDIES:
        report = json.loads((out / f"{name}.json").read_text())
        # Names of local folders, not their paths; the recipe of `fit`.
        assert report["settings"]["dataset"] == {"name": "drawn", "on_hub": False, "config": None, "split": "train"}
        assert report["settings"]["recipe"] == "default" and str(folders) not in json.dumps(report)
        with open(out / f"{name}.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) == len(report["rows"]) > 0
    for name in FIGURES:
        assert Image.open(out / f"{name}.png").size[0] > 300
        assert "<svg" in (out / f"{name}.svg").read_text()[:2000]
    assert {p.name for p in out.iterdir()} == {
        *(f"{name}.{suffix}" for name in STUDIES for suffix in ("json", "csv")),
        *(f"{name}.jsonl" for name in STUDIES if name != "clusters"),
        *(f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")),
        RECORD,
    }

    results = {p.name: p.read_text() for p in out.glob("*.jsonl")}
    cut = out / "blocks-timesteps.jsonl"
    cut.write_text(cut.read_text()[:-5])  # as by a kill within the last line
    analyze(folders, "--study", "blocks-timesteps", *CHOICE, "--output_dir", out)
    assert {p.name: p.read_text() for p in out.glob("*.jsonl")} == results
    said = analyze(folders, "--seed", "1", "--output_dir", out, expect=1)
    assert "holds another run: --seed 0 (now 1)" in said.stderr
    said = analyze(folders, "--recipe", "fast", "--output_dir", out, expect=1)
    assert "holds another run: --recipe default (now fast)" in said.stderr


def test_overwriting_removes_the_runs_own_files_alone_and_only_once_all_inputs_are_valid(folders, tmp_path, short):
    out, choice = tmp_path / "out", ("--study", "clusters", "--blocks", "5", "--timesteps", "50")
    analyze(folders, *choice, "--output_dir", out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert {"clusters.json", "clusters.png"} <= set(before)
    for wrong in (("--blocks", "99"), ("--split", "none"), ("--num_clusters", "0"), ("--model", folders / "none")):
        analyze(folders, *choice, *wrong, "--overwrite", "--output_dir", out, expect=1)
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / "mine.txt").write_text("x")
    said = analyze(folders, *choice, "--overwrite", "--output_dir", out, expect=1)
    assert "no run of DiffuseSeg recorded (mine.txt)" in said.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before | {"mine.txt": b"x"}
    (out / "mine.txt").unlink()
    analyze(folders, *choice, "--seed", "1", "--overwrite", "--output_dir", out)
    assert json.loads((out / "clusters.json").read_text())["settings"]["seed"] == 1


def test_what_cannot_be_studied_is_a_sentence(folders, tmp_path):
    for name, given, message in [
        ("a", ("--folds", "5"), "got 5 folds for 4 images"),
        ("b", ("--timesteps", "1000"), "Timestep 1000 does not exist"),
        ("c", ("--study", "labels", "--test_split", "none"), "none"),
    ]:
        said = analyze(folders, *given, "--output_dir", tmp_path / name, expect=1)
        last = said.stderr.strip().splitlines()[-1].rpartition("\r")[2]  # behind progress bars of datasets
        assert message in last and last.startswith("error: ") and not (tmp_path / name).exists()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("x")
    said = analyze(folders, "--output_dir", tmp_path / "d", expect=1)
    assert "exists and is kept" in said.stderr


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own(folders, tmp_path):
    choice = ("--study", "clusters", "--blocks", "1", "--timesteps", "50", "--num_images", "1")
    said = analyze(folders, *choice, "--output_dir", tmp_path / "out", fresh=True)
    assert "clusters: 1 rows; clusters.json, clusters.csv, clusters.png are in" in said.stdout


def test_studies_learn_from_tiles_at_a_scale(folders, tmp_path):
    given = dict(model=str(folders / "model"), dataset_name=str(folders / "drawn"), cache_dir=str(folders / "cache"))
    config = AnalyzeConfig(**given, output_dir=tmp_path / "out", tile=True, scale=2.0, study=("labels",))
    study = load_study(config)
    assert study.dataset.tiling == study.test.tiling == {"tiles": True, "scale": 2.0, "pixel_size": None}
    assert len(study.dataset) == 4 * 4 and study.dataset[0].mask.shape == (16, 16)
