# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Chooses the reader of an image."""

import importlib.util
import os
from pathlib import Path

from ..image_files import find_images, walk
from ..image_processor import is_address
from .base import Raster
from .geotiff import GeoRaster
from .ome_zarr import ZarrRaster
from .pictures import PictureRaster
from .tiff import TiffRaster, is_georeferenced
from .volumes import VolumeRaster


TIFF = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi", ".scn", ".qptiff")
GEO = (".vrt", ".img")
VOLUME = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
ZARR = (".zarr",)


def lacks_tiff(name: str | os.PathLike) -> bool:
    """Whether a TIFF can only be read by Pillow here: the first page, without pixel size or georeference."""
    return os.fspath(name).lower().endswith(TIFF) and not (is_address(name) or is_raster(name))


def is_raster(name: str | os.PathLike) -> bool:
    """Whether the name is of a format with windows, planes or geometry.

    TIFFs are read by Pillow, their first page alone, where tifffile is not installed.
    """
    name = os.fspath(name).lower().rstrip("/")
    if is_address(name):
        return False
    if name.endswith(TIFF):
        return bool(importlib.util.find_spec("tifffile") and importlib.util.find_spec("zarr"))
    return name.endswith((*GEO, *VOLUME, *ZARR)) or (os.path.isdir(name) and bool(_dicom_files(Path(name))))


def open_raster(name: str | os.PathLike, axes: str | None = None, slice_axis: str = "z") -> Raster:
    """Opens an image of any format.

    Args:
        name (path or `str`): A file; a folder of OME-Zarr, or with a DICOM series; or an address of a picture.
        axes (`str`, *optional*): Of a TIFF that does not say what its axes are; see [`TiffRaster`].
        slice_axis (`str`, defaults to `"z"`): Of volumes; see [`VolumeRaster`].

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
    if lower.endswith(ZARR):
        return ZarrRaster(name)
    if lower.endswith(GEO):
        return GeoRaster(name)
    if lower.endswith(TIFF):
        return GeoRaster(name) if is_georeferenced(name) else TiffRaster(name, axes)
    return VolumeRaster(name, slice_axis)


def find_rasters(folder: Path) -> list[Path]:
    """Pictures of any format anywhere below a folder, sorted: files, OME-Zarr folders, folders with DICOM slices."""
    found: list[Path] = []
    inside: set[Path] = set()  # files that are parts of a folder that is a picture
    for here, folders, files in walk(folder):
        for name in [name for name in folders if name.lower().endswith(ZARR)]:
            found.append(here / name)
            folders.remove(name)
            inside.add(here / name)
        if _dicom_files(here):
            found.append(here)
        found += [here / n for n in files if n.lower().endswith((*GEO, *VOLUME[:-1], *TIFF))]
    pictures = [p for p in find_images(folder) if not any(parent in inside for parent in p.parents)]
    return sorted({*found, *pictures})


def _dicom_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() == ".dcm" and path.is_file()]
