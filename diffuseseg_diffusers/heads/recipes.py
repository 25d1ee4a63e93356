# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How segmentation heads are trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..features.base import Block
from ..features.noise import PAPER_TIMESTEPS
from ..jobs.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """How the members are trained.

    Args:
        batch_size (`int`): Pixels in a step of one member.
        learning_rate (`float`): Adam's learning rate; the highest one with `one_cycle`.
        max_epochs (`int`): Passes over the labelled pixels, at most.
        max_steps (`int`, *optional*): Steps, at most.
        patience (`int`, *optional*): Steps without improvement of its loss after which a member stops.
        patience_from_epoch (`int`): First epoch, counted from 0, in which losses count.
        one_cycle (`bool`): Learning rate warmed up and annealed to zero over all steps (Smith and Topin, 2019).
        standardize (`bool`): Whether features get zero mean and unit variance; afterwards part of the first layer.
        augmented_images (`int`): About how many images to learn from: the labelled ones, and as many augmented views of
            each as make up that number, but one at least; 0 for no augmented views.
        balance (`float`): A pixel weighs its class's share of all pixels to the power of minus this; 0 for equal
            weights.
        flip (`bool`): Whether left and right may be exchanged in augmented views and, with `mirror`, in use.
        mirror (`bool`): Whether half of the members see the mirror image of every image in use, if `flip` lets them;
            twice as many passes of the model.
        voting (`str`): How the members decide, see [`PixelClassifierEnsemble`].
        num_members (`int`): Members of the ensemble, if no number is given.
        timesteps (sequence of `int`): Of the features, if none are given; of a schedule of 1,000 steps.
        clean (`bool`): Whether images are read without noise, so that timesteps are only what the denoiser is told.
        noisy_timesteps (sequence of `int`, *optional*): In place of `timesteps` where noise is asked for, of a recipe
            that is `clean`.
        distilled_timesteps (sequence of `int`, *optional*): Of a recipe that is `clean`, what tells more together than
            `timesteps`, for copies that learn to give all in one pass; `timesteps` if none.
        blocks (sequence of `int`, *optional*): Of a U-Net with 18 decoder blocks, as the paper's; others read those at
            the same relative depth. If not given, the paper's, or the outputs of all up-blocks. Transformers, and
            U-Nets of the shapes of Stable Diffusion and SDXL, read blocks of their own, whatever these are.
        inputs (sequence of `str`): What the members read, one after another, over and over: `"activations"`,
            `"filters"` of the image at the scales `SIGMAS` (see [`filter_bank`]), or `"both"`. In a table, filters
            take two bytes for each output and pixel: 0.8 GB for 160 views of 128 × 128 pixels in three channels.
    """

    batch_size: int
    learning_rate: float
    max_epochs: int
    max_steps: int | None = None
    patience: int | None = None
    patience_from_epoch: int = 4
    one_cycle: bool = False
    standardize: bool = False
    augmented_images: int = 0
    balance: float = 0.0
    flip: bool = False
    mirror: bool = False
    voting: str = "hard"
    num_members: int = 10
    timesteps: Sequence[int] = PAPER_TIMESTEPS
    clean: bool = False
    noisy_timesteps: Sequence[int] | None = None
    distilled_timesteps: Sequence[int] | None = None
    blocks: Sequence[Block] | None = None
    inputs: Sequence[str] = ("activations",)

    def num_views(self, num_images: int) -> int:
        """Augmented views of each of so many labelled images."""
        return max(1, self.augmented_images // num_images - 1) if self.augmented_images else 0

    def for_studies(self) -> "Recipe":
        """The same kind of training with a fraction of the work, for comparisons of features with each other.

        Of the default recipe, 19 choices of features for faces kept their order in a sixth of the time (rank
        correlation 0.99), all scores 1.6 points lower.
        """
        return replace(
            self,
            batch_size=min(self.batch_size, 256),
            max_steps=max(1, (self.max_steps or 8192) // 2),
            augmented_images=math.ceil(self.augmented_images / 4),
        )


RECIPES = {
    # Every choice in it was made by cross-validation: see docs/label_efficiency.md.
    "default": Recipe(
        batch_size=1024,
        learning_rate=4e-3,
        max_epochs=100,
        max_steps=1000,
        one_cycle=True,
        standardize=True,
        augmented_images=160,
        balance=0.125,
        flip=True,
        voting="soft",
        num_members=4,
        timesteps=(25,),
        clean=True,
        noisy_timesteps=(10, 600),
        distilled_timesteps=(0, 50),
        blocks=(6, 7, 12, 15),
    ),
    # As published: `train_interpreter.py` of yandex-research/ddpm-segmentation.
    "paper": Recipe(batch_size=64, learning_rate=1e-3, max_epochs=100, patience=50),
    # Large batches on a schedule reach at least the same accuracy in fewer steps.
    "fast": Recipe(batch_size=256, learning_rate=8e-3, max_epochs=100, max_steps=600, one_cycle=True, standardize=True),
}


def find_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe of that name; one that is given stays as it is.

    Raises:
        UserError: There is none of that name.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise UserError(f"There is no recipe {recipe!r}; there are {', '.join(map(repr, RECIPES))}.")
    return RECIPES[recipe]
