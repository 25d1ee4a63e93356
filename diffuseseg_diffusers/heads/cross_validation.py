# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Cross-validation on labelled images whose activations were extracted once.

Classifiers of several folds, or of several draws of labelled images, are the members of one ensemble and train side by
side, by the recipe that a head will be fitted with: its augmented views, class weights, votes and mirror images.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import evaluate
import numpy as np
import torch

from ..datasets.labeled import LabeledImages
from ..features.base import FILTERS, Block, FeatureExtractor, ordered
from ..jobs.errors import UserError
from ..metrics import MEAN_IOU
from .classes import Classes
from .ensemble import PixelClassifierEnsemble, PixelClassifierOutput
from .extraction import extract_activations
from .inputs import inputs_config
from .optimize import fit_members
from .recipes import Recipe
from .table import ActivationTable


WITHIN = "There are fewer than three pictures: parts are compared with others of the same, which flatters."


@dataclass
class LabeledActivations:
    """Activations of labelled images, of their augmented views and, if heads are to see those, of their mirror images.

    Args:
        table ([`ActivationTable`]): Of each image, followed by its augmented views.
        views (`int`): Augmented views of an image.
        mirrored ([`ActivationTable`], *optional*): Of the mirror image of each image.
        device (`torch.device`): Where heads are trained and used; the tables are there too, if there is room for them.
        in_channels (`int`), filters (`tuple[float]`, *optional*): Of the extractor.
    """

    table: ActivationTable
    views: int = 0
    mirrored: ActivationTable | None = None
    device: torch.device = torch.device("cpu")
    in_channels: int = 3
    filters: tuple[float, ...] | None = None

    @classmethod
    def extract(
        cls,
        extractor: FeatureExtractor,
        dataset: LabeledImages,
        recipe: Recipe,
        seed: int = 0,
        batch_size: int | None = None,
        cache_dir: str | os.PathLike | None = None,
        show_progress: bool = True,
        flip: bool | None = None,
    ) -> "LabeledActivations":
        """Extracts what a recipe learns from, and what its heads see in use.

        Args:
            extractor, dataset, seed, batch_size, cache_dir, show_progress: As in [`extract_activations`].
            recipe ([`Recipe`]): Says how many augmented views there are, and whether mirror images count.
            flip (`bool`, *optional*): As in [`fit_segmentation_head`].
        """
        flip = (recipe.flip and not Classes.of(dataset).tell_sides) if flip is None else flip
        views = recipe.num_views(len(dataset))
        reading = (extractor, dataset, 0.0, seed, batch_size, cache_dir, show_progress)
        table = extract_activations(*reading, augmented_views=views, flip=flip).to(extractor.device)
        mirror = flip and recipe.mirror
        mirrored = extract_activations(*reading, mirror=True).to(extractor.device) if mirror else None
        return cls(table, views, mirrored, extractor.device, extractor.in_channels, extractor.filters)

    def __len__(self) -> int:
        return len(self.table.labels) // (1 + self.views)

    @property
    def labels(self) -> torch.Tensor:
        """`[N, H, W]` uint8 of the images themselves, without their augmented views."""
        return self.table.labels[:: 1 + self.views]

    def rows(self, images: Sequence[int]) -> list[int]:
        """Where images and their augmented views stand in the table."""
        return [i * (1 + self.views) + view for i in images for view in range(1 + self.views)]


def folds_of(num_images: int, num_folds: int, seed: int = 0) -> list[list[int]]:
    """The images that each fold of a cross-validation holds out, of sizes that differ by one at most.

    Raises [`UserError`] for fewer images than folds, or fewer than two folds.
    """
    if not 2 <= num_folds <= num_images:
        raise UserError(
            f"Cross-validation needs 2 folds at least and an image for each, got {num_folds} folds for {num_images} "
            f"images; lower --folds or label more."
        )
    shuffled = np.random.default_rng(seed).permutation(num_images)
    return [sorted(part.tolist()) for part in np.array_split(shuffled, num_folds)]


@dataclass
class Folds:
    """Which pieces each fold holds out.

    Args:
        held_out (list of list of `int`): Pieces of each fold.
        within (`bool`): Whether pieces of one picture are in several folds, as there are too few pictures.
    """

    held_out: list[list[int]]
    within: bool

    @classmethod
    def of(cls, pictures: np.ndarray, number: int, seed: int) -> "Folds":
        """Folds of whole pictures, or of their pieces where there are fewer than three; `pictures` `[pieces]`.

        Raises [`UserError`] for a single piece.
        """
        names = np.unique(pictures)
        within = len(names) < min(3, len(pictures))
        units = np.arange(len(pictures)) if within else np.searchsorted(names, pictures)
        parts = folds_of(int(units.max()) + 1, min(number, int(units.max()) + 1), seed)
        return cls([np.flatnonzero(np.isin(units, part)).tolist() for part in parts], within)


def others(folds: Sequence[Sequence[int]]) -> list[list[int]]:
    """The images that each fold trains on: those of all other folds."""
    return [[i for other in folds if other is not fold for i in other] for fold in folds]


def missing_classes(labels: torch.Tensor, images: Sequence[Sequence[int]], classes: Classes) -> list[str]:
    """Says, a sentence each, which classes the images of a fold do not show; a classifier cannot learn those."""
    said = []
    for number, own in enumerate(images):
        present = set(labels[list(own)].unique().tolist())
        missing = [classes.names[c] for c in range(classes.number) if c not in present]
        if missing:
            said.append(
                f"Mind that fold {number + 1} of {len(images)} has no training pixel of {', '.join(missing)}: "
                f"counted as not found there."
            )
    return said


def entries_of(
    table: ActivationTable, blocks: Sequence[Block], timesteps: Sequence[int], filters: bool = False
) -> list[int]:
    """Positions in `table.info` of blocks × timesteps, and of filters, in the order in which a head takes them."""
    position = {(f.timestep, f.block): i for i, f in enumerate(table.info)}
    wanted = [(t, b) for t in timesteps for b in ordered(blocks)] + [(0, FILTERS)] * filters
    return [position[one] for one in wanted]


def fit_groups(
    activations: LabeledActivations,
    blocks: Sequence[Block],
    timesteps: Sequence[int],
    classes: Classes,
    images: Sequence[Sequence[int]],
    recipe: Recipe,
    num_members: int = 1,
    seed: int = 0,
    inputs: Sequence[str] | None = None,
) -> list[PixelClassifierEnsemble]:
    """Heads on some of the activations of a table, which stays as it is, all trained at once.

    Args:
        activations ([`LabeledActivations`]), blocks, timesteps: What the heads read.
        classes ([`Classes`]): What they tell apart.
        images (sequence of sequences of `int`): What each head learns from, with its augmented views.
        recipe ([`Recipe`]): How they are trained. If it standardises, then by all images of the table, held out or not.
        num_members (`int`, defaults to 1): Members of each.
        seed (`int`): Of weights and order.
        inputs (sequence of `str`, *optional*): What the members of each head read, see [`member_kinds`]; the recipe's
            if not given. Needs a table with filters, unless it is `("activations",)`.
    """
    blocks, table, inputs = ordered(blocks), activations.table, inputs or recipe.inputs
    channels = [table.info[i].channels for i in entries_of(table, blocks, timesteps[:1])]
    given = inputs_config(inputs, num_members, channels, blocks, timesteps, activations.filters)
    entries = entries_of(table, given["blocks"], given["timesteps"], given["filters"] is not None)
    chosen = table.select(entries).to(activations.device)
    config = dict(
        num_classes=classes.number,
        in_channels=activations.in_channels,
        image_size=list(chosen.size),
        ignore_index=classes.ignore_index,
        flip=activations.mirrored is not None,
        voting=recipe.voting,
    )
    every = {**given, "member_inputs": (given["member_inputs"] or []) * len(images) or None}
    together = PixelClassifierEnsemble(num_members=len(images) * num_members, **config, **every)
    shares = [activations.rows(own) for own in images for _ in range(num_members)]
    fit_members(together, chosen, recipe, seed, device=activations.device, show_progress=False, images=shares)
    heads = []
    for group in range(len(images)):
        head = PixelClassifierEnsemble(num_members=num_members, **config, **given)
        own = slice(group * num_members, (group + 1) * num_members)
        head.load_state_dict({name: tensor[own] for name, tensor in together.state_dict().items()})
        heads.append(head.to(activations.device).eval())
    return heads


def score(
    heads: Sequence[PixelClassifierEnsemble],
    activations: LabeledActivations,
    images: Sequence[Sequence[int]],
    classes: Classes,
) -> dict:
    """Mean IoU over all images together, each segmented by the head of its group.

    Returns:
        `dict`: `mean_iou` (0 to 1) and `per_class_iou` (list of 0 to 1, or `None` for an absent class).
    """
    metric = evaluate.load(MEAN_IOU)
    for found, labels in _held_out(heads, activations, images):
        metric.add(prediction=found.labels[0].cpu().numpy(), reference=labels.cpu().numpy())
    result = metric.compute(num_labels=classes.number, ignore_index=classes.ignore_index)
    return {
        "mean_iou": result["mean_iou"],
        "per_class_iou": [None if np.isnan(x) else float(x) for x in result["per_category_iou"]],
    }


def held_out_probabilities(
    heads: Sequence[PixelClassifierEnsemble], activations: LabeledActivations, images: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class probabilities `[C, P]` float32 and ids `[P]` uint8 of all labelled pixels, by the head of their group."""
    probabilities, ids = [], []
    for found, labels in _held_out(heads, activations, images, return_probabilities=True):
        known = labels != heads[0].config.ignore_index
        probabilities.append(found.probabilities[0].cpu()[:, known.cpu()])
        ids.append(labels[known].cpu())
    return torch.cat(probabilities, 1), torch.cat(ids)


def _held_out(
    heads: Sequence[PixelClassifierEnsemble],
    activations: LabeledActivations,
    images: Sequence[Sequence[int]],
    return_probabilities: bool = False,
) -> Iterator[tuple[PixelClassifierOutput, torch.Tensor]]:
    """What the head of each group says of its images, one after the other, and their labels `[H, W]`."""
    for head, own in zip(heads, images):
        reads = head.config.blocks, head.config.timesteps, bool(head.config.filters)
        chosen = entries_of(activations.table, *reads)
        for image in own:
            row = activations.rows([image])[0]
            straight = activations.table.image(row, chosen, head.device)
            mirrored = activations.mirrored.image(image, chosen, head.device) if head.config.flip else None
            found = head.predict(straight, return_probabilities=return_probabilities, mirrored=mirrored)
            yield found, activations.table.labels[row]


def cross_validated(
    activations: LabeledActivations,
    blocks: Sequence[Block],
    timesteps: Sequence[int],
    classes: Classes,
    folds: Sequence[Sequence[int]],
    recipe: Recipe,
    seed: int = 0,
    num_members: int = 1,
    inputs: Sequence[str] | None = None,
) -> dict:
    """Mean IoU of a classifier or head a fold on the images that the fold holds out; as [`score`] returns it.

    The arguments are those of [`fit_groups`].
    """
    heads = fit_groups(activations, blocks, timesteps, classes, others(folds), recipe, num_members, seed, inputs)
    return score(heads, activations, folds, classes)
