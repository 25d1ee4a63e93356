# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Chooses the reader of an image."""

import importlib.util
import os
import re
from io import BytesIO
from pathlib import Path

from ...jobs.install import missing_extra
from ..image_files import SUFFIXES, walk
from ..image_processor import is_address
from .base import Raster
from .dicom import SUFFIXES as DICOM
from .dicom import DicomRaster, is_dicom
from .geotiff import GeoRaster, has_place_beside, place_files
from .nifti import NiftiRaster
from .ome_tiff import SUFFIXES as OME
from .ome_tiff import parts_of, whole_images
from .ome_zarr import ZarrRaster, zarr_pictures
from .pictures import PictureRaster
from .tiff import TiffRaster, is_decodable, lies_somewhere, open_tiff
from .volumes import ItkRaster


TIFF = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".qptiff")
GEO = (".vrt", ".img")
NIFTI = (".nii", ".nii.gz")
VOLUME = (*NIFTI, ".nrrd", ".nhdr", ".mha", ".mhd")
ZARR = (".zarr",)
MAPS = (".jpg", ".jpeg", ".png", ".jp2", ".bmp", ".gif")  # pictures that may have a world file beside them


def lost_here(name: str | os.PathLike) -> str | None:
    """What is lost of a picture because an optional package is missing, as the end of a sentence; `None` if nothing."""
    name = os.fspath(name)
    if is_address(name) or is_raster(name):
        return None
    if name.lower().endswith(TIFF):
        return "is read by Pillow, its first page alone, and its mask is PNG; the extra `tiff` reads and writes all"
    if name.lower().endswith(MAPS) and has_place_beside(name):
        return "loses its place on the map, which the extra `geo` keeps"
    return None


def has_tiff() -> bool:
    """Whether tifffile and zarr are installed; without them Pillow reads the first page of a TIFF."""
    return bool(importlib.util.find_spec("tifffile") and importlib.util.find_spec("zarr"))


def is_raster(name: str | os.PathLike) -> bool:
    """Whether the name is of a format with windows, planes or geometry.

    TIFFs are read by Pillow, their first page alone, where tifffile is not installed.
    """
    name = os.fspath(name).rstrip("/")
    lower = name.lower()
    if is_address(name):
        return False
    if lower.endswith(TIFF):
        return has_tiff()
    if lower.endswith(MAPS):
        return has_place_beside(name) and bool(importlib.util.find_spec("rasterio"))
    if lower.endswith((*GEO, *VOLUME, *DICOM, *ZARR)) or _in_zarr(lower):
        return True
    return _has_dicom(Path(name)) if os.path.isdir(name) else is_dicom(Path(name))


def open_raster(name: str | os.PathLike, axes: str | None = None, slice_axis: str = "z") -> Raster:
    """Opens an image of any format.

    Args:
        name (path or `str`): A file; a folder of OME-Zarr, or with a DICOM series; or an address of a picture.
        axes (`str`, *optional*): Of a TIFF that does not say what its axes are; see [`TiffRaster`].
        slice_axis (`str`, defaults to `"z"`): Of volumes; see [`NiftiRaster`].

    Raises:
        UserError: It is broken, or the package that reads it is missing.

    Examples:
        >>> from diffuseseg_diffusers import open_raster
        >>> raster = open_raster("photo.jpg")
        >>> raster.height, raster.width, raster.channels
    """
    lower = os.fspath(name).lower().rstrip("/")
    if not is_raster(name):
        return PictureRaster(name, str(name))
    if lower.endswith(ZARR) or _in_zarr(lower):
        return ZarrRaster(name)
    if lower.endswith((*GEO, *MAPS)):
        return GeoRaster(name, str(name))
    if lower.endswith(TIFF):
        return open_tiff_raster(name, str(name), axes)
    if lower.endswith(NIFTI):
        return NiftiRaster(name, slice_axis)
    if lower.endswith(VOLUME):
        return ItkRaster(name, slice_axis)
    return DicomRaster(name, slice_axis)


def pictures_at(path: Path) -> list[Path]:
    """The pictures of a path that is a raster: itself, or the series or fields in an OME-Zarr folder of several."""
    inside = zarr_pictures(path) if path.name.lower().endswith(ZARR) else []
    return inside if len(inside) > 1 else [path]


def open_tiff_raster(source: str | os.PathLike | BytesIO, name: str, axes: str | None) -> Raster:
    """Opens a TIFF, or its bytes: by rasterio if it lies somewhere, by Pillow if tifffile cannot decompress it.

    Args:
        source (path or `BytesIO`): The file.
        name (`str`): What to call it in messages.
        axes: As in [`open_raster`].

    Raises:
        UserError: It is broken, or the package that reads it is missing.
    """
    file = open_tiff(source, name)
    beside = not isinstance(source, BytesIO) and has_place_beside(source)
    raster: Raster
    if lies_somewhere(file) or (beside and importlib.util.find_spec("rasterio")):
        orientation = file.pages.first.tags.valueof("Orientation", 1)
        file.close()
        raster = GeoRaster(source, name)
        if orientation != 1:
            raster.notes.append(f"{name} lies on a map: its orientation, {orientation}, is ignored, as by GDAL.")
        return raster
    if is_decodable(file) or importlib.util.find_spec("imagecodecs"):
        raster = TiffRaster(file, name, axes)
    else:
        pages, missing = len(file.pages), missing_extra("tiff", "imagecodecs")
        file.close()
        if pages > 1:
            raise missing
        raster = PictureRaster(source, name)
        raster.notes.append(f"{name} is read by Pillow, whole and without the size of its pixels: {missing}")
    if beside:
        raster.notes.append(f"{name} loses its place on the map, which the extra `geo` keeps.")
    return raster


def files_of(name: str) -> list[str]:
    """The files that an image is read from: itself, those that an OME-TIFF or a header of a volume names, and those
    beside a map that say where it lies."""
    path, others = Path(name), set[str]()
    if name.lower().endswith((*TIFF, *MAPS)):
        others |= set(map(os.path.basename, place_files(name)))
    if name.lower().endswith(OME):
        others |= parts_of(path)
    elif name.lower().endswith((".mhd", ".nhdr")) and path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        others = set(re.findall(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", text, re.MULTILINE))
    beside = {str(path.with_name(other)) for other in others if path.with_name(other).is_file()}
    return [name, *sorted(beside - {str(path)})]


def find_rasters(folder: Path) -> list[Path]:
    """Pictures of any format anywhere below a folder, sorted: files, OME-Zarr folders, folders with DICOM slices."""
    found: list[Path] = []
    for here, folders, files in walk(folder):
        for name in [name for name in folders if name.lower().endswith(ZARR)]:
            found += pictures_at(here / name)
            folders.remove(name)
        if _has_dicom(here):
            found.append(here)
        named = [here / n for n in files if n.lower().endswith((*GEO, *VOLUME, *TIFF, *SUFFIXES))]
        found += [path for path in named if path.is_file()]
    return whole_images(sorted(found))


def _has_dicom(folder: Path) -> bool:
    return any(is_dicom(path) for path in folder.iterdir())


def _in_zarr(lower: str) -> bool:
    """Whether a name is of a group in an OME-Zarr folder: a series, or a field of a plate."""
    return any(f"{suffix}/" in lower for suffix in ZARR) and not Path(lower).suffix
