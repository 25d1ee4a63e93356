# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffuseseg_diffusers.heads import cross_validation
from diffuseseg_diffusers.heads.classes import Classes
from diffuseseg_diffusers.heads.cross_validation import (
    Folds,
    LabeledActivations,
    cross_validated,
    entries_of,
    fit_groups,
    folds_of,
    missing_classes,
    others,
    score,
)
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import QUICK, drawn_dataset, make_pipeline


CLASSES = Classes(3, ("sky", "disc", "bar"))
# As the default recipe: augmented views, weights of classes, mirror images and soft votes.
WHOLE = replace(QUICK, augmented_images=18, balance=0.5, flip=True, mirror=True, voting="soft")


def extracted(recipe, **choice) -> LabeledActivations:
    extractor = make_pipeline().features(range(6), [50, 150, 400])
    return LabeledActivations.extract(extractor, drawn_dataset(6), recipe, show_progress=False, **choice)


@pytest.fixture(scope="module")
def plain():
    return extracted(QUICK)


@pytest.fixture(scope="module")
def whole():
    return extracted(WHOLE)


def test_what_is_extracted_is_what_the_recipe_learns_from_and_what_its_heads_see(plain, whole):
    assert (plain.views, plain.mirrored, len(plain), len(plain.table.labels)) == (0, None, 6, 6)
    assert (whole.views, len(whole), len(whole.table.labels)) == (2, 6, 18)
    assert torch.equal(whole.labels, plain.labels) and whole.rows([0, 5]) == [0, 1, 2, 15, 16, 17]
    assert torch.equal(whole.mirrored.labels, plain.labels.flip(-1))
    for a, b in zip(whole.table.image(15, [3]), plain.table.image(5, [3])):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    assert extracted(WHOLE, flip=False).mirrored is None


def test_a_selection_holds_the_same_activations_and_an_image_gives_them_back(plain):
    table = plain.table
    entries = entries_of(table, [5, 1], [400, 50])
    assert [(table.info[i].timestep, table.info[i].block) for i in entries] == [(400, 1), (400, 5), (50, 1), (50, 5)]
    chosen = table.select(entries)
    direct = extract_activations(make_pipeline().features([1, 5], [400, 50]), drawn_dataset(6), show_progress=False)
    for image in (0, 5):
        for a, b, c in zip(
            table.image(image, entries), chosen.image(image, range(4)), direct.image(image, range(4)), strict=True
        ):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, atol=2e-3, rtol=2e-3)


@given(st.integers(2, 30), st.integers(2, 10), st.integers(0, 5))
def test_folds_hold_every_image_out_once(images, folds, seed):
    if folds > images:
        with pytest.raises(UserError, match="lower --folds or label more"):
            folds_of(images, folds, seed)
        return
    held_out = folds_of(images, folds, seed)
    assert sorted(i for fold in held_out for i in fold) == list(range(images))
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1
    for fold, rest in zip(held_out, others(held_out)):
        assert sorted(fold + rest) == list(range(images))


@pytest.mark.parametrize("recipe", [QUICK, WHOLE])
def test_a_fold_learns_nothing_from_labels_of_the_images_that_it_holds_out_nor_from_their_views(recipe, plain, whole):
    activations = whole if recipe is WHOLE else plain
    images, labels = [[0, 1, 2], [3, 4, 5]], activations.table.labels
    before = fit_groups(activations, [1, 5], [50], CLASSES, images, recipe, 2)
    others_of_first = activations.rows([3, 4, 5])
    assert len(others_of_first) == 3 * (1 + activations.views)
    changed = activations.table.labels = labels.clone()
    changed[others_of_first] = torch.where(labels[others_of_first] == 255, 255, 0).to(torch.uint8)  # no disc, no bar
    try:
        after = fit_groups(activations, [1, 5], [50], CLASSES, images, recipe, 2)
    finally:
        activations.table.labels = labels
    same = [
        all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
        for one, two in zip(before, after)
    ]
    assert same == [True, False]


def test_the_heads_of_a_fold_see_its_images_with_their_views_and_no_other(whole, monkeypatch):
    seen = {}
    monkeypatch.setattr(cross_validation, "fit_members", lambda *args, images, **how: seen.update(images=images))
    fit_groups(whole, [5], [50], CLASSES, [[0, 1], [4]], WHOLE, 2)
    assert seen["images"] == [[0, 1, 2, 3, 4, 5]] * 2 + [[12, 13, 14]] * 2


@pytest.mark.parametrize("recipe", [QUICK, WHOLE])
def test_features_that_hold_the_answer_score_higher_than_those_that_do_not(recipe, plain, whole):
    activations, folds = whole if recipe is WHOLE else plain, folds_of(6, 3)
    told = cross_validated(activations, [5], [50], CLASSES, folds, recipe)
    shuffled = activations.table.copy()
    for rows in shuffled.tables.values():
        rows.copy_(rows[torch.randperm(len(rows))])
    blind = LabeledActivations(shuffled, activations.views)
    assert told["mean_iou"] > cross_validated(blind, [5], [50], CLASSES, folds, recipe)["mean_iou"] + 0.2
    assert len(told["per_class_iou"]) == 3


def test_the_score_is_of_each_image_by_the_head_of_its_group_with_its_mirror_image(whole):
    heads = fit_groups(whole, [5], [50], CLASSES, [[0, 1], [2, 3]], WHOLE)
    assert [(h.config.flip, h.config.voting) for h in heads] == [(True, "soft")] * 2
    found = score(heads, whole, [[4], [5]], CLASSES)
    confusion, entry = np.zeros((3, 3)), entries_of(whole.table, [5], [50])
    for head, image in zip(heads, (4, 5)):
        mirrored = whole.mirrored.image(image, entry)
        predicted = head.predict(whole.table.image(3 * image, entry), mirrored=mirrored).labels[0].numpy()
        np.add.at(confusion, (whole.labels[image].numpy(), predicted), 1)
    right = confusion.diagonal()
    expected = right / (confusion.sum(0) + confusion.sum(1) - right)
    np.testing.assert_allclose(found["per_class_iou"], expected)


def test_classes_that_no_image_of_a_fold_shows_are_told():
    labels = torch.zeros(4, 8, 8, dtype=torch.uint8)
    labels[0, :4] = 1
    labels[:, 0] = 2
    said = missing_classes(labels, [[0, 1], [2, 3]], CLASSES)
    assert len(said) == 1 and "fold 2 of 2 has no training pixel of disc" in said[0]


def test_heads_on_activations_on_filters_and_on_both_come_from_one_table():
    extractor = make_pipeline().features([1, 5], [50], filters=(1.0, 3.5))
    one = LabeledActivations.extract(extractor, drawn_dataset(6), WHOLE, show_progress=False)
    shapes = []
    for inputs in (("activations",), ("filters",), ("both",), ("activations", "filters")):
        heads = fit_groups(one, [1, 5], [50], CLASSES, [[0, 1, 2], [3, 4, 5]], WHOLE, 2, inputs=inputs)
        shapes.append((len(heads[0].channels), heads[0].config.member_inputs))
        assert score(heads, one, [[3, 4, 5], [0, 1, 2]], CLASSES)["mean_iou"] > 0.6
    assert shapes == [(2, None), (1, None), (3, None), (3, ["activations", "filters"])]


def test_folds_hold_out_whole_pictures_where_there_are_enough():
    folds = Folds.of(np.array([0, 0, 1, 1, 2, 2]), 3, 0)
    assert not folds.within
    assert sorted(map(tuple, folds.held_out)) == [(0, 1), (2, 3), (4, 5)]


def test_folds_of_two_pictures_are_of_their_tiles():
    folds = Folds.of(np.array([0, 0, 0, 1, 1, 1]), 3, 0)
    assert folds.within
    assert sorted(i for own in folds.held_out for i in own) == list(range(6))


def test_a_single_picture_in_two_tiles_is_compared_within():
    folds = Folds.of(np.array([0, 0]), 3, 0)
    assert folds.within and sorted(map(tuple, folds.held_out)) == [(0,), (1,)]
    assert not Folds.of(np.array([0, 1]), 3, 0).within
