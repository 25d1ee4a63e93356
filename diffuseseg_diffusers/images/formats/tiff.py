# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""TIFF, BigTIFF, OME-TIFF, pyramids and slides, by tifffile."""

import math
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from ..lengths import MICROMETRES
from .base import WRITTEN, LabelReader, Raster, Window, broken, default_names, unique_names
from .ome_tiff import open_whole, pixels_of
from .orientation import LYING, stored_window, turned
from .samples import Samples


_PLANES = "ZTIPRHLVEA"  # axes of which each step is a picture of its own: slices, times, pages, …
IN_MEMORY = 2**22  # bytes; smaller pictures are decoded at once, which is faster
CHECKED = 512  # pages of a file that are looked at before it is read, and the last one
_CENTIMETRE = 3  # the only unit of resolution that is meant; of inches, files say what some program wrote by default


_SPACES = {5: "CMYK", 6: "YCbCr", 8: "LAB", 9: "LAB"}  # by PhotometricInterpretation
_RAW = {32803: "values of a sensor (CFA)", 34892: "values of a sensor (LinearRaw)"}
_RAW |= {32844: "logarithms of luminance (LogL)", 32845: "logarithms of luminance (LogLuv)"}
_PLACE = (33550, 33922, 34264, 34735, 50844)  # scale, tie points, transformation, keys, RPCs
_JPEG = (6, 7, 34892, 33007)  # compressions that decode to RGB


class TiffRaster(Raster):
    """A TIFF file, of which windows are decoded tile by tile, or strip by strip.

    Args:
        file (`tifffile.TiffFile`): See [`open_tiff`].
        name (`str`): What to call it in messages.
        axes (`str`, *optional*): What the axes are, a letter each, where the file does not say it: X, Y, C (or S) for
            channels, Z, T or I for planes.

    Raises:
        UserError: The file is broken, or the meaning of an axis or of the values is unknown.
    """

    mask_suffix = ".tif"

    def __init__(self, file: Any, name: str, axes: str | None = None):
        self.name, self._file, self._lock = name, file, threading.Lock()
        try:
            series = max(file.series, key=_pixels)
            page = series.keyframe
            self._check_length(series)
            self._samples = self._appearance(page)
        except UserError:
            raise
        except Exception as error:  # of broken files, tifffile raises what it stumbles over
            raise broken(self.name, error) from error
        self._levels, self._arrays = list(series.levels), dict[int, Any]()
        self.axes = self._known(series.axes, axes)
        shape = dict(zip(self.axes, series.shape))
        self.dtype = self._samples.dtype(series.dtype)
        self.height, self.width = shape["Y"], shape["X"]
        self.orientation = 1 if self._file.is_ome else int(page.tags.valueof("Orientation", 1))
        if self.orientation in LYING:
            self.height, self.width = self.width, self.height
        self._plane_axes = [axis for axis in self.axes if axis in _PLANES]
        self._plane_shape = tuple(shape[axis] for axis in self._plane_axes)
        self.planes = math.prod(self._plane_shape)
        y = self.axes.index("Y")
        self.levels = tuple(shape["Y"] / level.shape[y] for level in series.levels)
        count = shape.get("C", 1) * shape.get("S", 1)
        self._ome = pixels_of(self._file)
        self._imagej = (self._file.imagej_metadata or {}) if self._file.is_imagej else None
        self.channels = self._samples.channels(self._channel_names(count, page))
        self.pixel_size = self._pixel_size(page)
        if self.pixel_size is not None and self.orientation in LYING:
            self.pixel_size = self.pixel_size[::-1]
        if 42113 in page.tags:  # GDAL's, of a file that lies nowhere
            self.nodata = float(page.nodata)
        if len(self._file.series) > 1:
            self.notes.append(
                f"{self.name} holds {len(self._file.series) - 1} more pictures (labels, previews, pages of another "
                f"size); the largest, {self.width} × {self.height}, is read."
            )
        if "Z" in self._plane_axes:
            self.plane_distance = self._plane_distance()
        if self._ome is not None and (absent := sum(page is None for page in series.pages)):
            self.notes.append(f"{self.name} lacks {absent} of {len(series.pages)} planes, which are read as black.")
        self.volumetric = self._plane_axes == ["Z"]
        self.mask_suffix = ".ome.tif" if self._ome is not None else ".tif"

    def _appearance(self, page: Any) -> Samples:
        """What its samples mean, by the tags of the specification (TIFF 6.0, its supplements, Aperio's)."""
        kind, bits = int(page.photometric), int(page.bitspersample)
        if kind in _RAW:
            raise UserError(f"{self.name} holds {_RAW[kind]}, which are no picture yet; develop and save it as RGB.")
        space = _SPACES.get(kind)
        if kind == 6 and page.compression in _JPEG:
            space = None  # is decoded to RGB
        elif page.compression == 33003:
            space = "YCbCr"
        elif kind == 5 and page.tags.valueof(332, 1) != 1:
            space = None
            self.notes.append(f"{self.name} holds other inks than cyan, magenta, yellow and black; each is a channel.")
        palette = None
        if kind == 3 and page.colormap is not None:
            colours = np.asarray(page.colormap).T  # [N,3]
            of_bytes = colours.max() < 256  # of writers that forget that colours have 16 bits; as libtiff does
            palette = (colours if of_bytes else colours >> 8).astype(np.uint8)
        if kind == 0 and bits == 1 and page.software.startswith("tifffile"):
            self.notes.append(
                f"{self.name} says that 0 is white (MinIsWhite), as tifffile writes arrays of booleans: what a viewer "
                f"shows white is taken for 1."
            )
        few = bits if bits < page.dtype.itemsize * 8 and page.dtype != bool else None
        if few and few > 8:
            self.notes.append(
                f"{self.name} has {few} bits, and 65,535 is taken for white; {2**few - 1:,} is, if you pass "
                f"--intensity_window 0 {2**few - 1}."
            )
        return Samples(self.name, few, kind == 0, palette, space)

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

    def _channel_names(self, count: int, page: Any) -> tuple[str, ...]:
        if self._ome is not None:
            names = [channel.get("Name") for channel in self._ome.findall("{*}Channel")]
            if len(names) == count:
                return unique_names(names)
        if page.photometric == 2 and count > 3:  # what follows red, green and blue may be alpha, or infrared
            names = [*default_names(3), *map(str, range(3, count))]
        else:
            names = list(default_names(count)) if page.photometric == 2 or count == 1 else list(map(str, range(count)))
            if count == 2 and page.extrasamples:
                names[0] = "gray"
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
        micrometres = self._imagej_unit()
        if self._imagej is None and page.tags.valueof("ResolutionUnit") == _CENTIMETRE:
            micrometres = MICROMETRES["cm"]
        if micrometres is None or any(not tag or not tag[0] for tag in tags):
            return None
        return micrometres * tags[0][1] / tags[0][0], micrometres * tags[1][1] / tags[1][0]

    def _imagej_unit(self) -> float | None:
        """Micrometres of the unit that ImageJ wrote."""
        unit = str((self._imagej or {}).get("unit", "")).replace("\\u00B5", "µ")
        return MICROMETRES.get({"microns": "micron"}.get(unit, unit))

    def _plane_distance(self) -> float | None:
        """Micrometres from slice to slice, where the file says it."""
        if self._ome is not None:
            size, unit = self._ome.get("PhysicalSizeZ"), self._ome.get("PhysicalSizeZUnit", "µm")
            return float(size) * MICROMETRES[unit] if size and unit in MICROMETRES else None
        size, micrometres = (self._imagej or {}).get("spacing"), self._imagej_unit()
        return float(size) * micrometres if size and micrometres else None

    def position(self, plane: int) -> tuple[int, int]:
        shape, z, t = self._plane_shape, 0, 0
        for axis, length, at in zip(self._plane_axes, shape, np.unravel_index(plane, shape) if shape else ()):
            z, t = (z, int(at)) if axis == "T" else (z * length + int(at), t)
        return z, t

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        return turned(self._samples.shown(self._stored(plane, window, level)), self.orientation)

    def read_ids(self, plane: int, window: Window) -> np.ndarray:
        return turned(self._samples.shown(self._stored(plane, window, 0), numbers=True), self.orientation)

    def _stored(self, plane: int, window: Window, level: int) -> np.ndarray:
        """What is stored of a window of the upright picture, `[C, h, w]`."""
        at = dict(zip(self._plane_axes, np.unravel_index(plane, self._plane_shape))) if self._plane_axes else {}
        down = self.levels[level]
        rows, columns = stored_window(window, self.orientation, round(self.height / down), round(self.width / down))
        index = tuple({"Y": rows, "X": columns}.get(a, int(at[a]) if a in at else slice(None)) for a in self.axes)
        try:
            with self._lock:  # a file has one position
                values = np.asarray(self._array(level)[index])
        except Exception as error:
            raise broken(self.name, error) from error
        left = [axis for axis in self.axes if axis not in at]
        order = [left.index(axis) for axis in (*(a for a in "CS" if a in left), "Y", "X")]
        values = values.transpose(order)
        return values.reshape(-1, *values.shape[-2:])

    def _array(self, level: int) -> Any:
        """A level: in memory if it is small, else read by windows."""
        import zarr

        if level not in self._arrays:
            own = self._levels[level]
            if own.nbytes <= IN_MEMORY:
                self._arrays[level] = own.asarray()
            else:
                store = own.aszarr(multiscales=False)
                self._arrays[level] = zarr.open(store, mode="r" if store.read_only else "r+")  # bytes are writable
        return self._arrays[level]

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import tifffile

        if self._imagej is not None and dtype.itemsize < 4 and set(self._plane_axes) <= {"T", "Z"}:
            self._write_imagej(path, labels, dtype, palette)
            return
        shape = (*self._plane_shape, self.height, self.width)
        options: dict[str, Any] = dict(tile=(WRITTEN, WRITTEN), compression="zlib", dtype=dtype)
        metadata: dict[str, Any] = {"axes": "".join((*self._plane_axes, "Y", "X"))}
        if self._ome is not None:
            metadata["UUID"] = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{Path(path).name} {shape}"))  # the same each time
            for axis in "XYZ":
                for name in (f"PhysicalSize{axis}", f"PhysicalSize{axis}Unit"):
                    if self._ome.get(name):
                        metadata[name] = self._ome.get(name)
            for name in ("TimeIncrement", "TimeIncrementUnit"):
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

    def _write_imagej(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        """Writes a hyperstack, as ImageJ does: a plane at a time, with spacing, interval and unit."""
        import tifffile

        assert self._imagej is not None
        kept = ("spacing", "unit", "finterval", "fps", "xorigin", "yorigin", "zorigin")
        metadata: dict[str, Any] = {name: self._imagej[name] for name in kept if name in self._imagej}
        metadata["axes"] = "".join((*self._plane_axes, "Y", "X"))
        if palette:
            table = np.zeros((3, 256), np.uint8)
            table[:, : len(palette)] = np.array(palette, np.uint8).T
            metadata["LUTs"] = [table]
        tags = self._file.pages.first.tags
        sides = [tags.valueof(name) for name in ("XResolution", "YResolution")]
        options: dict[str, Any] = {}
        if all(side and side[1] for side in sides):
            options["resolution"] = tuple(side[0] / side[1] for side in sides)
        planes = (labels(p, Window(0, 0, self.height, self.width)).astype(dtype) for p in range(self.planes))
        with tifffile.TiffWriter(path, imagej=True) as file:
            shape = (*self._plane_shape, self.height, self.width)
            file.write(planes, shape=shape, dtype=dtype, compression="zlib", metadata=metadata, **options)

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


def open_tiff(source: str | os.PathLike | BytesIO, name: str) -> Any:
    """Opens a TIFF, or its bytes, as `tifffile.TiffFile`.

    Raises:
        UserError: It is not a TIFF, or the package that reads it is missing.
    """
    try:
        import tifffile
        import zarr  # noqa: F401 (large ones are read through it)
    except ModuleNotFoundError as error:
        raise missing_extra("tiff", error.name) from error
    try:
        file = tifffile.TiffFile(source)
        file.pages.first  # noqa: B018 (is read)
        return open_whole(file, None if isinstance(source, BytesIO) else Path(source), name) if file.is_ome else file
    except UserError:
        raise
    except Exception as error:  # of broken files, tifffile raises what it stumbles over
        raise broken(name, error) from error


def lies_somewhere(file: Any) -> bool:
    """Whether tags of GeoTIFF or RPCs say where an open TIFF lies."""
    return any(tag in file.pages.first.tags for tag in _PLACE)


def is_decodable(file: Any) -> bool:
    """Whether the packages that are installed decompress an open TIFF; tifffile needs imagecodecs for most."""
    import tifffile

    page = max(file.series, key=_pixels).keyframe
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression], tifffile.TIFF.UNPREDICTORS[page.predictor]
    except KeyError:
        return False
    return True


def _pixels(series: Any) -> int:
    """Pixels of a plane of a series; 0 if it has none."""
    sides = dict(zip(series.axes, series.shape))
    return sides.get("X", 0) * sides.get("Y", 0)
