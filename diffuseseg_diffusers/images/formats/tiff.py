# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""TIFF, BigTIFF, OME-TIFF, pyramids and slides, by tifffile."""

import math
import os
import re
import struct
import threading
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from ..lengths import MICROMETRES
from .base import WRITTEN, LabelReader, Raster, Window, broken, default_names, unique_names


_PLANES = "ZTIPRHLVEA"  # axes of which each step is a picture of its own: slices, times, pages, …
CHECKED = 512  # pages of a file that are looked at before it is read, and the last one
_CENTIMETRE = 3  # the only unit of resolution that is meant; of inches, files say what some program wrote by default


class TiffRaster(Raster):
    """A TIFF file, of which windows are decoded tile by tile, or strip by strip.

    Args:
        path (path or `BytesIO`): Of the file, or its bytes.
        axes (`str`, *optional*): What the axes are, a letter each, where the file does not say it: X, Y, C (or S) for
            channels, Z, T or I for planes.
        name (`str`, *optional*): What to call it in messages; its path if not given.

    Raises:
        UserError: The file is broken, or the meaning of an axis is unknown.
    """

    mask_suffix = ".tif"

    def __init__(self, path: str | os.PathLike | BytesIO, axes: str | None = None, name: str | None = None):
        try:
            import tifffile
            import zarr
        except ModuleNotFoundError as error:
            raise missing_extra("tiff", error.name) from error
        self.name, self._lock = name or str(path), threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
            series = max(self._file.series, key=_pixels)
            self._check_length(series)
            self._arrays: list[Any] = [zarr.open(level.aszarr(multiscales=False), mode="r") for level in series.levels]
        except UserError:
            raise
        except Exception as error:  # of broken files, tifffile raises what it stumbles over
            raise broken(self.name, error) from error
        self.axes = self._known(series.axes, axes)
        shape = dict(zip(self.axes, series.shape))
        self.height, self.width, self.dtype = shape["Y"], shape["X"], series.dtype
        self._plane_axes = [axis for axis in self.axes if axis in _PLANES]
        self._plane_shape = tuple(shape[axis] for axis in self._plane_axes)
        self.planes = math.prod(self._plane_shape)
        y = self.axes.index("Y")
        self.levels = tuple(self.height / level.shape[y] for level in series.levels)
        count = shape.get("C", 1) * shape.get("S", 1)
        self._ome = self._ome_pixels()
        self.channels = self._channel_names(count, series.keyframe)
        self.pixel_size = self._pixel_size(series.keyframe)
        if len(self._file.series) > 1:
            self.notes.append(
                f"{self.name} holds {len(self._file.series) - 1} more pictures (labels, previews, pages of another "
                f"size); the largest, {self.width} × {self.height}, is read."
            )
        self.volumetric = self._plane_axes == ["Z"]
        self.mask_suffix = ".ome.tif" if self._ome is not None else ".tif"

    def _check_length(self, series: Any) -> None:
        """Raises for truncated files, whose missing pixels would be read as black."""
        size = self._file.filehandle.size
        for level in series.levels:
            pages = [level.pages[i] for i in range(min(len(level.pages), CHECKED))] + [level.pages[-1]]
            for page in pages:
                ends = [at + n for at, n in zip(page.dataoffsets, page.databytecounts)] if page is not None else []
                if max(ends, default=0) > size:
                    raise UserError(f"{self.name} cannot be read (it is cut off after {size:,} bytes); copy it anew.")

    def _known(self, found: str, given: str | None) -> str:
        axes = given.upper() if given else found
        if len(axes) != len(found) or axes.count("X") != 1 or axes.count("Y") != 1 or len(set(axes)) < len(axes):
            raise UserError(
                f"{self.name} has the axes {found}, which {axes} does not name; give as many, X and Y once."
            )
        unknown = [axis for axis in axes if axis not in "XYCS" and axis not in _PLANES]
        if unknown:
            advice = found.replace(unknown[0], "C"), found.replace(unknown[0], "Z")
            raise UserError(
                f"{self.name} has the axes {found}, and what {unknown[0]} is the file does not say: pass --axes "
                f"{advice[0]} for channels, or --axes {advice[1]} for pages."
            )
        return axes

    def _ome_pixels(self) -> Any:
        """The element of OME-XML that describes the first picture, if the file has one."""
        if not self._file.is_ome:
            return None
        try:
            root = ET.fromstring(self._file.ome_metadata or "")
        except ET.ParseError:
            return None
        return root.find(".//{*}Pixels")

    def _channel_names(self, count: int, page: Any) -> tuple[str, ...]:
        if self._ome is not None:
            names = [channel.get("Name") for channel in self._ome.findall("{*}Channel")]
            if len(names) == count:
                return unique_names(names)
        if page.photometric == 2 and count > 3:  # what follows red, green and blue may be alpha, or infrared
            names = [*default_names(3), *map(str, range(3, count))]
        else:
            names = list(default_names(count)) if page.photometric == 2 or count == 1 else list(map(str, range(count)))
        alpha = [i for i, extra in enumerate(page.extrasamples) if int(extra) in (1, 2)]
        for i in alpha:  # extra samples come last
            names[count - len(page.extrasamples) + i] = "alpha"
        return tuple(names)

    def _pixel_size(self, page: Any) -> tuple[float, float] | None:
        if self._ome is not None:
            sizes = [
                float(self._ome.get(f"PhysicalSize{axis}")) * MICROMETRES[unit]
                for axis in "YX"
                if self._ome.get(f"PhysicalSize{axis}")
                and (unit := self._ome.get(f"PhysicalSize{axis}Unit", "µm")) in MICROMETRES
            ]
            return (sizes[0], sizes[1]) if len(sizes) == 2 else None
        aperio = re.search(r"\bMPP\s*=\s*([\d.]+)", page.description or "") if self._file.is_svs else None
        if aperio:
            return float(aperio[1]), float(aperio[1])
        tags = [page.tags.valueof(name) for name in ("YResolution", "XResolution")]
        unit = (self._file.imagej_metadata or {}).get("unit", "") if self._file.is_imagej else None
        unit = "µm" if unit in ("\\u00B5m", "micron", "µm") else unit
        micrometres = MICROMETRES.get(unit) if unit else None
        if unit is None and page.tags.valueof("ResolutionUnit") == _CENTIMETRE:
            micrometres = MICROMETRES["cm"]
        if micrometres is None or any(not tag or not tag[0] for tag in tags):
            return None
        return micrometres * tags[0][1] / tags[0][0], micrometres * tags[1][1] / tags[1][0]

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        at = dict(zip(self._plane_axes, np.unravel_index(plane, self._plane_shape))) if self._plane_axes else {}
        rows, columns = window.slices
        index = tuple({"Y": rows, "X": columns}.get(a, int(at[a]) if a in at else slice(None)) for a in self.axes)
        try:
            with self._lock:  # a file has one position
                values = np.asarray(self._arrays[level][index])
        except Exception as error:
            raise broken(self.name, error) from error
        left = [axis for axis in self.axes if axis not in at]
        order = [left.index(axis) for axis in (*(a for a in "CS" if a in left), "Y", "X")]
        values = values.transpose(order)
        return values.reshape(-1, *values.shape[-2:])  # [C,h,w]

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import tifffile

        shape = (*self._plane_shape, self.height, self.width)
        options: dict[str, Any] = dict(tile=(WRITTEN, WRITTEN), compression="zlib", dtype=dtype)
        metadata: dict[str, Any] = {"axes": "".join((*self._plane_axes, "Y", "X"))}
        if self._ome is not None:
            metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{Path(path).name} {shape}"))  # the same each time
            for axis in "XYZ":
                for name in (f"PhysicalSize{axis}", f"PhysicalSize{axis}Unit"):
                    if self._ome.get(name):
                        metadata[name] = self._ome.get(name)
            positions = self._positions()
            if positions:
                metadata["Plane"] = positions
        elif self.pixel_size is not None:
            options["resolution"] = tuple(1e4 / size for size in self.pixel_size[::-1])
            options["resolutionunit"] = "CENTIMETER"
        if palette and dtype == np.uint8 and self._ome is None:
            colours = np.zeros((3, 256), np.uint16)
            colours[:, : len(palette)] = np.array(palette, np.uint16).T * 257
            options |= {"photometric": "palette", "colormap": colours}
        else:
            options["photometric"] = "minisblack"
        downs = [round(down) for down in self.levels[1:]]
        big = math.prod(shape) * dtype.itemsize * 4 // 3 > 2**31
        with tifffile.TiffWriter(path, bigtiff=big, ome=self._ome is not None) as file:
            file.write(self._tiles(labels, 1, dtype), shape=shape, subifds=len(downs), metadata=metadata, **options)
            for down in downs:
                own = (*self._plane_shape, -(-self.height // down), -(-self.width // down))
                options.pop("resolution", None), options.pop("resolutionunit", None)
                file.write(self._tiles(labels, down, dtype), shape=own, subfiletype=1, metadata=None, **options)

    def _positions(self) -> dict | None:
        """Where the stage stood, of each plane of the mask; channels of one plane share it."""
        planes = [p for p in self._ome.findall("{*}Plane") if p.get("TheC", "0") == "0"]
        planes.sort(key=lambda p: (int(p.get("TheT", 0)), int(p.get("TheZ", 0))))
        names = [f"Position{axis}{unit}" for axis in "XYZ" for unit in ("", "Unit")]
        found = {name: [p.get(name) for p in planes] for name in names}
        whole = {name: values for name, values in found.items() if len(values) == self.planes and all(values)}
        return {n: [v if n.endswith("Unit") else float(v) for v in values] for n, values in whole.items()} or None

    def _tiles(self, labels: LabelReader, down: int, dtype: np.dtype) -> Iterator[np.ndarray]:
        """Tiles of a mask, or of every `down`-th row and column of it, plane after plane; the last ones padded."""
        side = WRITTEN * down
        for plane in range(self.planes):
            for top in range(0, self.height, side):
                for left in range(0, self.width, side):
                    window = Window(top, left, min(side, self.height - top), min(side, self.width - left))
                    own = labels(plane, window)[::down, ::down].astype(dtype)
                    yield np.pad(own, [(0, WRITTEN - n) for n in own.shape])

    def close(self) -> None:
        self._file.close()


def _pixels(series: Any) -> int:
    """Pixels of a plane of a series; 0 if it has none."""
    sides = dict(zip(series.axes, series.shape))
    return sides.get("X", 0) * sides.get("Y", 0)


def is_georeferenced(path: str | os.PathLike) -> bool:
    """Whether a TIFF is georeferenced.

    Raises:
        UserError: It is not a TIFF.
    """
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise missing_extra("tiff", error.name) from error
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages.first.is_geotiff
    except (tifffile.TiffFileError, struct.error, IndexError, ValueError, KeyError) as error:
        raise broken(str(path), error) from error
