# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""OME-Zarr (NGFF 0.4 and 0.5), by zarr."""

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
from ..lengths import MICROMETRES
from .base import WRITTEN, LabelReader, Raster, Window, broken, default_names, unique_names, windows_over


class ZarrRaster(Raster):
    """The picture of an OME-Zarr folder, with its resolutions.

    Args:
        path (path): Of the folder.

    Raises:
        UserError: The folder is not a valid OME-Zarr.
    """

    mask_suffix = ".ome.zarr"
    mask_is_folder = True

    def __init__(self, path: str | os.PathLike):
        try:
            import zarr
        except ModuleNotFoundError as error:
            raise missing_extra("zarr", error.name) from error
        self.name = str(path)
        try:
            group: Any = zarr.open_group(os.fspath(path), mode="r")
            attributes = dict(group.attrs)
            self._version3 = "ome" in attributes
            attributes = attributes.get("ome", attributes)
            scales = (attributes.get("multiscales") or [None])[0]
            if scales is None:
                raise UserError(f"{self.name} is no OME-Zarr: its attributes have no multiscales.")
            self._arrays = [group[dataset["path"]] for dataset in scales["datasets"]]
        except UserError:
            raise
        except Exception as error:
            raise broken(self.name, error) from error
        self._axes = [a if isinstance(a, dict) else {"name": a} for a in scales.get("axes", [])]
        names = [axis["name"] for axis in self._axes]
        shape = dict(zip(names, self._arrays[0].shape))
        if len(names) != self._arrays[0].ndim or not {"y", "x"} <= set(names) <= set("tczyx"):
            raise UserError(
                f"{self.name} has the axes {', '.join(names) or 'of no name'} for {self._arrays[0].ndim} dimensions; "
                f"what is known is t, c, z, y and x."
            )
        self._names, self._scales = names, scales
        self.height, self.width, self.dtype = shape["y"], shape["x"], self._arrays[0].dtype
        self._plane_axes = [name for name in names if name in "tz"]
        self._plane_shape = tuple(shape[name] for name in self._plane_axes)
        self.volumetric = self._plane_axes == ["z"]
        self.planes = math.prod(self._plane_shape)
        self.levels = tuple(self.height / array.shape[names.index("y")] for array in self._arrays)
        labelled = [c.get("label") for c in (attributes.get("omero") or {}).get("channels", [])]
        count = shape.get("c", 1)
        self.channels = unique_names(labelled) if len(labelled) == count else default_names(count)
        units = [self._axes[names.index(axis)].get("unit") for axis in "yx"]
        if all(unit in MICROMETRES for unit in units):
            scale = self._transform("scale")
            self.pixel_size = tuple(scale[names.index(a)] * MICROMETRES[u] for a, u in zip("yx", units))  # type: ignore

    def _transform(self, kind: str) -> list[float]:
        """Scale or translation of the finest resolution, a number for each axis."""
        found = [0.0 if kind == "translation" else 1.0] * len(self._names)
        both = (self._scales["datasets"][0].get("coordinateTransformations", []), self._scales)
        for transforms in (both[0], both[1].get("coordinateTransformations", [])):
            for transform in transforms:
                if transform["type"] == kind:
                    pairs = zip(found, transform[kind])
                    found = [a + b if kind == "translation" else a * b for a, b in pairs]
        return found

    def read(self, plane: int, window: Window, level: int = 0) -> np.ndarray:
        at = dict(zip(self._plane_axes, np.unravel_index(plane, self._plane_shape))) if self._plane_axes else {}
        rows, columns = window.slices
        index = tuple({"y": rows, "x": columns}.get(n, int(at[n]) if n in at else slice(None)) for n in self._names)
        self._check_chunks(self._arrays[level], index)
        try:
            values = np.asarray(self._arrays[level][index])
        except Exception as error:  # a chunk that is cut off; each codec has errors of its own
            raise broken(self.name, error) from error
        left = [name for name in self._names if name not in at]
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
            file = Path(self.name, array.path, array.metadata.encode_chunk_key(place))
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
        shape = (*self._plane_shape, self.height, self.width)
        chunks = (*(1 for _ in self._plane_shape), min(WRITTEN, self.height), min(WRITTEN, self.width))
        form: Any = 3 if self._version3 else 2
        group: Any = zarr.open_group(os.fspath(path), mode="w", zarr_format=form)
        keys = {"name": "v2", "separator": "/"} if form == 2 else {"name": "default", "separator": "/"}
        array = group.create_array("0", shape=shape, chunks=chunks, dtype=dtype, chunk_key_encoding=keys)
        for plane in range(self.planes):
            at = tuple(int(i) for i in np.unravel_index(plane, self._plane_shape)) if self._plane_axes else ()
            for window in windows_over(self.height, self.width):
                array[(*at, *window.slices)] = labels(plane, window).astype(dtype)
        transforms = [
            {"type": kind, kind: [self._transform(kind)[i] for i in kept]} for kind in ("scale", "translation")
        ]
        multiscales = {
            "name": Path(self.name).name,
            "axes": [self._axes[i] for i in kept],
            "datasets": [{"path": "0", "coordinateTransformations": transforms}],
        }
        colours = [{"label-value": i, "rgba": [*colour, 255]} for i, colour in enumerate(palette or ())]
        described: dict[str, Any] = {"multiscales": [multiscales], "image-label": {"colors": colours}}
        if form == 2:
            multiscales["version"] = described["image-label"]["version"] = "0.4"
            group.attrs.update(described)
        else:
            group.attrs["ome"] = {"version": "0.5", **described}
