# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Several models as one: the mean of their probabilities."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from typing import Any

import torch

from ..features.base import Generators
from ..heads.decisions import Decisions, winners
from ..jobs.errors import UserError
from .outputs import SegmentedBatch
from .segmenter import Segmenter


class AveragedSegmenter(Segmenter):
    """Segments with several models of the same classes, such as a head and a student that learned from it.

    Its uncertainty is the entropy of the mean probabilities in nats.

    Args:
        models (mapping): Name, for messages, to [`Segmenter`]. The first says colours, channels, tiles and the id of
            ignored pixels. If all have decisions, the means of what they expect decide.

    Raises:
        UserError: One of them has no head, or they differ in classes, or in the size or channels of their images.
    """

    def __init__(self, models: Mapping[str, Segmenter]):
        for one in models.values():
            one.check_can_segment()
        (first, model), *others = models.items()
        for name, other in others:
            for what, one, another in (
                ("the classes", model.label_names, other.label_names),
                ("images of", model.image_size, other.image_size),
                ("the number of channels", model.in_channels, other.in_channels),
                ("the channels", model.channels.config, other.channels.config),
            ):
                if one != another:
                    raise UserError(f"{name} has {what} {another}, but {first} has {one}; they have to be the same.")
        self.first, self.names, self.models = model, list(models), list(models.values())
        every = [model.decisions for model in self.models]
        if not any(decisions is None for decisions in every):
            iou, union = (torch.tensor([getattr(d, name) for d in every]).mean(0) for name in ("iou", "union"))
            self.decisions = Decisions(tuple(iou.tolist()), tuple(union.tolist()))

    image_size = property(attrgetter("first.image_size"))
    in_channels = property(attrgetter("first.in_channels"))
    label_names = property(attrgetter("first.label_names"))
    palette = property(attrgetter("first.palette"))
    ignore_index = property(attrgetter("first.ignore_index"))
    channels = property(attrgetter("first.channels"))
    fitted_tiles = property(attrgetter("first.fitted_tiles"))

    @property
    def nbytes(self) -> int:
        return sum(model.nbytes for model in self.models)

    def identity(self) -> dict[str, str]:
        parts = [(i, model.identity()) for i, model in enumerate(self.models)]
        return {f"{i}.{name}": value for i, own in parts for name, value in own.items()}

    def check_can_segment(self) -> None:
        for model in self.models:
            model.check_can_segment()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        with ExitStack() as models:
            for model in self.models:
                models.enter_context(model.prepared())
            yield

    def check_class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        return [model.check_class_labels(class_labels, batch_size) for model in self.models][0]

    def segment_batch(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        class_labels: torch.Tensor | None = None,
        generator: Generators = None,
        return_probabilities: bool = False,
    ) -> SegmentedBatch:
        given = (pixels, sizes, class_labels, generator, True)
        found: list[Any] = [model.segment_batch(*given).probabilities for model in self.models]
        own = zip(*found, strict=True)  # [C,H,W] of each model, image by image
        means = [torch.stack([p.float().cpu() for p in parts]).mean(0) for parts in own]
        return SegmentedBatch(
            [winners(p, self.decisions, 0).to(torch.uint8) for p in means],
            [-torch.xlogy(p, p).sum(0).clamp(max=0) for p in means],
            means if return_probabilities else None,
        )
