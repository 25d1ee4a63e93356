# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The classes that a head tells apart."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..datasets.labeled import LabeledImages
from ..images.image_processor import unnamed_classes


# Names of classes that change when an image is mirrored: "left eye", "l_brow".
SIDES = re.compile(r"(?i)(?<![a-z])(left|right|[lr])(?![a-z])")


@dataclass(frozen=True)
class Classes:
    """Class names, palette, ignore index.

    Args:
        number (`int`): Number of classes, ids 0 to `number - 1`.
        label_names (sequence of `str`, *optional*): Their names.
        ignore_index (`int`, defaults to 255): Id of pixels without a label.
        palette (sequence of `[red, green, blue]`, *optional*): Their colours, 0 to 255.
    """

    number: int
    label_names: Sequence[str] | None = None
    ignore_index: int = 255
    palette: Sequence[Sequence[int]] | None = None

    @classmethod
    def of(cls, dataset: LabeledImages) -> "Classes":
        """The classes of labelled images."""
        return cls(dataset.num_classes, dataset.label_names, dataset.ignore_index, dataset.palette)

    @property
    def names(self) -> list[str]:
        """Name of each class; "class 0", "class 1", … if there are none."""
        return list(self.label_names or unnamed_classes(self.number))

    @property
    def tell_sides(self) -> bool:
        """Whether a name tells left from right, so that images must not be mirrored."""
        return any(SIDES.search(name) for name in self.label_names or ())
