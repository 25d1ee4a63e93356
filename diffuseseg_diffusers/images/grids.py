# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Where the pixels of an image lie: in a patient, under a microscope, on a map."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ..jobs.errors import UserError
from ..jobs.install import missing_extra


PATIENT = "mm (left, posterior, superior)"  # the space of scans, as DICOM has it
STAGE = "µm"  # the space of microscopes
SAME = 0.1  # pixels that two grids may be apart: headers round
PROBES = 16  # points along an axis at which grids are compared


@dataclass(frozen=True)
class Grid:
    """The grid of a raster's pixels, and the space that it lies in.

    Args:
        shape (three `int`): Planes, height and width.
        affine (`np.ndarray`): `[4, 4]` float64, from plane, row and column (of centres, from 0) to x, y and z.
        space (`str` or `rasterio.crs.CRS`, *optional*): What the coordinates are of: `PATIENT`, `STAGE`, or the
            reference system of a map; not given if a map does not say it.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    space: Any = None

    def matches(self, other: "Grid") -> bool:
        """Whether both grids have the same pixels at the same places."""
        if self.shape != other.shape or not self.comparable(other):
            return False
        corners = np.array(list(product(*((0, n - 1) for n in self.shape))), float).T  # [3,8]
        return bool(np.abs(self.indices_in(other, corners) - corners).max() < SAME)

    def comparable(self, other: "Grid") -> bool:
        """Whether coordinates of both can be compared."""
        named = [isinstance(one.space, str) for one in (self, other)]
        return self.space == other.space if any(named) else True

    @property
    def is_default(self) -> bool:
        """Whether this is what programs write of scans where they know no place: voxels of 1 mm, from 0 on."""
        turned = np.abs(self.affine[:3, :3])
        return self.space == PATIENT and not self.affine[:3, 3].any() and bool(np.isin(turned, (0, 1)).all())

    def indices_in(self, other: "Grid", at: np.ndarray) -> np.ndarray:
        """Where pixels of this grid lie in another.

        Args:
            other ([`Grid`]): Of a space that is comparable.
            at (`np.ndarray`): `[3, …]` planes, rows and columns.

        Returns:
            `np.ndarray`: `[3, …]` float64, planes, rows and columns of the other grid; infinite where there are none.
        """
        flat = at.reshape(3, -1)
        points = self.affine[:3, :3] @ flat + self.affine[:3, 3:]  # [3,N]
        if self.space is not None and other.space is not None and self.space != other.space:
            points[:2] = _reprojected(self.space, other.space, points[:2])
        inverse = np.linalg.inv(other.affine)
        with np.errstate(invalid="ignore"):  # of what has no place in the other reference system
            found = inverse[:3, :3] @ points + inverse[:3, 3:]
        return np.where(np.isnan(found), np.inf, found).reshape(at.shape)

    def share_in(self, other: "Grid") -> float:
        """The share of this grid's pixels, about, that lie in another."""
        axes = [(np.arange(min(n, PROBES)) + 0.5) * max(1, n / PROBES) - 0.5 for n in self.shape]
        at = self.indices_in(other, np.stack(np.meshgrid(*axes, indexing="ij")))
        return float(inside(at, other.shape).mean())

    def __str__(self) -> str:
        """Where it lies, for messages."""
        corners = np.array(list(product(*((-0.5, n - 0.5) for n in self.shape)))).T
        points = self.affine[:3, :3] @ corners + self.affine[:3, 3:]
        axes = "xyz" if isinstance(self.space, str) else "xy"
        spans = [f"{axis} {low:.7g} to {high:.7g}" for axis, low, high in zip(axes, points.min(1), points.max(1))]
        unit = "" if self.space is None else f" {self.space}" if isinstance(self.space, str) else f" of {self.space}"
        return ", ".join(spans) + unit


def map_grid(size: Sequence[int], transform: Any, crs: Any = None) -> Grid | None:
    """The grid of a map; `None` if it has no place.

    Args:
        size (two `int`): Height and width.
        transform (`affine.Affine`): From columns and rows, of corners, to x and y.
        crs (`rasterio.crs.CRS`, *optional*): Their reference system.
    """
    if transform is None or transform.is_identity or transform.is_degenerate:
        return None
    a, b, c, d, e, f = tuple(transform)[:6]
    affine = np.array([[0, b, a, c + (a + b) / 2], [0, e, d, f + (d + e) / 2], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    return Grid((1, size[0], size[1]), affine, crs)


def inside(at: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Which places `[3, …]` lie in pixels of a grid of a shape, `[…]` bool."""
    limits = np.reshape(shape, (3,) + (1,) * (at.ndim - 1))
    return np.logical_and.reduce((at >= -0.5) & (at < limits - 0.5))


def _reprojected(source: Any, target: Any, points: np.ndarray) -> np.ndarray:
    """Map coordinates `[2, N]` in another reference system."""
    try:
        from rasterio.warp import transform
    except ModuleNotFoundError as error:
        raise missing_extra("geo", error.name) from error
    return np.array(transform(source, target, *points.tolist()))


def overlapping(mask: Grid, mask_name: str, image: Grid, name: str) -> float:
    """The share of an image's pixels that its mask covers.

    Raises:
        UserError: The two do not overlap.
    """
    if image.comparable(mask):
        share, back = image.share_in(mask), mask.share_in(image)
        if image.is_default != mask.is_default and min(share, back) < 1:
            empty, other = (mask_name, image) if mask.is_default else (name, mask)
            raise UserError(
                f"The header of {empty} says nothing of its place (voxels of 1 mm, from 0 on), but its counterpart "
                f"lies at {other}; write the mask with the header of its image: nibabel's Nifti1Image(mask, "
                f"image.affine, image.header), or SimpleITK's mask.CopyInformation(image)."
            )
        if share > 0 or back > 0:
            return share
    raise UserError(
        f"{name} and its mask {mask_name} do not overlap: the image lies at {image}, the mask at {mask}; draw the mask "
        f"on this image, or correct the header that is wrong."
    )
