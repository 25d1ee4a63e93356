# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Volumes, whose slices are planes; NRRD and MetaImage, by SimpleITK."""

import locale
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from ..grids import PATIENT, Grid
from .base import LabelReader, Raster, Window, broken, default_names


AXES = {"z": 0, "y": 1, "x": 2}  # of `[Z, Y, X]`; z is along the slices as they are stored


class VolumeRaster(Raster):
    """A volume, of which slices are planes; it is read whole. A base, which cannot be instantiated.

    Args:
        path (path): A file, or a folder.
        axis (`str`, defaults to `"z"`): Along which planes follow one another: z, the slices as they are stored, y, or
            x.
    """

    whole = True
    volumetric = True

    def __init__(self, path: str | os.PathLike, axis: str = "z"):
        self.name, self._axis = str(path), AXES[axis]

    def _hold(self, values: np.ndarray, affine: np.ndarray | None, spacing: Sequence[float] | None, flat: bool) -> None:
        """Keeps what was read.

        Args:
            values (`np.ndarray`): `[Z, Y, X, C]`.
            affine (`np.ndarray`, *optional*): `[4, 4]`, from x, y and z of voxels to the patient, in mm.
            spacing (three `float`, *optional*): Of voxels along x, y and z in mm.
            flat (`bool`): Whether the file has two dimensions.
        """
        if flat and self._axis:
            raise UserError(f"{self.name} is flat, and has planes along z alone.")
        self._flat = flat
        self._values = np.moveaxis(values, self._axis, 0)  # [planes,H,W,C]
        self.planes, self.height, self.width, count = self._values.shape
        self.dtype, self.channels = values.dtype, default_names(count)
        order = [2 - self._axis, *(2 - i for i in range(3) if i != self._axis)]  # planes, rows and columns
        if spacing is not None and all(np.isfinite(spacing)) and min(spacing) > 0:
            self.plane_distance, *inside = (1000 * float(spacing[i]) for i in order)
            self.pixel_size = (inside[0], inside[1])
        if affine is not None and np.linalg.det(affine) != 0:
            own = np.concatenate([affine[:, order], affine[:, 3:]], 1)
            self.grid = Grid((self.planes, self.height, self.width), own, PATIENT)

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self._values[plane][window.slices].transpose(2, 0, 1).copy()  # SimpleITK frees its memory with the image

    def _stacked(self, labels: LabelReader, dtype: np.dtype) -> np.ndarray:
        """All labels, `[Z, Y, X]`; of flat files `[Y, X]`."""
        whole = np.stack([labels(p, Window(0, 0, self.height, self.width)) for p in range(self.planes)])
        whole = np.moveaxis(whole.astype(dtype), 0, self._axis)
        return whole[0] if self._flat else whole

    def _hold_image(self, image: Any) -> None:
        """Keeps a `SimpleITK.Image`."""
        import SimpleITK as sitk

        dimensions = image.GetDimension()
        if dimensions > 3:
            sizes = " × ".join(map(str, image.GetSize()))
            raise UserError(f"{self.name} has four dimensions, {sizes}; what is read has three: split it by time.")
        values = sitk.GetArrayViewFromImage(image)
        values = values if image.GetNumberOfComponentsPerPixel() > 1 else values[..., None]  # [(Z,)Y,X,C]
        affine = np.eye(4)
        affine[:3, :3] = (
            np.reshape(image.GetDirection(), (dimensions, -1)) * image.GetSpacing() if dimensions > 2 else 0
        )
        affine[:3, 3] = [*image.GetOrigin(), 0][:3]
        spacing = [*image.GetSpacing(), 1.0][:3]
        self._hold(values if dimensions > 2 else values[None], affine, spacing, dimensions == 2)


class ItkRaster(VolumeRaster):
    """A volume of a format of SimpleITK, such as NRRD or MetaImage.

    Args:
        path (path), axis (`str`): See [`VolumeRaster`].

    Raises:
        UserError: The file is broken.
    """

    def __init__(self, path: str | os.PathLike, axis: str = "z"):
        super().__init__(path, axis)
        with reading(self.name) as sitk:
            self._image = sitk.ReadImage(os.fspath(path))
        self._hold_image(self._image)
        suffix = Path(path).suffix.lower()
        self.mask_suffix = {".nhdr": ".nrrd", ".mhd": ".mha"}.get(suffix, suffix)

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import SimpleITK as sitk

        mask = sitk.GetImageFromArray(self._stacked(labels, dtype))
        mask.CopyInformation(self._image)
        sitk.WriteImage(mask, os.fspath(path), useCompression=True)


@contextmanager
def reading(name: str) -> Iterator[Any]:
    """Yields SimpleITK; what it raises of broken files becomes a [`UserError`]."""
    try:
        import SimpleITK as sitk
    except ModuleNotFoundError as error:
        raise missing_extra("medical", error.name) from error
    try:
        with keeping_locale():
            yield sitk
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise broken(name, RuntimeError(lines[-1] if lines else repr(error))) from error


@contextmanager
def keeping_locale() -> Iterator[None]:
    """Restores the locale, which GDCM leaves at "C", so that Python would read and write ASCII only."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)
