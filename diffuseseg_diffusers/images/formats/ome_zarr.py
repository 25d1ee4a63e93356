# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""OME-Zarr (NGFF 0.4 and 0.5), by zarr."""

import json
import math
import os
import struct
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ...jobs.errors import UserError
from ...jobs.install import missing_extra
from ..grids import STAGE, Grid
from ..lengths import MICROMETRES
from .base import WRITTEN, LabelReader, Raster, Window, broken, default_names, unique_names, windows_over


class ZarrRaster(Raster):
    """The picture of an OME-Zarr folder, with its resolutions.

    Args:
        path (path): Of the folder; also of one that bioformats2raw wrote, or of a plate, with one picture in it.

    Raises:
        UserError: The folder is not a valid OME-Zarr, or holds several pictures.
    """

    mask_suffix = ".ome.zarr"
    mask_is_folder = True

    def __init__(self, path: str | os.PathLike):
        try:
            import zarr
        except ModuleNotFoundError as error:
            raise missing_extra("zarr", error.name) from error
        self.name = str(path)
        pictures = zarr_pictures(Path(path))
        if len(pictures) > 1:
            raise UserError(
                f"{self.name} holds {len(pictures)} pictures, and one is read; name it, such as {pictures[0]}."
            )
        self._path = pictures[0]
        try:
            group: Any = zarr.open_group(os.fspath(self._path), mode="r")
            attributes = dict(group.attrs)
            self._version3 = "ome" in attributes
            attributes = attributes.get("ome", attributes)
            scales = (attributes.get("multiscales") or [None])[0]
            if scales is None:
                raise UserError(f"{self.name} is no OME-Zarr: its attributes have no multiscales.")
            arrays = [group[dataset["path"]] for dataset in scales["datasets"]]
        except UserError:
            raise
        except Exception as error:
            raise broken(self.name, error) from error
        self._axes = [a if isinstance(a, dict) else {"name": a} for a in scales.get("axes", [])]
        names = [str(axis["name"]).lower() for axis in self._axes]
        shape = dict(zip(names, arrays[0].shape))
        if len(names) != arrays[0].ndim or not {"y", "x"} <= set(names) <= set("tczyx"):
            raise UserError(
                f"{self.name} has the axes {', '.join(names) or 'of no name'} for {arrays[0].ndim} dimensions; "
                f"what is known is t, c, z, y and x."
            )
        self._names, self._scales = names, scales
        self.height, self.width, self.dtype = shape["y"], shape["x"], arrays[0].dtype
        self._plane_axes = [name for name in names if name in "tz"]
        self._plane_shape = tuple(shape[name] for name in self._plane_axes)
        self.volumetric = [name for name in self._plane_axes if shape[name] > 1] == ["z"]
        self.planes = math.prod(self._plane_shape)
        # Resolutions with fewer slices have other planes.
        across = [names.index("y"), names.index("x")]
        planes = [np.delete(array.shape, across).tolist() for array in arrays]
        self._arrays = [array for array, own in zip(arrays, planes) if own == planes[0]]
        self.levels = tuple(self.height / array.shape[across[0]] for array in self._arrays)
        labelled = [c.get("label") for c in (attributes.get("omero") or {}).get("channels", [])]
        count = shape.get("c", 1)
        self.channels = unique_names(labelled) if len(labelled) == count else default_names(count)
        self._scale, self._translation = self._transforms()
        self._measure()

    def _transforms(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and translation of the finest resolution, each a number for each axis.

        Transformations of the array come first, then those of all resolutions, each applied to what was before.
        """
        scale, translation = np.ones(len(self._names)), np.zeros(len(self._names))
        for holder in (self._scales["datasets"][0], self._scales):
            for transform in holder.get("coordinateTransformations") or []:
                values = transform.get(transform["type"])
                if transform["type"] == "scale" and values is not None:
                    scale, translation = scale * values, translation * values
                elif transform["type"] == "translation" and values is not None:
                    translation = translation + values
                elif transform["type"] != "identity":
                    raise UserError(
                        f"{self.name} has a transformation of type {transform['type']!r} that is not read; write scale "
                        f"and translation as lists."
                    )
        return scale, translation

    def _measure(self) -> None:
        """Sets sizes of pixels and the grid, if the file says the unit of each axis in space."""
        place = {name: i for i, name in enumerate(self._names)}
        units = {n: MICROMETRES.get(self._axes[place[n]].get("unit") or "") for n in "zyx" if n in place}
        size = {n: float(self._scale[place[n]]) * unit for n, unit in units.items() if unit}
        if {"y", "x"} <= set(size):
            self.pixel_size = size["y"], size["x"]
        self.plane_distance = size.get("z")
        if set(size) != set(units) or any(self._plane_shape[i] > 1 for i, n in enumerate(self._plane_axes) if n == "t"):
            return
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for column, name in enumerate("zyx"):
            affine[2 - column, column] = size.get(name, 1.0)
            if name in place:
                affine[2 - column, 3] = self._translation[place[name]] * (units[name] or 1.0)
        if (affine[:3, :3] > 0).sum() == 3:
            self.grid = Grid((self.planes, self.height, self.width), affine, STAGE)

    def position(self, plane: int) -> tuple[int, int]:
        at = dict(zip(self._plane_axes, np.unravel_index(plane, self._plane_shape))) if self._plane_axes else {}
        return int(at.get("z", 0)), int(at.get("t", 0))

    def _index(self, plane: int, window: Window, names: Sequence[str]) -> tuple[int | slice, ...]:
        """Where a window of a plane lies in an array of some axes."""
        z, t = self.position(plane)
        rows, columns = window.slices
        known: dict[str, int | slice] = {"z": z, "t": t, "y": rows, "x": columns}
        return tuple(known.get(name, slice(None)) for name in names)

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        index = self._index(plane, window, self._names)
        self._check_chunks(self._arrays[level], index)
        try:
            values = np.asarray(self._arrays[level][index])
        except Exception as error:  # a chunk that is cut off; each codec has errors of its own
            raise broken(self.name, error) from error
        left = [name for name in self._names if name not in "tz"]
        order = [left.index(name) for name in "cyx" if name in left]
        return values.transpose(order).reshape(-1, window.height, window.width)

    def _check_chunks(self, array: Any, index: tuple) -> None:
        """Raises for truncated Blosc chunks, which would silently decode to zeros."""
        if not any("blosc" in type(codec).__name__.lower() for codec in array.compressors) or array.shards is not None:
            return
        touched = [
            range(part, part + 1)
            if isinstance(part, int)
            else range(part.start or 0, side if part.stop is None else part.stop)
            for part, side in zip(index, array.shape)
        ]
        chunks = [range(r.start // c, (r.stop - 1) // c + 1) for r, c in zip(touched, array.chunks)]
        for place in product(*chunks):
            file = Path(self._path, array.path, array.metadata.encode_chunk_key(place))
            if file.is_file():  # one that is not there is empty
                with open(file, "rb") as opened:
                    head = opened.read(16)
                if len(head) < 16 or struct.unpack("<I", head[12:])[0] > file.stat().st_size:
                    raise UserError(
                        f"{self.name} cannot be read (the chunk {file.name} is cut off); repair or remove it."
                    )

    def write_labels(
        self, path: Path, labels: LabelReader, dtype: np.dtype, palette: Sequence[Sequence[int]] | None
    ) -> None:
        import zarr

        kept = [i for i, name in enumerate(self._names) if name != "c"]
        names = [self._names[i] for i in kept]
        sizes = {"y": self.height, "x": self.width, **dict(zip(self._plane_axes, self._plane_shape))}
        chunks = tuple(1 if name in "tz" else min(WRITTEN, sizes[name]) for name in names)
        form: Any = 3 if self._version3 else 2
        group: Any = zarr.open_group(os.fspath(path), mode="w", zarr_format=form)
        options: dict[str, Any] = {"name": "default" if form == 3 else "v2", "separator": "/"}
        options = {"chunk_key_encoding": options}
        if form == 3:
            options["dimension_names"] = [self._axes[i]["name"] for i in kept]
        array = group.create_array("0", shape=tuple(sizes[n] for n in names), chunks=chunks, dtype=dtype, **options)
        turned = names.index("x") < names.index("y")
        for plane in range(self.planes):
            for window in windows_over(self.height, self.width):
                own = labels(plane, window).astype(dtype)
                array[self._index(plane, window, names)] = own.T if turned else own
        transforms = [
            {"type": "scale", "scale": self._scale[kept].tolist()},
            {"type": "translation", "translation": self._translation[kept].tolist()},
        ]
        multiscales = {
            "name": Path(self.name).name,
            "axes": [self._axes[i] for i in kept],
            "datasets": [{"path": "0", "coordinateTransformations": transforms}],
        }
        colours = [{"label-value": i, "rgba": [*colour, 255]} for i, colour in enumerate(palette or ())]
        image_label: dict[str, Any] = {"colors": colours} if colours else {}
        described: dict[str, Any] = {"multiscales": [multiscales], "image-label": image_label}
        if form == 2:
            multiscales["version"] = image_label["version"] = "0.4"
            group.attrs.update(described)
        else:
            group.attrs["ome"] = {"version": "0.5", **described}


def zarr_pictures(path: Path) -> list[Path]:
    """The pictures in an OME-Zarr folder: itself, the series that bioformats2raw wrote, or the fields of a plate."""
    attributes = _attributes(path)
    if "plate" in attributes:
        wells = [path / well["path"] for well in attributes["plate"].get("wells", [])]
        fields = [(w, image) for w in wells for image in (_attributes(w).get("well") or {}).get("images", [])]
        return [well / image["path"] for well, image in fields] or [path]
    if "bioformats2raw.layout" in attributes:
        series = _attributes(path / "OME").get("series")
        if series is None:
            series = sorted((p.name for p in path.iterdir() if p.name.isdigit()), key=int)
        return [path / name for name in series] or [path]
    return [path]


def _attributes(folder: Path) -> dict[str, Any]:
    """Attributes of a group, of version 0.4 or 0.5; none if they cannot be read."""
    for name in ("zarr.json", ".zattrs"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found = found.get("attributes", {}) if name == "zarr.json" else found
        return found.get("ome", found)
    return {}
