# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""NIfTI-1 and NIfTI-2, by nibabel."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from .base import LabelReader, broken
from .volumes import VolumeRaster


_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_TO_PATIENT = np.diag([-1.0, -1, 1, 1])  # from right, anterior, superior to left, posterior, superior


class NiftiRaster(VolumeRaster):
    """A NIfTI file; sheared ones too. Masks keep its header: qform, sform, their codes, and units.

    Args:
        path (path), axis (`str`): See [`VolumeRaster`].

    Raises:
        UserError: The file is broken, or has more than one time.
    """

    def __init__(self, path: str | os.PathLike, axis: str = "z"):
        try:
            import nibabel
        except ModuleNotFoundError as error:
            raise missing_extra("medical", error.name) from error
        super().__init__(path, axis)
        self.mask_suffix = ".nii.gz" if self.name.lower().endswith(".gz") else ".nii"
        try:
            image: Any = nibabel.load(path)
            values = np.asanyarray(image.dataobj)
        except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError, zlib.error) as error:
            raise broken(self.name, error) from error
        if not isinstance(image, nibabel.Nifti1Image):  # that of NIfTI-2 is one
            raise UserError(f"{self.name} holds {type(image).__name__}, and a NIfTI volume is read; convert it.")
        self._image: Any = image
        affine, spacing = self._geometry()
        self._hold(self._arranged(values), affine, spacing, values.ndim == 2)

    def _arranged(self, values: np.ndarray) -> np.ndarray:
        """Voxels `[Z, Y, X, C]` of those of a file, `[X, Y, Z, T, C]`."""
        shape, count = values.shape[:4], values.shape[4] if values.ndim == 5 else 1
        if values.dtype.names:  # colours
            values = np.stack([values[name] for name in values.dtype.names], -1)
            count = values.shape[-1]
        elif values.dtype == np.float64 and self._image.dataobj.dtype.kind in "iu":  # rescaled
            values = values.astype(np.float32)
        shape += (1,) * (3 - len(shape))
        if values.ndim > 5 or shape[3:] not in ((), (1,)):
            shown = " × ".join(map(str, shape))
            raise UserError(f"{self.name} has four dimensions, {shown}; what is read has three: split it by time.")
        return values.reshape(*shape[:3], count).transpose(2, 1, 0, 3)

    def _geometry(self) -> tuple[np.ndarray | None, list[float]]:
        """The affine to the patient, if the file has one, and the sizes of voxels, in mm."""
        import nibabel

        header = self._image.header
        unit = _MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
        placed, codes = self._image.affine, (int(header["qform_code"]), int(header["sform_code"]))
        if all(codes) and not np.allclose(header.get_qform(), header.get_sform(), atol=1e-3):
            self.notes.append(f"{self.name} has a qform and a sform that differ; the sform is taken.")
        affine = np.diag([unit, unit, unit, 1]) @ _TO_PATIENT @ placed
        sizes = nibabel.affines.voxel_sizes(placed) * unit
        return affine if any(codes) else None, sizes.tolist()

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        header = self._image.header.copy()
        header.set_data_dtype(dtype)
        header["cal_min"] = header["cal_max"] = 0
        header.set_intent("none")
        mask = self._stacked(labels, dtype).T
        type(self._image)(mask, self._image.affine, header).to_filename(path)
