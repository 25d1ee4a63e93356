# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures of every format, written by the libraries of their fields."""

import locale

import numpy as np
import pytest


def values(channels=3, height=70, width=90, planes=None, seed=0, dtype=np.uint8):
    """`[(planes,) channels, height, width]`."""
    shape = (channels, height, width) if planes is None else (planes, channels, height, width)
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def stripes(plane, window):
    """Labels that depend on plane, row and column."""
    rows, columns = (np.arange(s.start, s.stop) for s in window.slices)
    return ((rows[:, None] // 7 + columns // 11 + plane) % 3).astype(np.uint8)


def ome_tiff(path, pixels, names=None, pyramid=True, axes="CYX"):
    tifffile = pytest.importorskip("tifffile")
    metadata = {"axes": axes, "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250.0}
    metadata |= {"PhysicalSizeYUnit": "nm"}
    if names:
        metadata["Channel"] = {"Name": names}
        places = {"PositionX": [1.5], "PositionY": [-2.5], "PositionXUnit": ["mm"], "PositionYUnit": ["mm"]}
        metadata["Plane"] = {name: value * len(names) for name, value in places.items()}
    with tifffile.TiffWriter(path, ome=True) as file:
        options = dict(tile=(32, 32), photometric="minisblack", compression="zlib")
        file.write(pixels, subifds=int(pyramid), metadata=metadata, **options)
        if pyramid:
            file.write(pixels[..., ::2, ::2], subfiletype=1, **options)
    return path


def geotiff(path, pixels, nodata=None, rotation=30, crs="EPSG:32633", overviews=()):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.transform import Affine

    transform = Affine.translation(500000, 4100000) @ Affine.rotation(rotation) @ Affine.scale(10, -10)
    options = dict(height=pixels.shape[1], width=pixels.shape[2], count=len(pixels), dtype=pixels.dtype, nodata=nodata)
    options |= dict(driver="GTiff", crs=crs, transform=transform, tiled=True, blockxsize=32, blockysize=32)
    with rasterio.open(path, "w", **options) as file:
        file.write(pixels)
        file.descriptions = tuple(f"band{i}" for i in range(len(pixels)))
        if overviews:
            file.build_overviews(list(overviews))
    return path


def ome_zarr(path, pixels, form=2):
    """`[z, c, y, x]`, with scale and translation."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w", zarr_format=form)
    group.create_array("full", shape=pixels.shape, chunks=(1, 1, 32, 32), dtype=pixels.dtype)[:] = pixels
    half = pixels[..., ::2, ::2]
    group.create_array("half", shape=half.shape, chunks=(1, 1, 32, 32), dtype=pixels.dtype)[:] = half
    axes = [{"name": "z", "type": "space", "unit": "micrometer"}, {"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    transforms = [
        {"type": "scale", "scale": [2.0, 1.0, 0.3, 0.4]},
        {"type": "translation", "translation": [5, 0, 7, 9]},
    ]
    datasets = [{"path": path, "coordinateTransformations": transforms} for path in ("full", "half")]
    multiscales = [{"axes": axes, "datasets": datasets}]
    channels = {"omero": {"channels": [{"label": f"stain{i}"} for i in range(pixels.shape[1])]}}
    if form == 2:
        multiscales[0]["version"] = "0.4"
        group.attrs.update({"multiscales": multiscales, **channels})
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales, **channels}
    return path


def volume(planes=5, height=20, width=24, seed=0):
    """An oblique `SimpleITK.Image` of int16."""
    sitk = pytest.importorskip("SimpleITK")
    pixels = (np.random.default_rng(seed).normal(size=(planes, height, width)) * 300).astype(np.int16)
    image = sitk.GetImageFromArray(pixels)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((10.0, -20.0, 30.0))
    c, s = np.cos(0.3), np.sin(0.3)
    image.SetDirection((c, -s, 0, s, c, 0, 0, 0, 1))
    return image


def dicom_series(folder, image, names=None, skip=(), moved=None):
    """A series whose files are named out of order."""
    sitk = pytest.importorskip("SimpleITK")
    before = locale.setlocale(locale.LC_ALL)  # GDCM changes it
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    depth = image.GetSize()[2]
    names = names or [f"{(i * 3) % depth}-{i}" for i in range(depth)]
    direction = image.GetDirection()
    turned = [direction[i] for i in (0, 3, 6, 1, 4, 7)]
    for i in range(depth):
        if i in skip:
            continue
        position = image.TransformContinuousIndexToPhysicalPoint((0.0, 0.0, (moved or {}).get(i, float(i))))
        one = image[:, :, i]
        tags = {"0008|0060": "CT", "0020|000d": "1.2.3.4", "0020|000e": "1.2.3.4.5", "0008|0018": f"1.2.3.4.5.{i + 1}"}
        tags |= {"0020|0013": str(i + 1), "0020|0032": "\\".join(map(str, position)), "0010|0010": "Doe^Jane"}
        tags |= {"0020|0037": "\\".join(map(str, turned)), "0020|0052": "1.2.3.9", "0018|0050": "2.5"}
        tags |= {"0028|1052": "-1024", "0028|1053": "1"}
        for key, value in tags.items():
            one.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{names[i]}.dcm"))
        writer.Execute(one)
    locale.setlocale(locale.LC_ALL, before)
    return folder
