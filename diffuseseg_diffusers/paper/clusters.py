# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""k-means of the pixels of a few images for a grid of blocks and timesteps (paper, section 3, figure 4)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..features.base import FeatureExtractor
from ..heads.cross_validation import entries_of
from ..heads.extraction import extract_activations
from ..jobs.errors import UserError
from ..jobs.install import missing_extra
from .study import Study, StudyReport


NAME = "clusters"


def check_clusters(study: Study) -> None:
    """Refuses to begin without scikit-learn, or with blocks or timesteps that do not exist."""
    try:
        import sklearn.cluster  # noqa: F401 (of the extra `analysis`, which choosing features does without)
    except ModuleNotFoundError as error:
        raise missing_extra("analysis", "scikit-learn") from error
    _ = _grid(study)


def clusters(study: Study) -> StudyReport:
    """Clusters of the pixels of the first images; neighbouring panels share names where clusters overlap most."""
    features = _grid(study)
    shown = study.dataset.select(range(min(study.num_images, len(study.dataset))))
    how: dict[str, Any] = dict(seed=study.seed, batch_size=study.batch_size, cache_dir=study.cache_dir)
    table = extract_activations(features, shown, **how)
    maps: dict[tuple, list[np.ndarray]] = {}
    with tqdm(total=len(features.blocks) * len(features.timesteps), desc="Clusters", unit="cell") as bar:
        for i, block in enumerate(features.blocks):
            for j, t in enumerate(features.timesteps):
                entry = entries_of(table, [block], [t])
                pixels = [table.image(n, entry)[0][0].cpu() for n in range(len(shown))]
                found = cluster_maps(pixels, study.num_clusters, study.seed)
                beside = (block, features.timesteps[j - 1]) if j else (features.blocks[i - 1], t) if i else None
                maps[block, t] = matched(found, maps[beside], study.num_clusters) if beside else found
                bar.update()
    settings = study.settings | {"num_clusters": study.num_clusters}
    rows = [{"block": b, "timestep": t, "num_clusters": study.num_clusters} for b, t in maps]
    return StudyReport(rows, settings, shown={"images": [shown[i].image for i in range(len(shown))], "maps": maps})


def _grid(study: Study) -> FeatureExtractor:
    """The blocks that heads read, at every other timestep of those that are studied."""
    steps = study.all_features.timesteps
    return study.extractor if study.timesteps else study.extractor.choose(timesteps=steps[1::2] or steps)


def cluster_maps(activations: Sequence[torch.Tensor], num_clusters: int = 5, seed: int = 0) -> list[np.ndarray]:
    """k-means clusters of the pixels of several images for one block and timestep (paper, figure 4).

    From activations `[channels, h, w]`, cluster ids `[h, w]` uint8 of each image; `seed` is of the initial centres.

    Raises:
        UserError: There are fewer pixels than clusters.
    """
    from sklearn.cluster import KMeans

    pixels = np.concatenate([a.flatten(1).T.float().cpu().numpy() for a in activations])  # [n*h*w,c]
    if len(pixels) < num_clusters:
        raise UserError(f"{num_clusters} clusters need as many pixels, but there are {len(pixels)}.")
    labels = KMeans(num_clusters, n_init=3, random_state=seed).fit_predict(pixels)
    height, width = activations[0].shape[1:]
    return list(labels.reshape(len(activations), height, width).astype(np.uint8))


def matched(maps: Sequence[np.ndarray], neighbours: Sequence[np.ndarray], num_clusters: int) -> list[np.ndarray]:
    """Renames clusters so that they overlap most with those of a neighbouring panel (Hungarian assignment).

    Cluster ids `[h, w]` are of the same images; resolutions may differ.
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
