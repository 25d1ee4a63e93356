# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which features matter: the studies of Baranchuk et al. (ICLR 2022), sections 3 and 4, on anyone's labelled images.

Every activation is computed once, into an [`ActivationTable`] of all blocks and timesteps; a cell of a study trains
small classifiers on some of its columns. Classifiers of several folds, or of several draws of labelled images, are the
members of one ensemble and train side by side.
"""

from dataclasses import replace

import numpy as np
import PIL.Image

from ..data.image_processor import to_eight_bit
from ..data.labeled import LabeledImage, LabeledImages


class Corrupted(LabeledImages):
    """Labelled images, corrupted as in Hendrycks and Dietterich (ICLR 2019) by `imagecorruptions`.

    Args:
        dataset ([`LabeledImages`]): Clean images.
        corruption (`str`): One of [`corruption_names`].
        severity (`int`): 1 to 5.
    """

    def __init__(self, dataset: LabeledImages, corruption: str, severity: int):
        self.__dict__.update(dataset.__dict__)
        self.corruption, self.severity = corruption, severity

    def __getitem__(self, index: int) -> LabeledImage:
        from imagecorruptions import corrupt

        row = super().__getitem__(index)
        picture = to_eight_bit(row.image)
        state = np.random.get_state()
        np.random.seed(index)  # the library draws from numpy's global generator
        try:
            rgb = np.asarray(picture.convert("RGB"))
            pixels = corrupt(rgb, severity=self.severity, corruption_name=self.corruption)
        finally:
            np.random.set_state(state)
        return replace(row, image=PIL.Image.fromarray(pixels.astype(np.uint8)).convert(picture.mode))


def corruption_names() -> list[str]:
    """The fifteen common corruptions.

    Raises:
        ImportError: `imagecorruptions` is not installed, or a library that it needs.
    """
    from imagecorruptions import get_corruption_names

    return get_corruption_names("common")
