# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether a trained denoiser is worth using: what its features are worth beside those of the models of the package."""

from collections.abc import Mapping
from typing import Any

from ..datasets.crops import LabeledTiles, pictures_of
from ..datasets.find_labeled import load_labeled_images
from ..datasets.unlabeled import evenly_spread
from ..heads.classes import Classes
from ..heads.cross_validation import Folds, LabeledActivations, cross_validated
from ..heads.fit import recipe_extractor
from ..jobs.errors import UserError
from ..pipelines.general import GENERAL, UNTRAINED, suited_recipe
from ..pipelines.loading import load_pipeline


OWN = "own"
MOST = 20  # labelled images that are looked at, and twice as many tiles
FOLDS = 5
SAME = 0.01  # of mean IoU, below which two models count as equal


def load_judges(config: Any) -> Any:
    """The labelled images of a configuration, some of many; `None` if it names none.

    Raises:
        UserError: They cannot be read, or there are fewer than two.
    """
    if config.labeled_dataset_name is None:
        return None
    where = config.labeled_dataset_config_name
    dataset = load_labeled_images(config.labeled_dataset_name, where, cache_dir=config.cache_dir)
    if len(dataset) < 2:
        raise UserError(f"Cross-validation needs two images at least, {config.labeled_dataset_name} has one.")
    return dataset.select(list(evenly_spread(len(dataset), MOST)))


def score_features(config: Any, dataset: Any) -> dict[str, float]:
    """Cross-validated mean IoU on labelled images of the features of a new denoiser, and of the models of the package.

    All read the images as the denoiser was trained: whole at its size, or in tiles of it. Models of the package are
    left out where it reads other channels than they do.

    Args:
        config (`TrainDDPMConfig`): Its `output_dir` has the denoiser.
        dataset ([`LabeledImages`]): Of [`load_judges`].

    Returns:
        `dict`: 0 to 1 by name: `own`, `general`, `untrained`; without those that cannot be measured, with a line.
    """
    pipe: Any = load_pipeline(config.output_dir, dtype="float32")
    size, models = pipe.features().size, {OWN: pipe}
    dataset.channels = pipe.channels
    if config.crop:
        dataset = LabeledTiles(dataset, size, config.scale, config.pixel_size, 2 * MOST, config.seed)
    if pipe.channels.config is None:
        models |= {name: load_pipeline(name, device=pipe.device, dtype="float32") for name in (GENERAL, UNTRAINED)}
    folds, found = Folds.of(pictures_of(dataset), FOLDS, 0).held_out, {}
    for name, model in models.items():
        try:
            recipe = suited_recipe("default", name).for_studies()  # as `best` reads them
            extractor = recipe_extractor(model, recipe, size=size)
            activations = LabeledActivations.extract(extractor, dataset, recipe, show_progress=False)
            chosen = (extractor.blocks, extractor.timesteps, Classes.of(dataset), folds, recipe)
            found[name] = float(cross_validated(activations, *chosen)["mean_iou"])
        except UserError as error:  # the training is over, and not to be lost
            print(f"warning: the model {name} is not measured on the labelled images: {error}")
    return found


def describe_scores(scores: Mapping[str, float]) -> str:
    """The verdict on a denoiser, in a sentence, from the scores of [`score_features`]."""
    said = ", ".join(f"{name} {100 * score:.1f}" for name, score in scores.items()) or "not measured"
    said = f"Cross-validated mean IoU of features on the labelled images: {said}"
    if not {OWN, GENERAL} <= scores.keys():
        return f"{said}."
    gain = scores[OWN] - scores[GENERAL]
    if abs(gain) < SAME:
        return f"{said}: as good as the general model, no better yet."
    return f"{said}: {'better' if gain > 0 else 'not better'} than the general model{'' if gain > 0 else ' yet'}."
