# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Ways to segment, each cross-validated on the pieces of the labelled pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..datasets.augmentation import IGNORED
from ..datasets.labeled import LabeledImages
from ..heads.classes import Classes
from ..heads.cross_validation import Folds, LabeledActivations, entries_of, fit_groups, others
from ..heads.extraction import extract_activations, resize_mask
from ..heads.fit import recipe_extractor
from ..heads.recipes import Recipe
from ..images.image_processor import DiffuseSegImageProcessor
from ..students.tuned import tune_unet
from ..students.unets import UNetStudent
from .pieces import View


KINDS = ("activations", "filters", "both")  # what heads read
UNET = "U-Net"
PIXELS = 16 * 256**2  # of the labelled pieces and their augmented views together, that heads learn from
CROP, CROPS = 64, 16  # side in pixels, and number, of the crops of tiles in a step of a network's training
MEMBERS = 2  # of a head that is cross-validated


@dataclass
class Candidate:
    """A way to segment and what it says of every piece when that is held out.

    Args:
        view ([`View`]): How large it sees the pieces.
        kind (`str`): What a head reads, of `KINDS`, or `UNET`.
        probabilities (list of `torch.Tensor`): `[C, H, W]` float16 of each piece, at the piece's own size.
        seconds (`float`): That its cross-validation took.
        steps (`int`): Of a U-Net's training for a fold, at least, of which a faster machine does more in the same time.
    """

    view: View
    kind: str
    probabilities: list[torch.Tensor]
    seconds: float
    steps: int = 0

    @property
    def name(self) -> str:
        """Such as `activations, scale 0.5, timesteps 200`."""
        if self.kind == UNET:
            return self.kind
        return f"{self.kind}, scale {self.view.scale:g}, timesteps {' '.join(map(str, self.view.timesteps))}"


class Labelled:
    """Pieces of labelled pictures, and what every candidate needs of them.

    Args:
        dataset ([`LabeledImages`]): The pieces that heads learn from.
        every ([`LabeledImages`]): All pieces.
        piece (two `int`): Their height and width in pixels of the picture.
        folds ([`Folds`]): What is held out when.
        recipe ([`Recipe`]): How heads are trained.
        flip (`bool`): Whether left and right may be exchanged.
        seed (`int`), batch_size (`int`, *optional*): Of everything.
    """

    def __init__(
        self,
        dataset: LabeledImages,
        every: LabeledImages,
        piece: tuple[int, int],
        folds: Folds,
        recipe: Recipe,
        flip: bool,
        seed: int,
        batch_size: int | None,
        min_label_fraction: float,
    ):
        self.dataset, self.every, self.piece, self.folds, self.flip = dataset, every, piece, folds, flip
        self.seed, self.batch_size, self.min_label_fraction = seed, batch_size, min_label_fraction
        self.classes = Classes.of(dataset)
        self.recipe = recipe
        self.masks = [resize_mask(dataset[i].mask, piece) for i in range(len(dataset))]  # [H,W] each

    def activations(self, pipe: Any, view: View, sigmas: Sequence[float]) -> tuple[Any, LabeledActivations]:
        """The extractor of a view, and the activations and filters of all pieces and their augmented views."""
        reading: dict[str, Any] = dict(noise_seed=self.seed, size=view.size)
        recipe = replace(self.recipe, timesteps=view.timesteps)
        extractor = recipe_extractor(pipe, recipe, **reading).choose(filters=sigmas or None)
        views = self.recipe.num_views(len(self.dataset))
        how = (self.min_label_fraction, self.seed, self.batch_size, None, True, views, self.flip)
        # Held-out pieces are judged without their mirror images, which would take as long again.
        table = extract_activations(extractor, self.dataset, *how).to(extractor.device)
        given = (table, views, None, extractor.device, extractor.in_channels, extractor.filters)
        return extractor, LabeledActivations(*given)

    def cross_validate(
        self, extractor: Any, activations: LabeledActivations, kinds: Sequence[str], recipe: Recipe
    ) -> dict[str, list[torch.Tensor]]:
        """Held-out probabilities `[C, H, W]` float16 of every piece, by heads of each kind."""
        chosen = (extractor.blocks, extractor.timesteps, self.classes, others(self.folds.held_out), recipe)
        found: dict[str, list[torch.Tensor]] = {}
        for kind in kinds:
            heads = fit_groups(activations, *chosen, MEMBERS, self.seed, inputs=(kind,))
            pieces: list[Any] = [None] * len(self.dataset)
            for head, own in zip(heads, self.folds.held_out):
                for i in own:
                    pieces[i] = head_probabilities(head, activations, i, self.piece)
            found[kind] = pieces
        return found

    def pictures(self, channels: int) -> list[torch.Tensor]:
        """The pieces themselves, `[channels, H, W]` float32 in [0, 1] each."""
        return [x / 2 + 0.5 for x in pixels_and_masks(self.dataset, channels, self.piece)[0]]


def pixels_and_masks(
    pieces: LabeledImages, channels: int, size: tuple[int, int], only: Sequence[int] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All or some pieces `[N, C, H, W]` float32 in [-1, 1] and masks `[N, H, W]` int64 with `IGNORED`."""
    processor = DiffuseSegImageProcessor(channels, pieces.channels)
    rows = [pieces[i] for i in (range(len(pieces)) if only is None else only)]
    masks = torch.stack([torch.from_numpy(resize_mask(row.mask, size)).long() for row in rows])
    masks[masks == pieces.ignore_index] = IGNORED
    return processor.preprocess(processor.load([row.image for row in rows]), *size), masks


def head_probabilities(head: Any, activations: LabeledActivations, image: int, size: tuple[int, int]) -> torch.Tensor:
    """Probabilities `[C, H, W]` float16 of an image of a table, by a head that reads some of it."""
    reads = head.config.blocks, head.config.timesteps, bool(head.config.filters)
    entries = entries_of(activations.table, *reads)
    straight = activations.table.image(activations.rows([image])[0], entries, head.device)
    return head.predict(straight, size, True).probabilities[0].half().cpu()


def crops_of(size: tuple[int, int], tiled: bool) -> tuple[tuple[int, int], int]:
    """Height and width of the crops of pieces of a size that a network is trained on, and how many are in a step.

    Of whole pictures they have half of the sides at least: what decides about a pixel may be far away.
    """
    height, width = (min(side, CROP if tiled else max(CROP, side // 2)) for side in size)
    return (height, width), min(CROPS, max(2, round(CROPS * CROP**2 / (height * width))))


def trained(
    labelled: Labelled, student: UNetStudent, only: Sequence[int] | None, seconds: float
) -> tuple[UNetStudent, int]:
    """A U-Net that has been trained further on crops of some of all pieces, or of all; and its steps."""
    size = student.image_size
    pixels, masks = pixels_and_masks(labelled.every, student.in_channels, size, only)
    student.image_size, number = crops_of(size, labelled.dataset.tiling is not None)
    shares: list[float] = []  # of the time, after each step
    how: dict[str, Any] = dict(seconds=seconds, seed=labelled.seed, flip=labelled.flip, batch_size=number)
    tune_unet(student, pixels, masks, **how, on_step=lambda share, _: shares.append(share))
    student.image_size = size
    return student, len(shares)


def unet_probabilities(student: UNetStudent, labelled: Labelled, images: Sequence[int]) -> list[torch.Tensor]:
    """Probabilities `[C, H, W]` float16 of pieces that heads learn from, by a network that reads them at its size."""
    pixels, _ = pixels_and_masks(labelled.dataset, student.in_channels, student.image_size, images)
    found = (student.segment_batch(one[None], [labelled.piece], return_probabilities=True) for one in pixels)
    return [batch.probabilities[0].half() for batch in found]
