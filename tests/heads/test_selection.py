# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import pytest
import torch

from diffuseseg_diffusers.heads import cross_validation
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.heads.selection import (
    Budget,
    choose_features,
    cost_of,
    format_choices,
    select_features,
    time_passes,
)
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import QUICK, drawn_dataset, make_pipeline


def test_selection_adds_what_helps_until_nothing_does_and_stays_within_the_budget():
    worth = {("b", 1): 0.3, ("b", 2): 0.25, ("b", 3): 0.2, ("t", 50): 0.1, ("t", 150): 0.05}

    def scored(blocks, timesteps):
        return sum(worth["b", b] for b in blocks) + sum(worth["t", t] for t in timesteps) - 0.15 * (len(timesteps) - 1)

    def cost(blocks, timesteps):
        return {"dimensions": 10 * len(blocks) * len(timesteps), "bytes": 0, "milliseconds": 0.0}

    said = []
    announce = lambda step, count: said.append((step, count))  # noqa: E731
    free = select_features(scored, cost, [1, 2, 3], [50, 150], Budget(), announce=announce)
    assert (free[0]["blocks"], free[0]["timesteps"]) == ((1, 2, 3), (50,))
    assert [c["mean_iou"] for c in free] == sorted((c["mean_iou"] for c in free), reverse=True)
    assert said[0] == (1, 6) and [step for step, _ in said] == [1, 2, 3, 4] and sum(n for _, n in said) == len(free)
    tight = select_features(scored, cost, [1, 2, 3], [50, 150], Budget(dimensions=20))
    assert (tight[0]["blocks"], tight[0]["timesteps"]) == ((1, 2), (50,))
    assert all(c["dimensions"] <= 20 for c in tight)
    rival = select_features(scored, cost, [1], [50], Budget(), rival=((1, 2, 3), (50,)))
    assert rival[0]["step"] == 0 and rival[0]["blocks"] == (1, 2, 3)
    found = select_features(scored, cost, [1, 2, 3], [50], Budget(), rival=((2, 1), (50,)))
    assert [c["blocks"] for c in found if c["step"] == 0] == [(1, 2)]  # also where the search came by
    all_steps = select_features(scored, cost, [1, 2, 3], [50, 150], Budget(), choose=["blocks"])
    assert {c["timesteps"] for c in all_steps} == {(50, 150)} and all_steps[0]["blocks"] == (1, 2, 3)
    with pytest.raises(UserError, match="raise it"):
        select_features(scored, cost, [1], [50], Budget(dimensions=5))


def test_costs_are_those_of_the_activations():
    extractor = make_pipeline().features(range(6), [50, 150, 400])
    table = extract_activations(extractor, drawn_dataset(1), show_progress=False)
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


@pytest.fixture
def fits(monkeypatch):
    """The recipe of each fit, with how many images its table has and how many its heads saw."""
    seen, fit = [], cross_validation.fit_members

    def spy(head, table, recipe, *args, images, **how):
        seen.append((recipe, len(table.labels), {len(own) for own in images}, head.config.flip, head.config.voting))
        fit(head, table, recipe, *args, images=images, **how)

    monkeypatch.setattr(cross_validation, "fit_members", spy)
    return seen


def test_the_automatic_choice_is_measured_with_the_recipe_that_the_head_is_fitted_with_and_against_its_features(fits):
    """Not with the recipe `fast`, and not against the paper's blocks and timesteps."""
    recipe = replace(RECIPES["default"], batch_size=64, max_steps=8, augmented_images=48, mirror=True)  # in little time
    tried = choose_features(
        make_pipeline(), drawn_dataset(4), recipe, timesteps=(10, 600), folds=2, show_progress=False
    )
    own = [c for c in tried if c["step"] == 0]
    assert [(c["blocks"], c["timesteps"]) for c in own] == [((2, 4, 5), (10, 600))]  # of 18: 6 7 12 15
    assert "2 4 5; 10 600; the recipe's own" in format_choices(tried, len(tried))
    assert all(c["dimensions"] <= own[0]["dimensions"] for c in tried) and len(fits) == len(tried)
    # A quarter of the views and half of the steps, and else the same: weights, mirror images, votes.
    assert set(map(repr, fits)) == {repr((recipe.for_studies(), 12, {6}, True, "soft"))}
    shortened = recipe.for_studies()
    assert (shortened.augmented_images, shortened.max_steps) == (12, 4)
    assert replace(shortened, augmented_images=48, max_steps=8) == recipe


def test_the_recipe_decides_what_competes(fits):
    recipe = replace(QUICK, max_steps=8)
    tried = choose_features(make_pipeline(), drawn_dataset(4), recipe, folds=2, timesteps=(50,), show_progress=False)
    own = [c for c in tried if c["step"] == 0]
    assert [c["blocks"] for c in own] == [(1, 3, 5)]  # the outputs of the up-blocks, as it names none
    assert set(map(repr, fits)) == {repr((recipe.for_studies(), 4, {2}, False, "hard"))}
    with pytest.raises(UserError, match="label more"):
        choose_features(make_pipeline(), drawn_dataset(1), QUICK, show_progress=False)


def test_left_and_right_are_exchanged_only_if_the_head_may(fits):
    recipe = replace(QUICK, max_steps=2, flip=True, mirror=True)
    given = dict(blocks=(1, 5), timesteps=(50,), folds=2, show_progress=False)
    choose_features(make_pipeline(), drawn_dataset(4), recipe, flip=False, **given)
    choose_features(make_pipeline(), drawn_dataset(4, label_names=["sky", "left", "right"]), recipe, **given)
    choose_features(make_pipeline(), drawn_dataset(4), recipe, **given)
    assert [flip for *_, flip, _ in fits] == [False, False, True]


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_for_comparisons_is_the_same_with_less_work(name):
    recipe, short = RECIPES[name], RECIPES[name].for_studies()
    less = {field: getattr(recipe, field) for field in ("batch_size", "max_steps", "augmented_images")}
    assert replace(short, **less) == recipe
    assert short.batch_size <= 256 and short.max_steps <= (recipe.max_steps or 8192) / 2
    assert bool(short.augmented_images) == bool(recipe.augmented_images)
