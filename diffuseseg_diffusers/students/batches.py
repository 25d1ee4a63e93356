# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Batches that students learn from: images with masks and with soft targets, mixed epoch by epoch.

Everything random is a function of seed, epoch and process, so that a run resumes after an epoch as if it had not
stopped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from ..datasets.augmentation import IGNORED
from ..datasets.labeled import LabeledImages
from ..datasets.unlabeled import tile_pixels, to_pixels
from ..jobs.errors import UserError
from ..jobs.seeds import mixed_seed
from .targets import SoftTargets, hard_targets


@dataclass(frozen=True)
class Mix:
    """Which images an epoch shows."""

    num_epochs: int = 20
    images_per_epoch: int = 1000  # over all processes
    real_fraction: float = 0.2  # share of the second dataset among the images with masks, if there is one
    unlabeled_fraction: float = 0.5  # share of the images with soft targets, if there are any
    labels_last: float = 0.0  # share of the epochs, the last, that show images with masks alone

    def shares(self, epoch: int, there: Sequence[bool]) -> list[float]:
        """Shares of the main dataset, of the second one and of the images with soft targets in an epoch, counted from
        0, of those that are `there`."""
        main, real, unlabeled = there
        if not (main or real):
            return [0.0, 0.0, 1.0]
        last = epoch >= round((1 - self.labels_last) * self.num_epochs)
        soft = self.unlabeled_fraction if unlabeled and not last else 0.0
        second = self.real_fraction * (1 - soft) if real else 0.0
        return [1 - soft - second, second, soft] if main or soft == 1 else [0.0, 1 - soft, soft]


class Pairs(Dataset):
    """Images `[in_channels, H, W]` uint8 and masks of several datasets, decoded when asked for.

    Masks are `[H, W]` int64 or, if `soft`, [`hard_targets`], to go with soft ones.
    """

    def __init__(
        self, datasets: Sequence[LabeledImages], size: tuple[int, int], in_channels: int = 3, soft: bool = False
    ):
        self.rows = [(d, i) for d in datasets for i in range(len(d))]
        self.size, self.in_channels, self.soft = size, in_channels, soft

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        dataset, i = self.rows[index]
        row = dataset[i]
        mask = torch.from_numpy(row.mask).long()
        mask[mask == dataset.ignore_index] = IGNORED
        mask = F.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")[0, 0].long()
        if isinstance(row.image, PIL.Image.Image):
            pixels = to_pixels(row.image.resize(self.size[::-1]), self.size, self.in_channels)
        elif dataset.tiling is not None:
            values = dataset.channels.encode(row.image.transpose(2, 0, 1), self.in_channels, row.name)
            pixels = tile_pixels(values, self.size)
        else:
            raise UserError(f"Students take pictures of 1 or 3 channels of eight bits, and {row.name} is none.")
        return pixels, hard_targets(mask) if self.soft else mask


class EpochBatches:
    """Batches without end, epoch after epoch, that processes share.

    Args:
        train, real ([`LabeledImages`], *optional*), unlabeled ([`SoftTargets`], *optional*): What is learned from.
        mix ([`Mix`]): Which images an epoch shows.
        size (two `int`), in_channels (`int`): Height, width and channels of the images.
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Of order, augmentation and dropout.
        num_workers (`int`, defaults to 0): Processes that decode ahead.

    Yields images `[N, C, H, W]` uint8, masks `[N, H, W]` int64 or, if `soft`, targets (see [`SoftTargets`]), and the
    generator of the epoch's augmented views. PyTorch's own generator is seeded at the start of an epoch, for dropout.
    """

    unreadable = 0  # such images end the run

    def __init__(
        self,
        train: LabeledImages | None,
        real: LabeledImages | None,
        unlabeled: SoftTargets | None,
        mix: Mix,
        size: tuple[int, int],
        in_channels: int,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
    ):
        self.mix, self.seed, self.batch_size, self.num_workers = mix, seed, batch_size, num_workers
        self.soft = unlabeled is not None
        labeled = [data for data in (train, real) if data is not None]
        self.images: Dataset = Pairs(labeled, size, in_channels, self.soft)
        if unlabeled is not None:
            self.images = ConcatDataset([self.images, unlabeled])
        self.sizes = [len(data) if data is not None else 0 for data in (train, real, unlabeled)]
        self.images_per_step = batch_size * PartialState().num_processes
        self.steps = max(1, mix.images_per_epoch // self.images_per_step)  # in an epoch
        self.position = 0  # images of all processes so far

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, counted from 0."""
        return self.position // (self.steps * self.images_per_step)

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Generator]]:
        for epoch in count(self.epoch):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch, PartialState().process_index))
            torch.manual_seed(generator.initial_seed())
            rows = self.rows(epoch).tolist()
            for images, masks in DataLoader(Subset(self.images, rows), self.batch_size, num_workers=self.num_workers):
                self.position += self.images_per_step
                yield images, masks, generator

    def rows(self, epoch: int) -> np.ndarray:
        """Indices of this process's images of an epoch, into all datasets one after the other."""
        state = PartialState()
        shares = self.mix.shares(epoch, [size > 0 for size in self.sizes])
        order = epoch_order(self.sizes, shares, self.steps * self.images_per_step, mixed_seed(self.seed, epoch))
        return order.reshape(self.steps, state.num_processes, -1)[:, state.process_index].ravel()


def epoch_order(sizes: Sequence[int], shares: Sequence[float], count: int, seed: int) -> np.ndarray:
    """Which images an epoch shows, as indices `[count]` into all datasets one after the other.

    A dataset is gone through as a whole before any of it comes again.

    Args:
        sizes (sequence of `int`), shares (sequence of `float`): Of each dataset, and of it in the epoch; the first that
            is not empty takes what the others leave, of those with a share if there are any.
        count (`int`): Images in an epoch.
        seed (`int`): Another one for every epoch.
    """
    rng = np.random.default_rng(seed)
    numbers = [round(share * count) if size else 0 for size, share in zip(sizes, shares)]
    there = [i for i, size in enumerate(sizes) if size]
    first = next((i for i in there if shares[i] > 0), there[0])
    numbers[first] = 0
    numbers[first] = count - sum(numbers)

    def draw(size: int, of: int) -> np.ndarray:
        whole = [rng.permutation(of) for _ in range(-(-size // of))] if size else []
        return np.concatenate(whole)[:size] if whole else np.empty(0, int)

    starts = np.cumsum([0, *sizes[:-1]])
    order = np.concatenate([start + draw(n, size) for start, n, size in zip(starts, numbers, sizes)])
    return rng.permutation(order).astype(int)
