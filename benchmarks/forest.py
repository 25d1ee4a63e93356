# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A random forest on ilastik's filters: what people use who label a few strokes and train nothing.

100 trees grown to pure leaves, as in ilastik's pixel classification (Berg et al. 2019), on all its filters at its
scales but 0.3, for each channel. Filters are SciPy's, written apart from the package's own.
"""

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter
from sklearn.ensemble import RandomForestClassifier

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.images.image_processor import to_eight_bit


SIGMAS = (0.7, 1.0, 1.6, 3.5, 5.0, 10.0)
TREES = 100
PIXELS = 100_000  # labelled pixels at most, chosen by chance


def filters(plane: np.ndarray) -> np.ndarray:
    """Of a plane `[H, W]`, at each scale: Gaussian, Laplacian, gradient magnitude, difference of Gaussians, and the two
    eigenvalues of Hessian and structure tensor; `[H, W, 48]` float32.

    Derivatives are differences of the smoothed plane (Lindeberg 1993): sampled derivatives of a Gaussian do not add up
    to zero at small scales."""
    found = []
    for sigma in SIGMAS:
        smooth = gaussian_filter(plane, sigma)
        dy, dx = (correlate1d(smooth, [-0.5, 0, 0.5], axis) for axis in (0, 1))
        hessian = [correlate1d(smooth, [1, -2, 1], 0), correlate1d(dx, [-0.5, 0, 0.5], 0)]
        hessian += [correlate1d(smooth, [1, -2, 1], 1)]
        tensor = [gaussian_filter(product, sigma / 2) for product in (dy * dy, dy * dx, dx * dx)]
        found += [smooth, hessian[0] + hessian[2], np.hypot(dy, dx), smooth - gaussian_filter(plane, 0.66 * sigma)]
        found += [*eigenvalues(*hessian), *eigenvalues(*tensor)]
    return np.stack(found, axis=-1)


def eigenvalues(yy: np.ndarray, xy: np.ndarray, xx: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of symmetric matrices [[yy, xy], [xy, xx]], the larger first."""
    middle, reach = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
    return middle + reach, middle - reach


class Forest:
    """Fitted on labelled images; `segment` gives the mask of another.

    Args:
        dataset ([`LabeledImages`]): Images and masks of any size.
        seed (`int`): Of the choice of pixels, and of the trees.
    """

    def __init__(self, dataset: LabeledImages, seed: int):
        rows, rng = [dataset[i] for i in range(len(dataset))], np.random.default_rng(seed)
        self.mode = "L" if to_eight_bit(rows[0].image).mode == "L" else "RGB"
        labels = np.concatenate([row.mask.ravel() for row in rows])
        chosen = rng.permutation(np.flatnonzero(labels != dataset.ignore_index))[:PIXELS]
        features, taken, start = [], [], 0
        for row in rows:
            own = chosen[(chosen >= start) & (chosen < start + row.mask.size)] - start
            features.append(self.features(row.image)[own])
            taken.append(row.mask.ravel()[own])
            start += row.mask.size
        self.trees = RandomForestClassifier(TREES, n_jobs=1, random_state=seed)
        self.trees.fit(np.concatenate(features), np.concatenate(taken))

    def features(self, image) -> np.ndarray:
        """`[H * W, 48 * channels]` float32."""
        pixels = np.asarray(to_eight_bit(image).convert(self.mode), np.float32) / 255
        planes = np.moveaxis(pixels.reshape(*pixels.shape[:2], -1), -1, 0)  # [C,H,W]
        return np.concatenate([filters(plane) for plane in planes], axis=-1).reshape(planes[0].size, -1)

    def segment(self, image) -> np.ndarray:
        """`[H, W]` uint8."""
        return self.trees.predict(self.features(image)).astype(np.uint8).reshape(image.height, image.width)
