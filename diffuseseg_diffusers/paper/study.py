# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What all studies share: the model, the labelled images, the recipe that they measure with, and results that stay."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..datasets.labeled import LabeledImages
from ..evaluation.evaluate import evaluate_segmentation
from ..features.base import Block, FeatureExtractor, ordered
from ..heads.classes import Classes
from ..heads.cross_validation import LabeledActivations, folds_of, missing_classes, others
from ..heads.extraction import labeled_examples
from ..heads.fit import fit_segmentation_head, recipe_extractor
from ..heads.recipes import Recipe, find_recipe
from ..heads.selection import STUDY_TIMESTEPS
from ..jobs.errors import UserError
from ..jobs.hardware import short_name
from ..jobs.run import Results
from ..pipelines.identity import weights_digest


@dataclass
class StudyReport:
    """What a study found."""

    rows: list[dict]  # its table
    settings: dict  # what the table depends on, as JSON holds it
    summary: list[str] = field(default_factory=list)  # lines to print
    shown: dict = field(default_factory=dict)  # what its figures show besides the rows


@dataclass
class Study:
    """The model and the images of a study, and how it measures.

    The recipe says what is read where blocks or timesteps are not given, and how classifiers are trained;
    cross-validations shorten it by [`Recipe.for_studies`].
    """

    pipe: Any  # a frozen DiffuseSegPipeline or BackbonePipeline; studies replace its head
    dataset: LabeledImages  # images to learn from
    folder: Path  # where results are kept, so that a study resumes
    recipe: str | Recipe = "default"
    blocks: Sequence[Block] | None = None  # what is studied; each study has a default of its own
    timesteps: Sequence[int] | None = None
    test: LabeledImages | None = None  # images to measure on, for the studies that do
    folds: int = 5  # of cross-validations
    draws: int = 5  # of labelled images, and of averaged noise
    counts: Sequence[int] = (1, 2, 5, 10, 20)  # numbers of labelled images
    num_clusters: int = 5
    num_images: int = 3  # images that are clustered
    seed: int = 0  # of noise, folds, draws, augmented views and classifiers
    batch_size: int | None = None  # images per forward pass
    cache_dir: str | os.PathLike | None = None  # see ActivationTable
    about: dict = field(default_factory=dict)  # what reports say of the data, for instance their names

    @property
    def classes(self) -> Classes:
        return Classes.of(self.dataset)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """What heads read: the blocks and timesteps that were given, or the recipe's own."""
        return recipe_extractor(self.pipe, self.recipe, self.blocks, self.timesteps, noise_seed=self.seed)

    @cached_property
    def all_features(self) -> FeatureExtractor:
        """The blocks that were given, or all, at the timesteps that were given, or at `STUDY_TIMESTEPS`."""
        return self.extractor.choose(
            self.blocks or ordered({*self.extractor.numbers, *self.extractor.blocks}),
            self.timesteps or self.extractor.default_timesteps(STUDY_TIMESTEPS),
        )

    @property
    def read(self) -> dict[str, Any]:
        """What heads read, as JSON holds it."""
        return {"blocks": list(self.extractor.blocks), "timesteps": list(self.extractor.timesteps)}

    @property
    def short_recipe(self) -> Recipe:
        """The recipe of the classifiers that are compared with each other."""
        return find_recipe(self.recipe).for_studies()

    @cached_property
    def settings(self) -> dict:
        """What the results of every study depend on."""
        components = self.pipe.components.items()
        weights = [c for name, c in components if isinstance(c, torch.nn.Module) and name != "segmentation_head"]
        return {
            "weights": weights_digest(*weights),
            "dtype": short_name(self.extractor.dtype),
            **({"clean": True} if self.extractor.clean else {}),
            **self.about,
            "images": images_fingerprint(self.dataset),
            "recipe": self.recipe if isinstance(self.recipe, str) else json.loads(json.dumps(asdict(self.recipe))),
            "seed": self.seed,
        }

    def results(self, name: str, settings: dict) -> Results:
        """Results of a study that are there already."""
        return Results(self.folder / f"{name}.jsonl", settings)

    def labels(self) -> torch.Tensor:
        """Labels of the images as heads see them, `[N, H, W]` uint8."""
        return torch.stack([labels for _, labels in labeled_examples(self.dataset, self.extractor)])

    def held_out(self) -> list[list[int]]:
        """The images that each fold holds out.

        Raises:
            UserError: There are fewer images than folds.
        """
        return folds_of(len(self.dataset), self.folds, self.seed)

    def say_missing_classes(self, labels: torch.Tensor) -> None:
        """Prints which classes the images of a fold do not show."""
        for what in missing_classes(labels, others(self.held_out()), self.classes):
            tqdm.write(what)

    def activations(self, extractor: FeatureExtractor) -> LabeledActivations:
        """What the shortened recipe learns from, with these features."""
        how: dict[str, Any] = dict(seed=self.seed, batch_size=self.batch_size, cache_dir=self.cache_dir)
        return LabeledActivations.extract(extractor, self.dataset, self.short_recipe, **how)

    def fit(self, dataset: LabeledImages, seed: int) -> None:
        """Fits a head as `diffuseseg fit` would, and gives it to the pipeline."""
        how: dict[str, Any] = dict(recipe=self.recipe, batch_size=self.batch_size, cache_dir=self.cache_dir)
        self.pipe.segmentation_head = fit_segmentation_head(self.pipe, dataset, **self.read, **how, seed=seed)

    def measure(self, dataset: LabeledImages) -> float:
        """Mean IoU (0 to 1) of the pipeline's head on images at their own size."""
        metrics, _ = evaluate_segmentation(self.pipe, dataset, self.batch_size, show_progress=False)
        if metrics["mean_iou"] is None:
            raise UserError("No pixel of the images to measure on has a label; give others.")
        return metrics["mean_iou"]

    def need_test(self) -> LabeledImages:
        """The images to measure on.

        Raises:
            UserError: None were given.
        """
        if self.test is None:
            raise UserError("This study measures on test images; give some (`--test_split`).")
        return self.test


def images_fingerprint(dataset: LabeledImages) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all images and masks.

    Raises:
        UserError: One of them cannot be read.
    """
    digest = hashlib.sha256()
    for row in (dataset[i] for i in range(len(dataset))):
        digest.update(row.image.tobytes())
        digest.update(row.mask.tobytes())
    return digest.hexdigest()[:16]
