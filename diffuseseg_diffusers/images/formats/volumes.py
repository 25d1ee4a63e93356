# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""NIfTI, NRRD, MetaImage and DICOM, with spacing, origin and orientation, by SimpleITK."""

import locale
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from ..grids import PATIENT, Grid
from .base import LabelReader, Raster, Window, broken, default_names


AXES = {"z": 0, "y": 1, "x": 2}  # of an array of SimpleITK; z is along the slices as they are stored
_OF_PATIENT = ("0010|0010", "0010|0020", "0010|0030", "0010|0040", "0020|000d", "0008|0020", "0008|0030", "0008|0050")
_OF_SLICE = ("0020|0032", "0020|0037", "0028|0030", "0018|0050", "0020|0052")


class VolumeRaster(Raster):
    """A volume, of which slices are planes. It is read whole.

    Args:
        path (path): A file, or a folder with the slices of one DICOM series, in any order.
        axis (`str`, defaults to `"z"`): Along which planes follow one another: z, the slices as they are stored, y, or
            x.

    Raises:
        UserError: The file is broken; a slice is missing; slices are not evenly spaced; or the folder has several
            series.
    """

    whole = True
    volumetric = True

    def __init__(self, path: str | os.PathLike, axis: str = "z"):
        try:
            import SimpleITK as sitk
        except ModuleNotFoundError as error:
            raise missing_extra("medical", error.name) from error
        self.name, self._axis = str(path), AXES[axis]
        self._slices: list[str] = []
        try:
            with _keeping_locale():
                if os.path.isdir(path):
                    self._slices = _series(self.name)
                    reader = sitk.ImageSeriesReader()
                    reader.SetFileNames(self._slices)
                    self._image = reader.Execute()
                else:
                    self._image = sitk.ReadImage(os.fspath(path))
        except RuntimeError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise broken(self.name, RuntimeError(lines[-1] if lines else repr(error))) from error
        image = self._image
        if image.GetDimension() > 3:
            sizes = " × ".join(map(str, image.GetSize()))
            raise UserError(f"{self.name} has four dimensions, {sizes}; what is read has three: split it by time.")
        values = sitk.GetArrayViewFromImage(image)
        values = values if image.GetNumberOfComponentsPerPixel() > 1 else values[..., None]  # [(Z,)Y,X,C]
        values = values[None] if image.GetDimension() == 2 else values
        spacing = [*image.GetSpacing(), 1.0][2::-1]  # of z, y and x, in millimetres
        if image.GetDimension() == 2 and self._axis:
            raise UserError(f"{self.name} is flat, and has planes along z alone.")
        self._values = np.moveaxis(values, self._axis, 0)  # [planes,H,W,C]
        self.planes, self.height, self.width, count = self._values.shape
        inside = [1000 * s for i, s in enumerate(spacing) if i != self._axis]
        self.pixel_size = (inside[0], inside[1])
        self.grid = self._grid()
        self.dtype, self.channels = values.dtype, default_names(count)
        suffixes = "".join(Path(path).suffixes[-2:]).lower()
        known = next((s for s in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd") if suffixes.endswith(s)), "")
        self.mask_is_folder = bool(self._slices)
        self.mask_suffix = {"": "" if self._slices else ".dcm", ".nhdr": ".nrrd", ".mhd": ".mha"}.get(known, known)

    def _grid(self) -> Grid | None:
        """Where the voxels lie; `None` of the geometry that is written where none is known."""
        image = self._image
        if image.GetDimension() < 3:
            return None
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        if np.array_equal(affine, np.eye(4)):
            return None
        order = [2 - i for i in (self._axis, *(i for i in range(3) if i != self._axis))]
        affine[:3, :3] = affine[:3, order]
        return Grid((self.planes, self.height, self.width), affine, PATIENT)

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return self._values[plane][window.slices].transpose(2, 0, 1)

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import SimpleITK as sitk

        whole = np.stack([labels(p, Window(0, 0, self.height, self.width)) for p in range(self.planes)])
        whole = np.moveaxis(whole.astype(dtype), 0, self._axis)
        mask = sitk.GetImageFromArray(whole[0] if self._image.GetDimension() == 2 else whole)
        mask.CopyInformation(self._image)
        with _keeping_locale():
            if self._slices:
                _write_series(path, mask, self._slices)
            elif self.mask_suffix == ".dcm":
                _copy(_header(self.name), mask, (*_OF_PATIENT, *_OF_SLICE))
                sitk.WriteImage(mask, os.fspath(path))
            else:
                sitk.WriteImage(mask, os.fspath(path), useCompression=True)


@contextmanager
def _keeping_locale() -> Iterator[None]:
    """Restores the locale, which GDCM leaves at "C", so that Python would read and write ASCII only."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _header(path: str) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.LoadPrivateTagsOff()
    reader.ReadImageInformation()
    return reader


def _series(folder: str) -> list[str]:
    """The slices of the one DICOM series in a folder, by their position.

    Raises:
        UserError: There is not exactly one series, a slice is missing, or slices are not evenly spaced.
    """
    import SimpleITK as sitk

    found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(folder)
    if len(found) != 1:
        what = f"{len(found)} DICOM series, and one is read" if found else "no DICOM series"
        raise UserError(f"The folder {folder} has {what}; give each a folder of its own.")
    files = list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder, found[0]))
    places = []
    for file in files:
        header = _header(file)
        if not (header.HasMetaDataKey("0020|0032") and header.HasMetaDataKey("0020|0037")):
            return files
        position, directions = (
            np.array([float(x) for x in header.GetMetaData(key).split("\\")]) for key in ("0020|0032", "0020|0037")
        )
        places.append(float(position @ np.cross(directions[:3], directions[3:])))
    gaps = np.abs(np.diff(places))
    if len(gaps) > 1 and np.ptp(gaps) > 0.01 * np.median(gaps):
        i = int(np.abs(gaps - np.median(gaps)).argmax())
        names = [os.path.basename(file) for file in files[i : i + 2]]
        usual, here = float(np.median(gaps)), float(gaps[i])
        cause = "a slice is missing" if abs(here / usual - round(here / usual)) < 0.02 else "the spacing is mixed"
        raise UserError(
            f"{folder}: between the slices {names[0]} and {names[1]} lie {here:g} mm, between others {usual:g} mm: "
            f"{cause}; complete or resample the series."
        )
    return files


def _copy(header: Any, image: Any, keys: Sequence[str]) -> None:
    for key in keys:
        if header.HasMetaDataKey(key):
            image.SetMetaData(key, header.GetMetaData(key))


def _write_series(folder: Path, mask: Any, slices: Sequence[str]) -> None:
    """Writes a mask as a DICOM series of its own in the same study, a slice for each slice of the source."""
    import SimpleITK as sitk

    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    headers = [_header(name) for name in slices]
    first = headers[0]
    source = first.GetMetaData("0020|000e") if first.HasMetaDataKey("0020|000e") else "1.2.826.0.1.3680043.2.1125.1"
    series = f"{source[:50].rstrip('.')}.{zlib.crc32(sitk.GetArrayViewFromImage(mask).tobytes())}"  # the same each time
    for i, header in enumerate(headers):
        one = mask[:, :, i]
        _copy(header, one, (*_OF_PATIENT, *_OF_SLICE))
        one.SetMetaData("0008|0060", "OT")
        one.SetMetaData("0008|103e", "segmentation: class ids")
        one.SetMetaData("0020|000e", series)
        one.SetMetaData("0008|0018", f"{series}.{i + 1}")
        one.SetMetaData("0020|0013", str(i + 1))
        writer.SetFileName(os.fspath(folder / f"{i + 1:05d}.dcm"))
        writer.Execute(one)
