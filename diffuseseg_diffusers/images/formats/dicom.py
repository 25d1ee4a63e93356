# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""DICOM: files, and folders with the slices of a series, by SimpleITK."""

import mmap
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...jobs.errors import UserError
from .base import LabelReader
from .volumes import VolumeRaster, keeping_locale, reading


SUFFIXES = (".dcm", ".ima", ".dicom")
_UID, _SERIES, _NUMBER, _POSITION, _ORIENTATION = "0008|0018", "0020|000e", "0020|0013", "0020|0032", "0020|0037"
_PIXELS = b"\xe0\x7f\x10\x00"  # tag of the pixels' element, little endian
_UNCOMPRESSED = re.compile(rb"\x02\x00\x10\x00UI..1\.2\.840\.10008\.1\.2(\.1)?\0", re.DOTALL)  # transfer syntax
_SPACING, _BETWEEN, _STUDY_ID, _SERIES_NUMBER = "0028|0030", "0018|0088", "0020|0010", "0020|0011"
_OF_PATIENT = ("0010|0010", "0010|0020", "0010|0030", "0010|0040", "0020|000d", "0008|0020", "0008|0030", "0008|0050")
_OF_SLICE = (_POSITION, _ORIENTATION, _SPACING, "0018|0050", "0020|0052")
# What tells slices at one place from one another.
_PHASES = {
    "0020|0100": "TemporalPositionIdentifier",
    "0018|1060": "TriggerTime",
    "0018|0086": "EchoNumbers",
    "0018|9087": "DiffusionBValue",
    "0020|0012": "AcquisitionNumber",
    "0008|0032": "AcquisitionTime",
}


class DicomRaster(VolumeRaster):
    """A DICOM file, or a folder with the slices of one series, in any order and under any names.

    Args:
        path (path), axis (`str`): See [`VolumeRaster`].

    Raises:
        UserError: A file is broken; the folder has several series, or slices that are no volume; says why.
    """

    def __init__(self, path: str | os.PathLike, axis: str = "z"):
        super().__init__(path, axis)
        self.mask_is_folder = os.path.isdir(path)
        self.mask_suffix = "" if self.mask_is_folder else ".dcm"
        with reading(self.name) as sitk:
            if not self.mask_is_folder:
                self._headers = [_header(self.name)]
                self._image = sitk.ReadImage(self.name)
                self._keep()
                return
            self._headers = self._series()
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([header.GetFileName() for header in self._headers])
            if (
                len({header.GetPixelID() for header in self._headers}) > 1
            ):  # slices are rescaled by factors of their own
                reader.SetOutputPixelType(sitk.sitkFloat64)
            self._image = reader.Execute()
        self._keep()
        self._place()

    def _keep(self) -> None:
        self._hold_image(self._image)
        self._between = float(self._image.GetSpacing()[2])  # of slices, in mm

    def _place(self) -> None:
        """Takes the grid from the places of slices: SimpleITK knows none that are shifted, as of tilted gantries."""
        places = [_numbers(header, _POSITION) for header in self._headers]
        if len(places[0]) != 3:
            self.grid = None
            self.notes.append(f"The slices of {self.name} have no positions; their order is that of InstanceNumber.")
            return
        if len(places) == 1:
            return
        across, down = np.reshape(_numbers(self._headers[0], _ORIENTATION), (2, 3))
        between = (np.array(places[-1]) - places[0]) / (len(places) - 1)
        spacing = [*_numbers(self._headers[0], _SPACING), 1.0, 1.0][:2]
        affine = np.eye(4)
        affine[:3] = np.stack([across * spacing[1], down * spacing[0], between, places[0]], 1)
        if np.linalg.norm(np.cross(between, np.cross(across, down))) > 0.01 * np.linalg.norm(between):
            self.notes.append(f"The slices of {self.name} are shifted against one another, as of a tilted gantry.")
        self._between = float(abs(between @ np.cross(across, down)))
        self._hold(np.moveaxis(self._values, 0, self._axis), affine, (spacing[1], spacing[0], self._between), False)

    def _series(self) -> list[Any]:
        """The headers of the slices of the one series in the folder, by their position.

        Raises:
            UserError: There is not exactly one series, or its slices are no volume.
        """
        import SimpleITK as sitk

        found = sitk.ImageSeriesReader.GetGDCMSeriesIDs(self.name)
        if len(found) != 1:
            what = f"{len(found)} DICOM series, and one is read" if found else "no DICOM series"
            raise UserError(f"The folder {self.name} has {what}; give each a folder of its own, or name its files.")
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(self.name, found[0])
        read = {os.path.normpath(file) for file in files}
        for path in sorted(Path(self.name).iterdir()):
            if str(path) not in read and _begins_as_dicom(path):
                raise UserError(
                    f"{path} cannot be read as DICOM, as which it begins; copy it anew, or move it elsewhere."
                )
        headers = self._without_copies([_header(file) for file in sorted(files)])
        for key, what in (("0028|0010", "rows"), ("0028|0011", "columns"), (_SPACING, "PixelSpacing")):
            self._check_same(headers, key, what, 0.001)
        if not all(len(_numbers(h, _POSITION)) == 3 and len(_numbers(h, _ORIENTATION)) == 6 for h in headers):
            kept = {header.GetFileName(): header for header in headers}
            return [kept[file] for file in files if file in kept]
        self._check_same(headers, _ORIENTATION, "ImageOrientationPatient", 0.01)
        normal = np.cross(*np.reshape(_numbers(headers[0], _ORIENTATION), (2, 3)))
        places = np.array([_numbers(header, _POSITION) for header in headers]) @ normal
        order = np.argsort(places, kind="stable")
        self._check_places([headers[i] for i in order], places[order])
        return [headers[i] for i in order]

    def _without_copies(self, headers: Iterable[Any]) -> list[Any]:
        """Slices once each; files of one SOPInstanceUID are copies."""
        kept: dict[str, Any] = {}
        for header in headers:
            uid = _tag(header, _UID) or header.GetFileName()
            if uid in kept:
                names = _name(header), _name(kept[uid])
                self.notes.append(f"{self.name}: {names[0]} is a copy of {names[1]} and is left out.")
            kept.setdefault(uid, header)
        return list(kept.values())

    def _check_same(self, headers: Sequence[Any], key: str, what: str, tolerance: float) -> None:
        values = [_numbers(header, key) for header in headers]
        for header, own in zip(headers, values):
            if len(own) != len(values[0]) or not np.allclose(own, values[0], atol=tolerance):
                one, other = ("\\".join(f"{x:g}" for x in v) or "none" for v in (values[0], own))
                self._refuse(f"{_name(headers[0])} has the {what} {one}, but {_name(header)} has {other}")

    def _check_places(self, headers: Sequence[Any], places: np.ndarray) -> None:
        if len(headers) == 1:
            return
        if np.ptp(places) < 0.001:
            self._refuse(f"all {len(headers)} slices lie at one place, as of a film in time")
        numbers, counts = np.unique(places.round(3), return_counts=True)
        if counts.max() > 1:
            tags = [f"{name} {', '.join(v)}" for key, name in _PHASES.items() if len(v := _values(headers, key)) > 1]
            told = f" ({tags[0][:120]})" if tags else ""
            i = int(np.flatnonzero(np.diff(places.round(3)) == 0)[0])
            two = f"{_name(headers[i])} and {_name(headers[i + 1])} lie at one place"
            if (counts == counts[0]).all():
                two = f"it has {counts[0]} slices at each of {len(numbers)} places{told}"
            self._refuse(two)
        gaps = np.diff(places)
        usual = float(np.median(gaps))
        if np.ptp(gaps) > 0.01 * usual:
            i = int(np.abs(gaps - usual).argmax())
            here = float(gaps[i])
            cause = "a slice is missing" if abs(here / usual - round(here / usual)) < 0.02 else "the spacing is mixed"
            raise UserError(
                f"{self.name}: between the slices {_name(headers[i])} and {_name(headers[i + 1])} lie {here:g} mm, "
                f"between others {usual:g} mm: {cause}; complete or resample the series."
            )

    def _refuse(self, found: str) -> NoReturn:
        raise UserError(f"{self.name} is not one volume: {found}; give each volume a folder of its own.")

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import SimpleITK as sitk

        mask = sitk.GetImageFromArray(self._stacked(labels, dtype))
        mask.CopyInformation(self._image)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        first = self._headers[0]
        source = _tag(first, _SERIES) or "1.2.826.0.1.3680043.2.1125.1"
        content = zlib.crc32(sitk.GetArrayViewFromImage(mask).tobytes())
        series = f"{source[:50].rstrip('.')}.{content}"  # the same each time
        number = _tag(first, _SERIES_NUMBER)
        shared = {"0008|0060": "OT", "0008|103e": "segmentation: class ids", _SERIES: series}
        shared[_STUDY_ID] = _tag(first, _STUDY_ID) or "1"
        shared[_SERIES_NUMBER] = str(1000 + int(number)) if number.isdigit() else "1000"
        if self.planes > 1 or len(self._headers) > 1:
            shared[_BETWEEN] = f"{self._between:.8g}"
        if self.mask_is_folder:
            path.mkdir()
        with keeping_locale():
            for i, header in enumerate(self._headers):
                one = mask
                if self.mask_is_folder:  # a volume of one slice, for its spacing
                    one = mask[:, :, i : i + 1]
                    one.SetSpacing((*mask.GetSpacing()[:2], self._between))
                    one.SetOrigin(_numbers(header, _POSITION) or (0.0, 0.0, i * self._between))
                tags = {key: _tag(header, key) for key in (*_OF_PATIENT, *_OF_SLICE)}
                tags = {key: value for key, value in tags.items() if value} | shared
                tags |= {_UID: f"{series}.{i + 1}", _NUMBER: str(i + 1)}
                for key, value in tags.items():
                    one.SetMetaData(key, value)
                writer.SetFileName(os.fspath(path / f"{i + 1:05d}.dcm" if self.mask_is_folder else path))
                writer.Execute(one)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, or of other and no suffixes by its first bytes."""
    suffix = path.suffix.lower()
    if suffix == ".dcm":
        return path.is_file()
    if suffix not in SUFFIXES and suffix[1:].strip("0123456789"):
        return False
    return _begins_as_dicom(path)


def _begins_as_dicom(path: Path) -> bool:
    try:
        if not path.is_file() or path.name.upper() == "DICOMDIR":
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(path: str) -> Any:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    reader.LoadPrivateTagsOff()
    reader.ReadImageInformation()
    _check_complete(path, reader)
    return reader


def _check_complete(path: str, header: Any) -> None:
    """Raises for a file that is cut off: GDCM gives what lies in memory for the pixels that are not there."""
    if "422" in _tag(header, "0028|0004"):
        return
    samples, rows, columns, bits = (
        int((_numbers(header, f"0028|{key}") or [1])[0]) for key in ("0002", "0010", "0011", "0100")
    )
    frames = int((_numbers(header, "0028|0008") or [1])[0])
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_PIXELS)
        plain = _UNCOMPRESSED.search(content, 0, 2048)
        if plain and start >= 0 and len(content) - start - 8 < samples * rows * columns * frames * bits / 8:
            raise UserError(f"{path} cannot be read (it is cut off after {len(content):,} bytes); copy it anew.")


def _tag(header: Any, key: str) -> str:
    """The value of a tag; empty if there is none."""
    return header.GetMetaData(key).strip(" \0") if header.HasMetaDataKey(key) else ""


def _values(headers: Iterable[Any], key: str) -> list[str]:
    return sorted({value for header in headers if (value := _tag(header, key))})


def _numbers(header: Any, key: str) -> list[float]:
    try:
        return [float(x) for x in _tag(header, key).split("\\")]
    except ValueError:
        return []


def _name(header: Any) -> str:
    return os.path.basename(header.GetFileName())
