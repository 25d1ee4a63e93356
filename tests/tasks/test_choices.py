# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Choices that configurations state, so that help needs no library, are those of the library."""

from diffuseseg_diffusers.evaluation.decision_fitting import IMAGES
from diffuseseg_diffusers.factory.sampling import IMAGE_FORMATS, SCHEDULERS
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.images.masks import MASK_FORMATS
from diffuseseg_diffusers.jobs.hardware import DTYPES
from diffuseseg_diffusers.paper.catalogue import STUDIES
from diffuseseg_diffusers.paper.guided_diffusion import PRESETS
from diffuseseg_diffusers.tasks import analyze, convert, fit, generate, options


def test_choices_are_those_of_the_library():
    assert options.DTYPES == ("auto", *DTYPES)
    assert options.MASK_FORMATS == MASK_FORMATS
    assert options.RECIPES == tuple(RECIPES)
    assert analyze.STUDIES == tuple(STUDIES)
    assert convert.PRESETS == tuple(PRESETS)
    assert (generate.SCHEDULERS, generate.IMAGE_FORMATS) == (tuple(SCHEDULERS), IMAGE_FORMATS)
    assert fit.FitConfig.options()["max_unlabeled"] and fit.FitConfig.max_unlabeled == IMAGES
