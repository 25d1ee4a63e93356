# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Activations of labelled images at native resolution, extracted once and reused by fits."""

import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from ..features.base import FeatureInfo
from ..jobs.errors import NotFiniteError, UserError
from .upsampling import bilinear


class ActivationTable:
    """Activations of all training images at their own resolutions, and the labels of their pixels.

    [`extract_activations`] fills it, `labels` may be replaced, and [`fit_head`] fits a head on it. There is one table
    of pixels × channels for each resolution, in half precision, so that a labelled pixel's features are the blend of
    four rows: the full-size feature map is never built.

    Args:
        info (sequence of [`FeatureInfo`]): What an image's activations are, in the order of concatenation.
        num_images (`int`): Number of images.
        size (two `int`): Height and width of the label maps.
        dtype (`torch.dtype`, defaults to `torch.float16`): `torch.bfloat16` where the U-Net runs in it.
        folder (path, *optional*): Where to keep the tables in memory-mapped files instead of in memory.
        device (`torch.device`, *optional*): Where to keep them otherwise, if they take no more than a third of the
            memory that is free there; in main memory if not given.

    Attributes:
        labels (`torch.Tensor`): `[num_images, H, W]` uint8 class ids.
    """

    def __init__(
        self,
        info: Sequence[FeatureInfo],
        num_images: int,
        size: tuple[int, int],
        dtype: torch.dtype = torch.float16,
        folder: str | os.PathLike | None = None,
        device: torch.device | None = None,
    ):
        self.size, self.folder = tuple(size), folder
        self.info = list(info)
        self.entries: dict[tuple[int, int], list[int]] = {}
        for i, f in enumerate(self.info):
            self.entries.setdefault((f.height, f.width), []).append(i)
        numbers = num_images * sum(f.channels * f.height * f.width for f in self.info)
        if folder is not None or device is None or not _fits(numbers * dtype.itemsize, device):
            device = torch.device("cpu")
        self.labels = torch.empty(num_images, *self.size, dtype=torch.uint8, device=device)  # [N,H,W]
        self.tables = {}
        for (h, w), entries in self.entries.items():
            shape = (num_images * h * w, sum(self.info[i].channels for i in entries))
            self.tables[h, w] = _allocate(shape, dtype, folder, device)  # [N*h*w,c]
        self.axes = {r: [_bilinear(m, n, dtype, device) for m, n in zip(r, self.size)] for r in self.tables}
        # Channels stand table after table here; this is where each comes from in the order of concatenation.
        starts = np.cumsum([0] + [f.channels for f in self.info])
        order = [np.arange(starts[i], starts[i + 1]) for e in self.entries.values() for i in e]
        self.channel_order = torch.from_numpy(np.concatenate(order))  # [D]
        self.mean = torch.zeros(len(self.channel_order))  # [D], as taken away by `standardize`
        self.scale = torch.ones(len(self.channel_order))  # [D]

    def put(self, image: int, activations: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
        """Stores activations of `n` images, `[n, channels, h, w]` each, and labels, `[n, H, W]`, from position `image`.

        Raises:
            NotFiniteError: An activation is beyond the range of half precision; names its block and timestep.
        """
        n, overflows = len(labels), []
        for (h, w), entries in self.entries.items():
            rows = self.tables[h, w].unflatten(0, (-1, h * w))[image : image + n]  # [n,h*w,c]
            for i, own in zip(entries, rows.split([self.info[i].channels for i in entries], dim=2)):
                own.copy_(activations[i].flatten(2).mT)
                overflows.append((i, own.isinf().any()))
        self.labels[image : image + n] = labels
        if torch.stack([overflow for _, overflow in overflows]).any():  # the device is waited for once
            f = self.info[next(i for i, overflow in overflows if overflow)]
            raise NotFiniteError(
                f"Activations of block {f.block} at timestep {f.timestep} are too large for half precision; load the "
                f"pipeline in bfloat16."
            )

    def append(self, other: "ActivationTable") -> None:
        """Adds the images of another table behind those of this one.

        Raises:
            UserError: The other table differs in activations, size or precision, or one of them is standardised.
        """
        if (other.info, other.size, other.dtype) != (self.info, self.size, self.dtype):
            raise UserError(
                "The activations of the two tables are not of the same blocks, timesteps, sizes and precision; extract "
                "both with the same extractor."
            )
        if self.standardized or other.standardized:
            raise UserError("A table that was standardised takes no more images; fit on a copy of it.")
        if self.folder is None and not _fits(sum(t.nbytes for t in other.tables.values()) * 2, self.device):
            self.to(torch.device("cpu"))  # there is no room for both and what they become
        for resolution, table in self.tables.items():
            more = other.tables[resolution].to(table.device)
            shape = (len(table) + len(more), table.shape[1])
            together = _allocate(shape, self.dtype, self.folder, table.device)
            together[: len(table)], together[len(table) :] = table, more
            self.tables[resolution] = together
        self.labels = torch.cat([self.labels, other.labels.to(self.labels.device)])

    @property
    def standardized(self) -> bool:
        """Whether the activations have been standardised."""
        return bool((self.mean != 0).any() or (self.scale != 1).any())

    def copy(self) -> "ActivationTable":
        """A table of the same activations, in memory, that may be changed."""
        return self.select(range(len(self.info)))

    def select(self, entries: Sequence[int]) -> "ActivationTable":
        """A table of some of the activations, positions in `info`, for the same images and labels; a copy."""
        height, width = self.size
        chosen = ActivationTable([self.info[i] for i in entries], len(self.labels), (height, width), self.dtype)
        for (h, w), own in chosen.entries.items():
            columns = torch.cat([self._columns(entries[i]) for i in own]).to(self.device)
            chosen.tables[h, w] = self.tables[h, w].index_select(1, columns)
        chosen.axes = {resolution: self.axes[resolution] for resolution in chosen.tables}
        chosen.labels = self.labels
        return chosen

    def image(self, image: int, entries: Sequence[int], device: torch.device | None = None) -> list[torch.Tensor]:
        """Some activations of an image, `[1, channels, h, w]`, on a device; in float32, if they are not in bfloat16."""
        activations = []
        for i in entries:
            h, w = self.info[i].height, self.info[i].width
            rows = self.tables[h, w][image * h * w : (image + 1) * h * w]  # [h*w,c]
            activation = rows[:, self._columns(i)].T.unflatten(1, (h, w))[None]
            activations.append(
                (activation if self.dtype == torch.bfloat16 else activation.float()).to(device or self.device)
            )
        return activations

    def _columns(self, entry: int) -> torch.Tensor:
        """Where an activation's channels stand in the table of its resolution."""
        f = self.info[entry]
        start = sum(self.info[i].channels for i in self.entries[f.height, f.width] if i < entry)
        return torch.arange(start, start + f.channels)

    def standardize(self) -> None:
        """Gives every channel zero mean and unit variance (or 0, if it is constant) over all images, in place."""
        start = 0
        for table in self.tables.values():
            # Small pieces stay in the cache; the first estimate of the mean keeps the sum of squares exact.
            pieces = table.split(2**12 if table.device.type == "cpu" else 2**18)
            origin = pieces[0].float().mean(0)
            total = torch.zeros(2, table.shape[1], dtype=torch.float64)
            for piece in pieces:
                centered = piece.float() - origin
                total += torch.stack([centered.sum(0), centered.square_().sum(0)]).cpu()
            offset, square = total / len(table)  # [c] each
            scale = (square - offset.square()).clamp(min=0).sqrt()
            # A channel that never varies teaches nothing; were it to vary later, its random weights must not count.
            scale[scale < 1e-6] = torch.inf
            mean, scale = origin + offset.to(origin), scale.to(origin)
            for piece in pieces:
                piece.copy_((piece.float() - mean) / scale)
            stop = start + table.shape[1]
            self.mean[start:stop], self.scale[start:stop] = mean.cpu(), scale.cpu()
            start = stop

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.tables.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.tables.values())).device

    def to(self, device: torch.device) -> "ActivationTable":
        """Moves everything to a device, in place, if it takes no more than a third of the memory that is free there."""
        if device != self.device and not _fits(sum(t.nbytes for t in self.tables.values()), device):
            return self
        self.tables = {k: t.to(device) for k, t in self.tables.items()}
        self.axes = {k: [(rows.to(device), weights.to(device)) for rows, weights in a] for k, a in self.axes.items()}
        self.labels = self.labels.to(device)
        return self

    def locate(self, pixels: torch.Tensor) -> list[list[tuple[torch.Tensor, torch.Tensor | None]]]:
        """Where the features of pixels come from: four rows of each table and their bilinear weights.

        Args:
            pixels (`torch.Tensor`): `[S, P]` int64, indices into the flattened label maps, for `S` steps.

        Returns:
            For each step, for each table: `([P, 4] int64, [P, 4])`, or `([P], None)` for a table at full size.
        """
        height, width = self.size
        image, y, x = pixels // (height * width), pixels // width % height, pixels % width  # [S,P]
        tables = []
        for h, w in self.tables:
            if (h, w) == (height, width):
                tables.append([(p, None) for p in pixels])
                continue
            (rows, row_weights), (columns, column_weights) = self.axes[h, w]
            at = (rows[y] * w).unsqueeze(3) + columns[x].unsqueeze(2) + (image * (h * w))[..., None, None]  # [S,P,2,2]
            weights = row_weights[y].unsqueeze(3) * column_weights[x].unsqueeze(2)  # [S,P,2,2]
            tables.append(list(zip(at.flatten(2), weights.flatten(2))))
        return [list(step) for step in zip(*tables)]

    def gather(self, located: Sequence[tuple[torch.Tensor, torch.Tensor | None]], out: torch.Tensor) -> torch.Tensor:
        """Writes the features of a step's pixels, as [`~ActivationTable.locate`] found them, to `out` `[P, D]`."""
        start = 0
        for table, (rows, weights) in zip(self.tables.values(), located):
            if weights is None:
                part = table.index_select(0, rows)
            else:  # a weighted sum of rows in one kernel
                part = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
            out[:, start : start + table.shape[1]] = part
            start += table.shape[1]
        return out


def _fits(nbytes: int, device: torch.device) -> bool:
    """Whether the bytes fit into a third of the free GPU memory, which leaves room for a copy and forward passes."""
    return device.type != "cuda" or nbytes <= torch.cuda.mem_get_info(device)[0] / 3


def _allocate(
    shape: tuple[int, int], dtype: torch.dtype, folder: str | os.PathLike | None, device: torch.device
) -> torch.Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype, device=device)
    os.makedirs(folder, exist_ok=True)
    # The file has no name once it is open, so it is gone with the process, however that ends.
    with tempfile.TemporaryFile(dir=os.fspath(folder)) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.int16, mode="w+", shape=shape)).view(dtype)


def _bilinear(source: int, target: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear interpolation along an axis: `[target, 2]` source positions and weights."""
    low, high, fraction = bilinear(source, target, slice(0, target), device)
    return torch.stack([low, high], 1), torch.stack([1 - fraction, fraction], 1).to(dtype)
