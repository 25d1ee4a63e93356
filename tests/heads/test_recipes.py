# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

from diffusers import DDPMScheduler

from diffuseseg_diffusers import DiffuseSegPipeline, fit_segmentation_head, recipe_extractor
from diffuseseg_diffusers.heads.recipes import RECIPES

from ..conftest import drawn_dataset, make_pipeline, make_unet


def test_recipes_are_the_published_one_a_fast_one_and_the_default():
    paper = RECIPES["paper"]
    assert (paper.batch_size, paper.learning_rate, paper.max_epochs, paper.patience) == (64, 1e-3, 100, 50)
    assert paper.patience_from_epoch == 4 and not paper.standardize and not paper.one_cycle
    for recipe in (paper, RECIPES["fast"]):
        assert (recipe.augmented_images, recipe.balance, recipe.flip, recipe.voting) == (0, 0, False, "hard")
        assert recipe.timesteps == (50, 150, 250) and recipe.blocks is None
    assert list(RECIPES) == ["default", "paper", "fast"]


def test_the_recipe_says_which_features_are_read_and_how_the_members_vote():
    pipe, dataset = make_pipeline(layers_per_block=3), drawn_dataset()  # 12 decoder blocks
    quick = replace(RECIPES["default"], max_steps=2, augmented_images=8)
    config = fit_segmentation_head(pipe, dataset, recipe=quick, num_members=2).config
    assert list(config.blocks) == [4, 5, 8, 10] and list(config.timesteps) == [25]
    assert config.clean and not config.flip and config.voting == "soft"
    noisy = fit_segmentation_head(pipe, dataset, recipe=replace(quick, mirror=True), num_members=2, clean=False).config
    assert list(noisy.timesteps) == [10, 600] and noisy.flip and not noisy.clean
    for own in (
        replace(quick, clean=False, timesteps=(50, 150)),
        replace(quick, noisy_timesteps=None, timesteps=(50, 150)),
    ):
        extractor = recipe_extractor(pipe, own, clean=False)
        assert extractor.timesteps == (50, 150) and not extractor.clean
    levels = recipe_extractor(pipe, quick, noise_levels=[0.5])
    assert len(levels.timesteps) == 1 and not levels.clean
    pipe.scheduler = DDPMScheduler(num_train_timesteps=4000)
    paper = fit_segmentation_head(pipe, dataset, recipe=replace(RECIPES["paper"], max_steps=2), num_members=2).config
    assert list(paper.blocks) == [3, 7, 11] and list(paper.timesteps) == [
        92,
        291,
        491,
    ]  # as noisy as 50, 150, 250 of 1,000
    assert not paper.flip and paper.voting == "hard"
    large = make_unet(layers_per_block=5)  # 18 decoder blocks
    pipe = DiffuseSegPipeline(large, DDPMScheduler())
    assert recipe_extractor(pipe, "paper").blocks == (5, 6, 7, 8, 12)
    assert recipe_extractor(pipe, "default").blocks == (6, 7, 12, 15)
