# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which features matter: the studies of Baranchuk et al. (ICLR 2022), sections 3 and 4, on anyone's labelled images.

Every activation is computed once, into an [`ActivationTable`] of all blocks and timesteps; a cell of a study trains
small classifiers on some of its columns. Classifiers of several folds, or of several draws of labelled images, are the
members of one ensemble and train side by side.
"""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch

from ..runs.errors import UserError


def cluster_maps(activations: Sequence[torch.Tensor], num_clusters: int = 5, seed: int = 0) -> list[np.ndarray]:
    """k-means clusters of the pixels of several images for one block and timestep (paper, figure 4).

    Args:
        activations (sequence of `torch.Tensor`): `[channels, h, w]` of each image.
        num_clusters (`int`, defaults to 5): k.
        seed (`int`): Of the initial centres.

    Returns:
        `list[np.ndarray]`: `[h, w]` uint8 of each image, cluster ids.

    Raises:
        UserError: There are fewer pixels than clusters.
    """
    from sklearn.cluster import KMeans  # of the extra `analysis`, which choosing features does without

    pixels = np.concatenate([a.flatten(1).T.float().cpu().numpy() for a in activations])  # [n*h*w,c]
    if len(pixels) < num_clusters:
        raise UserError(f"{num_clusters} clusters need as many pixels, but there are {len(pixels)}.")
    labels = KMeans(num_clusters, n_init=3, random_state=seed).fit_predict(pixels)
    height, width = activations[0].shape[1:]
    return list(labels.reshape(len(activations), height, width).astype(np.uint8))


def matched(maps: Sequence[np.ndarray], neighbours: Sequence[np.ndarray], num_clusters: int) -> list[np.ndarray]:
    """Renames clusters so that they overlap most with those of a neighbouring panel (Hungarian assignment).

    Args:
        maps (sequence of `np.ndarray`), neighbours (sequence of `np.ndarray`):
            Cluster ids of the same images, `[h, w]`; resolutions may differ.
        num_clusters (`int`): Of both.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = np.zeros((num_clusters, num_clusters), dtype=np.int64)
    for a, b in zip(maps, neighbours):
        size = tuple(max(x, y) for x, y in zip(a.shape, b.shape))
        np.add.at(overlap, (resized(a, size), resized(b, size)), 1)
    mine, theirs = linear_sum_assignment(-overlap)
    names = np.empty(num_clusters, np.uint8)
    names[mine] = theirs
    return [names[a] for a in maps]


def resized(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour, `[h, w]` to `size`."""
    return np.asarray(PIL.Image.fromarray(ids).resize(size[::-1], PIL.Image.Resampling.NEAREST))
