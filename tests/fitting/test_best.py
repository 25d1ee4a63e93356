# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from diffuseseg_diffusers import FitConfig, LabeledImages, load_pipeline
from diffuseseg_diffusers.fitting import best
from diffuseseg_diffusers.fitting.best import describe, fit_best
from diffuseseg_diffusers.fitting.setup import against_best
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.loading import save_fitted

from ..conftest import draw, make_pipeline, run


def drawings(count: int, size: tuple[int, int] = (40, 48)) -> LabeledImages:
    rows = [dict(zip(("image", "mask"), map(Image.fromarray, draw(size, seed)))) for seed in range(count)]
    return LabeledImages(Dataset.from_list(rows), label_names=["sky", "disc", "bar"])


@pytest.fixture(scope="module")
def fitted():
    """The best of heads alone: there is no time for a U-Net."""
    torch.manual_seed(0)
    with mock.patch.object(best, "passes_within", lambda *_: 40):  # however slow the machine is
        return fit_best(make_pipeline(), drawings(4), max_minutes=0.01, show_progress=False)


def test_the_best_of_heads_finds_the_classes_of_drawings(fitted):
    model, choice = fitted
    unseen = drawings(8).select(range(4, 8))
    masks = model.segment([unseen[i].image for i in range(4)], output_type="np").masks
    assert np.mean([(m == unseen[i].mask).mean() for i, m in enumerate(masks)]) > 0.8
    assert choice.mean_iou >= max(c["mean_iou"] for c in choice.candidates) - 1e-6
    assert choice.estimate.low <= choice.estimate.mean_iou <= choice.estimate.high
    assert not choice.within and choice.num_pieces == 4 and choice.piece == (40, 48)


def test_what_is_tried_first_are_heads_on_activations_filters_and_both(fitted):
    _, choice = fitted
    assert [c["name"] for c in choice.candidates[:3]] == [
        "activations, scale 1, timesteps 25",
        "filters, scale 1, timesteps 25",
        "both, scale 1, timesteps 25",
    ]
    text = describe(choice, ["sky", "disc", "bar"])
    assert "95 % interval" in text and "4 pictures" in text and "disc" in text


@pytest.mark.slow
def test_a_unet_votes_with_heads_and_all_are_one_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(best, "FINAL", 0.0)
    monkeypatch.setattr(best.Clock, "left", lambda clock: 3.0)  # however slow the machine is
    monkeypatch.setattr(best, "choose_votes", lambda labels, p: np.eye(len(p), dtype=int)[[0, 3]].sum(0))
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "ddpm")
    model, choice = fit_best(pipe, drawings(3), max_minutes=0.05, show_progress=False)
    assert choice.candidates[3]["name"] == "U-Net" and choice.steps > 0
    assert isinstance(model, AveragedSegmenter) and len(model.models) == 2 and model.weights == [0.5, 0.5]
    save_fitted(model, tmp_path / "out", str(tmp_path / "ddpm"))
    image = drawings(5)[4].image
    again = load_pipeline(tmp_path / "out", dtype="float32")
    one, other = (
        m.segment(image, output_type="np", return_probabilities=True).probabilities[0] for m in (model, again)
    )
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_classes_that_a_fold_does_not_see_are_named(capsys):
    rows = [{"image": Image.fromarray(draw((40, 48), i)[0])} for i in range(2)]
    masks = [np.full((40, 48), value, np.uint8) for value in (0, 1)]
    dataset = Dataset.from_list([row | {"mask": Image.fromarray(m)} for row, m in zip(rows, masks)])
    names = ["sky", "disc", "bar"]
    _, choice = fit_best(make_pipeline(), LabeledImages(dataset, label_names=names), max_minutes=0.01)
    said = capsys.readouterr().out
    assert "fold 1 of 2 has no training pixel of" in said and "bar" in said
    assert "No labelled pixel shows bar: the estimate leaves out" in describe(choice, names)


def test_fewer_augmented_views_are_read_where_time_is_short_and_a_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(best, "passes_within", lambda *_: 8)
    labelled = mock.Mock(side_effect=KeyboardInterrupt)  # nothing is fitted
    monkeypatch.setattr(best, "Labelled", labelled)
    with pytest.raises(KeyboardInterrupt):
        fit_best(make_pipeline(), drawings(4), max_minutes=0.01)
    assert labelled.call_args.args[4].augmented_images == 8
    assert "4 of 156 augmented views are read in the time" in capsys.readouterr().out


def test_strokes_are_named_and_what_learns_from_the_rest(monkeypatch, capsys):
    monkeypatch.setattr(best, "Labelled", mock.Mock(side_effect=KeyboardInterrupt))  # nothing is fitted
    rows = [dict(zip(("image", "mask"), map(Image.fromarray, draw((40, 48), seed)))) for seed in range(3)]
    for row in rows:
        mask = np.array(row["mask"])
        mask[4:] = 255
        row["mask"] = Image.fromarray(mask)
    with pytest.raises(KeyboardInterrupt):
        fit_best(make_pipeline(), LabeledImages(Dataset.from_list(rows), label_names=["sky", "disc", "bar"]))
    assert "10.0% of the pixels have a label; --sparse_labels" in capsys.readouterr().out


@pytest.mark.slow
def test_two_large_pictures_are_compared_tile_by_tile():
    _, choice = fit_best(make_pipeline(), drawings(2, (180, 300)), max_minutes=0.01, show_progress=False)
    assert choice.within and choice.num_pieces == 4 and choice.estimate.units == 4
    assert "flatters" in describe(choice, ["sky", "disc", "bar"])


@pytest.mark.parametrize("labelled", [0, 1])
def test_pictures_without_a_label_do_not_count(labelled):
    rows = [dict(zip(("image", "mask"), map(Image.fromarray, draw((40, 48), seed)))) for seed in range(3)]
    for row in rows[labelled:]:
        row["mask"] = Image.fromarray(np.full((40, 48), 255, np.uint8))
    dataset = LabeledImages(Dataset.from_list(rows), label_names=["sky", "disc", "bar"])
    with pytest.raises(UserError, match="one labelled picture of 48 × 40" if labelled else "no labelled pixels"):
        fit_best(make_pipeline(), dataset)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_no_time_or_endless_time_is_refused(minutes):
    with pytest.raises(UserError, match="above 0 minutes"):
        fit_best(make_pipeline(), drawings(2), max_minutes=minutes)


def test_a_single_small_picture_is_refused():
    with pytest.raises(UserError, match="one labelled picture of 48 × 40"):
        fit_best(make_pipeline(), drawings(1))


@pytest.mark.slow
def test_fit_takes_the_best_by_default_and_segment_uses_it(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "ddpm")
    for kind in ("images", "masks"):
        (tmp_path / "data" / "train" / kind).mkdir(parents=True)
    for seed in range(4):
        for kind, array in zip(("images", "masks"), draw((40, 48), seed)):
            Image.fromarray(array).save(tmp_path / "data" / "train" / kind / f"{seed}.png")
    (tmp_path / "data" / "id2label.json").write_text('["sky", "disc", "bar"]')
    fit = ("diffuseseg", "fit", "--model", tmp_path / "ddpm", "--dataset_name", tmp_path / "data")
    said = run(*fit, "--max_minutes", "0.05", "--output_dir", tmp_path / "model").stdout
    assert "Recipe: best." in said and "Expected on other pictures" in said
    report = json.loads((tmp_path / "model" / "head_training.json").read_text())
    assert report["recipe"] == "best" and len(report["choice"]["candidates"]) >= 3
    picture = tmp_path / "data" / "train" / "images" / "0.png"
    run("diffuseseg", "segment", "--model", tmp_path / "model", picture, "--output_dir", tmp_path / "masks")
    assert len(list((tmp_path / "masks").rglob("*.png"))) >= 1
    said = run(*fit, "--blocks", "1", "--num_members", "2", "--output_dir", tmp_path / "other").stdout
    assert "Recipe: default, as --blocks is given." in said


def test_best_is_left_where_there_is_nothing_to_compare_on_or_something_speaks_against_it(tmp_path):
    pipe, common = make_pipeline(), dict(model="MODEL", dataset_name="DATA", output_dir=tmp_path / "out")
    config = FitConfig(**common)
    chosen, why = config.with_recipe(against_best(config, pipe, drawings(2), 1))
    assert chosen.recipe == "best" and why == ""
    chosen, why = config.with_recipe(against_best(config, pipe, drawings(1), 1))
    assert chosen.recipe == "default" and "one labelled picture" in why
    assert len(against_best(config, pipe, drawings(1, (300, 300)), 1)) == 0  # which is four tiles
    chosen, why = FitConfig(**common, num_members=2).with_recipe()
    assert chosen.recipe == "default" and why == ", as --num_members is given"
    with pytest.raises(UserError, match="nothing to compare on; use --recipe default without"):
        config = FitConfig(**common, max_minutes=1)
        config.with_recipe(against_best(config, pipe, drawings(1), 1))
