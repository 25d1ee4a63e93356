# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Features of pictures for the live head: reduced to few dimensions, extracted once, kept on disk.

All taps of a recipe are standardised, upsampled to the grid of the finest one and projected onto their principal
components. Projection and upsampling commute, so the full features are never built.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..features.base import FeatureExtractor
from ..jobs.errors import UserError
from ..jobs.files import atomic_file


DIMENSIONS = 64
BASIS_IMAGES = 16  # pictures that the principal components are taken of
BASIS_PIXELS = 256  # of each
PLACES_SIDE = 64  # pixels of the grid of places that may be suggested, at most
BASIS = "basis.safetensors"  # of all pictures together
SMALL_SIDE = 32  # pixels of the small masks in the list of pictures, at most
PROBES = 128  # pixels of a picture, and places in it, that stand for it


@dataclass
class Basis:
    """A linear projection of activations to features."""

    projection: torch.Tensor  # [D,DIMENSIONS] float32, for raw activations in the order of concatenation
    offset: torch.Tensor  # [DIMENSIONS], to be added
    grid: tuple[int, int]  # height and width of the features

    @classmethod
    def of(cls, activations: Sequence[Sequence[torch.Tensor]]) -> "Basis":
        """The principal components of pictures, from the activations `[1, channels, h, w]` of each."""
        grid = max((a.shape[-2], a.shape[-1]) for a in activations[0])
        generator = torch.Generator().manual_seed(0)
        rows = []
        for picture in activations:
            at = torch.rand(1, BASIS_PIXELS, 1, 2, generator=generator) * 2 - 1
            own = [sample(a.float().cpu(), at) for a in picture]  # [1,c,P,1] each
            rows.append(torch.cat(own, 1)[0, :, :, 0].T)
        x = torch.cat(rows)  # [P,D]
        mean, scale = x.mean(0), x.std(0)
        scale[scale < 1e-6] = torch.inf
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            dimensions = min(DIMENSIONS, *x.shape)
            _, _, components = torch.pca_lowrank((x - mean) / scale, dimensions, center=False, niter=4)
        projection = F.pad(components / scale[:, None], (0, DIMENSIONS - dimensions))
        return cls(projection, -(mean @ projection), grid)

    def reduce(self, activations: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features of a batch: `[N, channels, h, w]` each to `[N, DIMENSIONS, H, W]` float16."""
        weights = self.projection.split([a.shape[1] for a in activations])
        total = self.offset[None, :, None, None]
        for activation, weight in zip(activations, weights):
            own = torch.einsum("nchw,cd->ndhw", activation.float().cpu(), weight)
            total = total + F.interpolate(own, self.grid, mode="bilinear", align_corners=False)
        return total.half()


@dataclass
class PictureFeatures:
    """Features of a picture, float16; `D` is `DIMENSIONS`."""

    grid: torch.Tensor | None  # [D,h,w]; None where it is left on disk
    small: torch.Tensor  # [D,h',w'], the same at 32 pixels a side at most
    pixels: torch.Tensor  # [PROBES,D], of random pixels
    probes: torch.Tensor  # [PROBES,D], of random places, see `places`

    @classmethod
    def of(cls, grid: torch.Tensor) -> "PictureFeatures":
        """From the features `[D, h, w]` of a picture."""
        generator = torch.Generator().manual_seed(0)
        chosen = []
        for maps in (grid, places(grid)):
            flat = maps.flatten(1).T
            chosen.append(flat[torch.randint(len(flat), (PROBES,), generator=generator)].half())
        return cls(grid, at_most(grid, SMALL_SIDE), *chosen)


class FeatureStore:
    """Reduced features of pictures in a folder, a file for each.

    Args:
        extractor ([`FeatureExtractor`]), folder (`Path`): Of one model; what is in the folder is used.
        load (`Callable`): Gives the pixels of a picture by its name, `[1, C, H, W]` in [-1, 1].
        stamp (`Callable`): Gives a value that changes with the content of a picture, by its name.
    """

    def __init__(self, extractor: FeatureExtractor, folder: Path, load: Callable[[str], torch.Tensor], stamp: Callable):
        self.extractor, self.folder, self.load, self.stamp = extractor, folder, load, stamp
        self.basis = self._kept_basis()

    def path(self, name: str) -> Path:
        """The file of a picture."""
        return self.folder / f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:24]}.safetensors"

    def has(self, name: str) -> bool:
        """Whether features of the current content of a picture exist."""
        try:
            with safe_open(self.path(name), "pt") as file:
                return (file.metadata() or {}).get("stamp") == self.stamp(name)
        except (OSError, SafetensorError):
            return False

    def read(self, name: str, part: str) -> torch.Tensor:
        """One of the tensors of [`PictureFeatures`], by its name."""
        with safe_open(self.path(name), "pt") as file:
            return file.get_tensor(part)

    def extract(self, name: str, names: Sequence[str]) -> None:
        """Extracts the features of a picture and keeps them; the components are those of some of all `names`."""
        if self.basis is None:
            self.basis = self._find_basis(name, names)
        stamp = self.stamp(name)  # before it is read: what changes meanwhile is read again
        found = PictureFeatures.of(self.basis.reduce(self._activations(name))[0])
        tensors = {key: value.clone(memory_format=torch.contiguous_format) for key, value in vars(found).items()}
        with atomic_file(self.path(name)) as partial:
            save_file(tensors, partial, metadata={"stamp": stamp})

    def _kept_basis(self) -> Basis | None:
        """The stored components; if they cannot be read, all stored features are discarded."""
        try:
            kept = load_file(self.folder / BASIS)
            height, width = kept["grid"].tolist()
            return Basis(kept["projection"], kept["offset"], (height, width))
        except (OSError, SafetensorError, KeyError, ValueError):
            for old in self.folder.glob("*.safetensors"):
                old.unlink()
            return None

    def _find_basis(self, name: str, names: Sequence[str]) -> Basis:
        some = []
        for other in sorted(names)[:: max(1, -(-len(names) // BASIS_IMAGES))]:
            try:
                some.append(self._activations(other))
            except UserError:
                continue  # left out when its turn comes
        basis = Basis.of(some or [self._activations(name)])
        kept = {"projection": basis.projection.contiguous(), "offset": basis.offset.contiguous()}
        with atomic_file(self.folder / BASIS) as partial:
            save_file({**kept, "grid": torch.tensor(basis.grid)}, partial)
        return basis

    @torch.no_grad()
    def _activations(self, name: str) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return self.extractor(self.load(name), generator=generator).activations


def sample(maps: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Samples maps `[N, C, h, w]` as bilinear upsampling would, at x, y `[N, P, 1, 2]` in [-1, 1]: `[N, C, P, 1]`."""
    return F.grid_sample(maps, at, mode="bilinear", padding_mode="border", align_corners=False)


def sample_pixels(grid: torch.Tensor, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Features `[P, D]` float32 of pixels (`[P, 2]` int64, y and x) of a picture of a size, from its `[D, h, w]`."""
    at = (pixels.flip(-1).float() + 0.5) / torch.tensor([size[1], size[0]]) * 2 - 1
    return sample(grid[None].float(), at[None, :, None])[0, :, :, 0].T


def places(grid: torch.Tensor) -> torch.Tensor:
    """Features of the places of a picture that may be suggested: `[D, h, w]` to float32, 64 pixels a side at most.

    Each is the mean over its neighbours, since uncertainty peaks on borders, where strokes are imprecise.
    """
    return F.avg_pool2d(at_most(grid, PLACES_SIDE).float(), 3, 1, 1, count_include_pad=False)


def at_most(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Features `[D, h, w]` at no more than so many pixels a side, as means over areas; in their dtype."""
    scale = side / max(grid.shape[1:])
    if scale >= 1:
        return grid
    size = [max(1, round(n * scale)) for n in grid.shape[1:]]
    return F.interpolate(grid[None].float(), size, mode="area")[0].to(grid.dtype)


def model_key(pipe: Any, extractor: FeatureExtractor, fingerprint: Sequence[float]) -> str:
    """A key for features, equal for equal model, taps and size."""
    scheduler: dict = dict(getattr(getattr(pipe, "scheduler", None), "config", None) or {})
    noise = json.dumps({k: v for k, v in scheduler.items() if k[0] != "_"}, sort_keys=True, default=str)
    parts = [type(pipe).__name__, extractor.blocks, extractor.timesteps, extractor.size, extractor.prompt, fingerprint]
    drawn = "clean" if extractor.clean else extractor.noise_seed
    seen: list[Any] = [*parts, drawn, pipe.channels.config, noise]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
