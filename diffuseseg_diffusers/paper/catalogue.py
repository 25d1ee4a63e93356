# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The table of studies: a new one is a file of its own and a line here."""

from collections.abc import Callable
from dataclasses import dataclass

from . import blocks_timesteps, clusters, corruptions, labels, noise
from .study import Study, StudyReport


@dataclass(frozen=True)
class StudyKind:
    """A study that can be asked for."""

    run: Callable[[Study], StudyReport]
    check: Callable[[Study], None]  # raises UserError if it cannot be run, before anything is written
    needs_test: bool = False  # whether it measures on test images


STUDIES = {
    blocks_timesteps.NAME: StudyKind(blocks_timesteps.blocks_timesteps, blocks_timesteps.check_blocks_timesteps),
    clusters.NAME: StudyKind(clusters.clusters, clusters.check_clusters),
    noise.NAME: StudyKind(noise.noise, noise.check_noise),
    labels.NAME: StudyKind(labels.labels, labels.check_labels, needs_test=True),
    corruptions.NAME: StudyKind(corruptions.corruptions, corruptions.check_corruptions, needs_test=True),
}
