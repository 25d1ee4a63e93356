# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.features.pixel_unet import DecoderFeatureExtractor
from diffuseseg_diffusers.heads.cross_validation import (
    Classes,
    cross_validated,
    entries_of,
    fit_groups,
    folds_of,
    missing_classes,
    others,
    score,
)
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.selection import Budget, choose_features, cost_of, select_features, time_passes
from diffuseseg_diffusers.runs.resuming import Results
from diffuseseg_diffusers.studies.clusters import cluster_maps, matched, resized
from diffuseseg_diffusers.studies.corruptions import Corrupted, corruption_names
from diffuseseg_diffusers.studies.labels import class_sizes, label_efficiency
from diffuseseg_diffusers.studies.noise import NOISES, NoiseVariant
from diffuseseg_diffusers.training.analyze_features import clusters

from .conftest import QUICK, drawn_dataset, make_pipeline, run


CLASSES = Classes(3, ("sky", "disc", "bar"))
STEPS = [50, 150, 400]


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def table(pipe):
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, range(6), STEPS)
    return extract_activations(extractor, drawn_dataset(6), show_progress=False)


# Tables


def test_a_selection_holds_the_same_activations_and_an_image_gives_them_back(pipe, table):
    entries = entries_of(table, [5, 1], [400, 50])
    assert [(table.info[i].timestep, table.info[i].block) for i in entries] == [(400, 1), (400, 5), (50, 1), (50, 5)]
    chosen = table.select(entries)
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, [1, 5], [400, 50])
    direct = extract_activations(extractor, drawn_dataset(6), show_progress=False)
    for image in (0, 5):
        for a, b, c in zip(
            table.image(image, entries), chosen.image(image, range(4)), direct.image(image, range(4)), strict=True
        ):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, atol=2e-3, rtol=2e-3)


# Groups


@given(st.integers(2, 30), st.integers(2, 10), st.integers(0, 5))
def test_folds_hold_every_image_out_once(images, folds, seed):
    if folds > images:
        with pytest.raises(ValueError, match="lower --folds or label more"):
            folds_of(images, folds, seed)
        return
    held_out = folds_of(images, folds, seed)
    assert sorted(i for fold in held_out for i in fold) == list(range(images))
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    for fold, rest in zip(held_out, others(held_out)):
        assert sorted(fold + rest) == list(range(images))


def test_a_fold_learns_nothing_from_the_images_that_it_holds_out(table):
    images = [[0, 1, 2], [3, 4, 5]]
    before = fit_groups(table, [1, 5], [50], CLASSES, images, 2, QUICK)
    table.labels[3:] = 2 - table.labels[3:]
    try:
        after = fit_groups(table, [1, 5], [50], CLASSES, images, 2, QUICK)
    finally:
        table.labels[3:] = 2 - table.labels[3:]
    same = [
        all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
        for one, two in zip(before, after)
    ]
    assert same == [True, False]


def test_features_that_hold_the_answer_score_higher_than_those_that_do_not(table):
    classes, folds = CLASSES, folds_of(6, 3)
    told = cross_validated(table, [5], [50], classes, folds, QUICK)
    shuffled = table.select(range(len(table.info)))
    for rows in shuffled.tables.values():
        rows.copy_(rows[torch.randperm(len(rows))])
    blind = cross_validated(shuffled, [5], [50], classes, folds, QUICK)
    assert told["mean_iou"] > blind["mean_iou"] + 0.2
    assert len(told["per_class_iou"]) == 3


def test_the_score_is_of_each_image_by_the_head_of_its_group(table):
    heads = fit_groups(table, [5], [50], CLASSES, [[0, 1], [2, 3]], 1, QUICK)
    whole = score(heads, table, [[4], [5]], CLASSES)
    confusion = np.zeros((3, 3))
    for head, image in zip(heads, (4, 5)):
        predicted = head.predict(table.image(image, entries_of(table, [5], [50]))).labels[0].numpy()
        np.add.at(confusion, (table.labels[image].numpy(), predicted), 1)
    right = confusion.diagonal()
    expected = right / (confusion.sum(0) + confusion.sum(1) - right)
    np.testing.assert_allclose(whole["per_class_iou"], expected)


def test_classes_that_no_image_of_a_fold_shows_are_told():
    labels = torch.zeros(4, 8, 8, dtype=torch.uint8)
    labels[0, :4] = 1
    labels[:, 0] = 2
    said = missing_classes(labels, [[0, 1], [2, 3]], CLASSES)
    assert len(said) == 1 and "fold 2 of 2 has no training pixel of disc" in said[0]
    shares, small = class_sizes(labels, CLASSES)
    np.testing.assert_allclose(shares, [200 / 256, 24 / 256, 32 / 256])
    assert small == [False, True, False]


def test_more_labels_are_drawn_and_scored_on_the_test_images(table):
    result = label_efficiency(table, table, [5], [50], CLASSES, 2, draws=3, num_members=2)
    assert len(result["mean_iou"]) == 3 and all(0 < x <= 1 for x in result["mean_iou"])
    assert all(len(set(images)) == 2 for images in result["images"])


# Selection


def test_selection_adds_what_helps_until_nothing_does_and_stays_within_the_budget():
    worth = {("b", 1): 0.3, ("b", 2): 0.25, ("b", 3): 0.2, ("t", 50): 0.1, ("t", 150): 0.05}

    def scored(blocks, timesteps):
        return sum(worth["b", b] for b in blocks) + sum(worth["t", t] for t in timesteps) - 0.15 * (len(timesteps) - 1)

    def cost(blocks, timesteps):
        return {"dimensions": 10 * len(blocks) * len(timesteps), "bytes": 0, "milliseconds": 0.0}

    free = select_features(scored, cost, [1, 2, 3], [50, 150], Budget())
    assert (free[0]["blocks"], free[0]["timesteps"]) == ((1, 2, 3), (50,))
    assert [c["mean_iou"] for c in free] == sorted((c["mean_iou"] for c in free), reverse=True)
    tight = select_features(scored, cost, [1, 2, 3], [50, 150], Budget(dimensions=20))
    assert (tight[0]["blocks"], tight[0]["timesteps"]) == ((1, 2), (50,))
    assert all(c["dimensions"] <= 20 for c in tight)
    rival = select_features(scored, cost, [1], [50], Budget(), rival=((1, 2, 3), (50,)))
    assert rival[0]["step"] == 0 and rival[0]["blocks"] == (1, 2, 3)
    all_steps = select_features(scored, cost, [1, 2, 3], [50, 150], Budget(), choose=["blocks"])
    assert {c["timesteps"] for c in all_steps} == {(50, 150)} and all_steps[0]["blocks"] == (1, 2, 3)
    with pytest.raises(ValueError, match="raise it"):
        select_features(scored, cost, [1], [50], Budget(dimensions=5))


def test_costs_are_those_of_the_activations(pipe, table):
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, range(6), STEPS)
    passes = time_passes(extractor, torch.zeros(1, 1, 16, 16), repeats=1)
    assert set(passes) == set(range(6)) and all(t > 0 for t in passes.values())
    cost = cost_of(table, [0, 5], [50, 150], passes)
    first, last = (next(f for f in table.info if f.block == b) for b in (0, 5))
    floats = sum(f.channels * f.height * f.width for f in (first, last))
    assert cost == {
        "dimensions": 2 * (first.channels + last.channels),
        "bytes": 2 * 2 * floats,
        "milliseconds": 2 * passes[5],
    }


def test_features_are_chosen_on_the_labelled_images_alone_with_no_more_dimensions_than_the_default(pipe):
    tried = choose_features(pipe, drawn_dataset(4), timesteps=(50, 150, 250), folds=2, show_progress=False)
    default = next(c for c in tried if c["blocks"] == (1, 3, 5) and c["timesteps"] == (50, 150, 250))
    assert tried[0]["mean_iou"] == max(c["mean_iou"] for c in tried)
    assert all(c["dimensions"] <= default["dimensions"] for c in tried)
    with pytest.raises(ValueError, match="label more"):
        choose_features(pipe, drawn_dataset(1), show_progress=False)


# Clusters


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(2, 6))
def test_renamed_clusters_get_their_neighbours_names_back(seed, k):
    rng = np.random.default_rng(seed)
    maps = [rng.integers(0, k, (8, 8)).astype(np.uint8) for _ in range(2)]
    names = rng.permutation(k).astype(np.uint8)
    larger = [resized(names[m], (16, 16)) for m in maps]
    for got, m in zip(matched(larger, maps, k), maps):
        assert (got == resized(m, (16, 16))).all()


def test_clusters_are_pixels_that_are_alike():
    half = torch.zeros(3, 4, 8)
    half[:, :, 4:] = 5
    first, second = cluster_maps([half + 0.01 * torch.randn(half.shape), half], 2)
    assert (first == second).all() and first[0, 0] != first[0, 7] and len(np.unique(first[:, :4])) == 1
    with pytest.raises(ValueError, match="64 clusters need as many pixels"):
        cluster_maps([half], 64)


# Noise


def test_the_variants_of_noise_are_what_they_are_called(pipe):
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    images[1] = images[0]

    def extracted(noise, seed=0, **kwargs):
        extractor = NoiseVariant(pipe.unet, pipe.scheduler, [3], [150, 151], noise=noise, **kwargs)
        return extractor(images, generator=torch.Generator().manual_seed(seed)).activations

    plain = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, [3], [150, 151])(images).activations
    assert all(torch.equal(a, b) for a, b in zip(extracted("one"), plain))
    per_step = extracted("per timestep")
    assert torch.equal(per_step[0][0], per_step[0][1])  # the same for both images
    assert (per_step[0] - per_step[1]).abs().mean() > 3 * (plain[0] - plain[1]).abs().mean()  # not for both timesteps
    fresh = extracted("fresh")
    assert not torch.equal(fresh[0][0], fresh[0][1])
    generator = torch.Generator().manual_seed(0)
    one = NoiseVariant(pipe.unet, pipe.scheduler, [3], [150, 151], noise="fresh")
    draws = [one(images, generator=generator).activations for _ in range(3)]
    averaged = extracted("averaged", draws=3)
    torch.testing.assert_close(averaged[0], sum(d[0] for d in draws) / 3)


# Corruptions


def test_corrupted_images_keep_their_masks_and_are_the_same_every_time():
    clean = drawn_dataset(2, size=(32, 48))
    names = corruption_names()
    assert len(names) == 15
    before = np.random.get_state()[1].copy()
    mild, strong = (Corrupted(clean, "gaussian_noise", severity) for severity in (1, 5))
    difference = [
        np.abs(np.asarray(d[1].image, float) - np.asarray(clean[1].image, float)).mean() for d in (mild, strong)
    ]
    assert 0 < difference[0] < difference[1]
    assert (strong[1].mask == clean[1].mask).all() and strong[1].image.mode == clean[1].image.mode
    assert np.array_equal(strong[1].image, strong[1].image) and len(strong) == 2
    assert (np.random.get_state()[1] == before).all()


# Results on disk


def test_a_study_goes_on_where_it_was_cut_off_and_another_one_is_refused(tmp_path):
    path = tmp_path / "study.jsonl"
    cells = Results(path, {"seed": 0})
    assert cells.get("a", lambda: {"x": 1}) == {"x": 1}
    cells.get("b", lambda: {"x": 2})
    path.write_text(path.read_text()[:-5])  # cut off within the last line
    again = Results(path, {"seed": 0})
    assert again.get("a", lambda: pytest.fail("computed twice")) == {"x": 1}
    assert again.get("b", lambda: {"x": 3}) == {"x": 3}
    assert Results(path, {"seed": 0}).results == {"a": {"x": 1}, "b": {"x": 3}}
    with pytest.raises(ValueError, match=r"holds another study: seed 0 \(now 1\)"):
        Results(path, {"seed": 1})


# The command


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze")
    make_pipeline(sample_size=32).save_pretrained(folder / "model")
    for split, seed in (("train", 0), ("test", 50)):
        (folder / "drawn" / "data").mkdir(parents=True, exist_ok=True)
        rows = drawn_dataset(4, size=(32, 32), seed=seed).dataset
        rows.to_parquet(folder / "drawn" / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def analyze(folders, *more, **kwargs):
    given = ("--model", folders / "model", "--dataset_name", folders / "drawn", "--folds", "2", "--draws", "2")
    return run("diffuseseg", "analyze", *given, "--cache_dir", folders / "cache", *more, OMP_NUM_THREADS="1", **kwargs)


def test_all_studies_run_and_leave_tables_and_figures(folders, tmp_path):
    out = tmp_path / "out"
    studies = ("blocks-timesteps", "clusters", "noise", "labels", "corruptions")
    command = ("--study", *studies, "--blocks", "1", "5", "--timesteps", "50", "200", "--counts", "1", "4")
    said = analyze(folders, *command, "--output_dir", out)
    assert "Best: block" in said.stdout
    for name in studies:
        report = json.loads((out / f"{name}.json").read_text())
        with open(out / f"{name}.csv") as file:
            assert len(list(csv.DictReader(file))) == len(report["rows"]) > 0
    for name in ("blocks-timesteps", "blocks-timesteps-map", "clusters", "labels", "corruptions"):
        assert Image.open(out / f"{name}.png").size[0] > 300
        assert "<svg" in (out / f"{name}.svg").read_text()[:2000]
    rows = json.loads((out / "noise.json").read_text())["rows"]
    assert [(r["trained"], r["tested"]) for r in rows] == [(a, b) for a in NOISES for b in NOISES]
    times = {p.name: p.read_text() for p in out.glob("*.jsonl")}
    again = ("--study", "blocks-timesteps", *command[1 + len(studies) :])
    analyze(folders, *again, "--output_dir", out)  # all of it is there
    assert {p.name: p.read_text() for p in out.glob("*.jsonl")} == times


def test_what_cannot_be_studied_is_a_sentence(folders, tmp_path):
    said = analyze(folders, "--folds", "5", "--output_dir", tmp_path / "a", expect=1)
    assert "got 5 folds for 4 images" in said.stderr
    said = analyze(folders, "--timesteps", "1000", "--output_dir", tmp_path / "b", expect=1)
    assert "Timestep 1000 does not exist" in said.stderr
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("x")
    said = analyze(folders, "--output_dir", tmp_path / "c", expect=1)
    assert "exists and is kept" in said.stderr


def test_fit_chooses_blocks_and_timesteps_and_says_what_it_chose(folders, tmp_path):
    given = ("--model", folders / "model", "--dataset_name", folders / "drawn", "--cache_dir", folders / "cache")
    auto = ("diffuseseg", "fit", *given, "--blocks", "auto", "--timesteps", "50", "150", "--num_members", "2")
    said = run(*auto, "--max_bytes", "20000", "--output_dir", tmp_path / "out", OMP_NUM_THREADS="1")
    assert "the first is taken" in said.stdout
    report = json.loads((tmp_path / "out" / "head_training.json").read_text())["selection"]
    config = json.loads((tmp_path / "out" / "segmentation_head" / "config.json").read_text())
    assert [config["blocks"], config["timesteps"]] == [report[0]["blocks"], report[0]["timesteps"]]
    assert len(report) > 1 and all(c["bytes"] <= 20000 for c in report)
    said = run(*auto[:-2], "--max_bytes", "1", "--output_dir", tmp_path / "none", expect=1)
    assert "stays within the budget" in said.stderr
    said = run("diffuseseg", "fit", *given, "--max_bytes", "1", "--output_dir", tmp_path / "none", expect=1)
    assert "are for --blocks or --timesteps auto" in said.stderr


def test_without_scikit_learn_clusters_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ValueError, match=r"pip install diffuseseg-diffusers\[analysis\]"):
        clusters(SimpleNamespace(args=None))
