# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""OME-TIFF in several files, ImageJ's hyperstacks, and what their masks keep."""

from io import BytesIO

import numpy as np
import pytest

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import files_of, find_rasters, open_raster, open_tiff_raster
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tasks.segment import list_images


tifffile = pytest.importorskip("tifffile")
SPACE = 'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
FILES = [f"z{z}.ome.tif" for z in range(4)]


def described(own, names=FILES):
    """OME-XML of a volume, a slice in each file; `own` is the file's number."""
    ids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{i}" for i in range(len(names))]
    planes = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">{ids[z]}</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    uuid = "" if own is None else f'UUID="{ids[own]}"'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><OME {SPACE} {uuid}><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint8" SizeX="5" SizeY="6" SizeC="1" SizeZ="4" SizeT="1" PhysicalSizeX="0.25" '
        f'PhysicalSizeY="0.5" PhysicalSizeZ="2"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels>'
        f"</Image></OME>"
    )


def only(master):
    return f'<?xml version="1.0" encoding="UTF-8"?><OME {SPACE}><BinaryOnly MetadataFile="{master}" UUID="u"/></OME>'


def every(folder):
    return [described(z) for z in range(4)]


def master(folder):
    """Only the first file describes the others (OME-TIFF specification, sub-resolutions aside: BinaryOnly)."""
    return [described(0), *[only(FILES[0])] * 3]


def companion(folder):
    """A file of XML describes all (OME-TIFF specification: companion OME)."""
    (folder / "a.companion.ome").write_text(described(None))
    return [only("a.companion.ome")] * 4


def write(folder, make):
    folder.mkdir()
    for z, text in enumerate(make(folder)):
        pixels = np.full((6, 5), 50 * (z + 1), np.uint8)
        tifffile.imwrite(folder / FILES[z], pixels, photometric="minisblack", description=text, metadata=None)
    return folder


def pixels(raster):
    return np.stack([raster.read(plane, Window(0, 0, *raster.size)) for plane in range(raster.planes)])


@pytest.mark.parametrize("make", [every, master, companion])
def test_an_image_in_four_files_is_one_image(tmp_path, make):
    folder = write(tmp_path / "set", make)
    assert find_rasters(tmp_path) == [folder / FILES[0]]
    assert list_images([str(folder / name) for name in FILES]) == [str(folder / FILES[0])]
    for name in FILES:
        with open_raster(folder / name) as raster:
            assert pixels(raster)[:, 0, 0, 0].tolist() == [50, 100, 150, 200] and raster.volumetric
            assert raster.pixel_size == (0.5, 0.25) and raster.plane_distance == 2


@pytest.mark.parametrize("make", [every, master, companion])
def test_an_image_of_which_a_file_is_missing_is_refused(tmp_path, make):
    folder = write(tmp_path / "set", make)
    (folder / FILES[2]).unlink()
    with pytest.raises(UserError, match="z0.ome.tif is a part of an image in 4 files, of which z2.ome.tif is missing"):
        open_raster(folder / FILES[0])
    data = BytesIO((folder / FILES[1]).read_bytes())
    with pytest.raises(UserError, match="row 0 is a part of an image in several files"):
        open_tiff_raster(data, "row 0", None)


def test_a_part_whose_description_is_missing_is_refused_and_a_renamed_file_is_read(tmp_path):
    folder = write(tmp_path / "set", companion)
    (folder / "a.companion.ome").unlink()
    with pytest.raises(UserError, match="a.companion.ome describes, which is missing beside it"):
        open_raster(folder / FILES[0])
    text = described(0, ["before.ome.tif"]).replace('SizeZ="4"', 'SizeZ="1"')
    tifffile.imwrite(tmp_path / "now.ome.tif", np.full((6, 5), 7, np.uint8), description=text, metadata=None)
    assert (pixels(open_raster(tmp_path / "now.ome.tif")) == 7).all()


def test_a_run_knows_all_files_that_an_image_is_read_from(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    folder = write(tmp_path / "set", companion)
    assert files_of(str(folder / FILES[1])) == [
        str(folder / name) for name in (FILES[1], "a.companion.ome", FILES[0], *FILES[2:])
    ]
    for name, data in (("a.mhd", "a.raw"), ("b.nhdr", "b.raw.gz")):
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 6, 5), np.uint8)), str(tmp_path / name), name == "b.nhdr")
        assert files_of(str(tmp_path / name)) == [str(tmp_path / name), str(tmp_path / data)]
    assert files_of(str(tmp_path / "photo.png")) == [str(tmp_path / "photo.png")]
    (tmp_path / "photo.pgw").write_text("1\n0\n0\n-1\n0\n0\n")
    assert files_of(str(tmp_path / "photo.png")) == [str(tmp_path / name) for name in ("photo.png", "photo.pgw")]


def test_files_of_one_folder_that_are_images_of_their_own_stay_so(tmp_path):
    for name in ("a.ome.tif", "b.ome.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((6, 5), np.uint8), metadata={"axes": "YX"})
    assert [path.name for path in find_rasters(tmp_path)] == ["a.ome.tif", "b.ome.tif"]


HYPERSTACKS = {
    "times and slices": ("TZCYX", {"spacing": 2.0, "unit": "um", "finterval": 5.0}, (0.5, 0.25), 2.0),
    "slices": ("ZYX", {"spacing": 1.5, "unit": "micron"}, (0.5, 0.25), 1.5),
    "escaped unit": ("ZYX", {"spacing": 0.5, "unit": "\\u00B5m"}, (0.5, 0.25), 0.5),
    "millimetres": ("YX", {"unit": "mm"}, (500.0, 250.0), None),
    "pixels": ("TYX", {"finterval": 0.1, "unit": "pixel"}, None, None),
}


@pytest.mark.parametrize("case", HYPERSTACKS)
def test_a_mask_of_a_hyperstack_is_one_with_its_spacing_interval_and_unit(tmp_path, case):
    """ImageJ's TiffEncoder writes these lines into the description."""
    axes, metadata, pixel_size, distance = HYPERSTACKS[case]
    shape = [{"T": 2, "Z": 3, "C": 2, "Y": 6, "X": 5}[axis] for axis in axes]
    values = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, resolution=(4, 2), metadata={"axes": axes, **metadata})
    with open_raster(tmp_path / "a.tif") as raster:
        assert raster.pixel_size == pixel_size and raster.plane_distance == distance
        ids = (pixels(raster)[:, 0] % 5).astype(np.uint8)
        raster.write_labels(
            tmp_path / "mask.tif", lambda p, w: ids[p][w.slices], np.dtype(np.uint8), [[0, 0, 0], [9, 8, 7]]
        )
        assert [raster.position(p) for p in range(raster.planes)][-1] == (2 * ("Z" in axes), "T" in axes)
    with tifffile.TiffFile(tmp_path / "mask.tif") as file:
        kept = file.imagej_metadata
        assert {name: kept[name] for name in metadata} == metadata and kept["LUTs"][:, 1].tolist() == [9, 8, 7]
        assert file.series[0].axes == axes.replace("C", "") and np.array_equal(file.asarray().reshape(ids.shape), ids)
        assert file.pages[0].tags.valueof("XResolution") == (4, 1)
    with open_raster(tmp_path / "mask.tif") as mask:
        assert mask.pixel_size == pixel_size and mask.plane_distance == distance


def test_a_mask_of_times_keeps_the_increment(tmp_path):
    metadata = {
        "axes": "TYX",
        "TimeIncrement": 2.5,
        "TimeIncrementUnit": "s",
        "PhysicalSizeX": 0.25,
        "PhysicalSizeY": 0.5,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((2, 6, 5), np.uint8), metadata=metadata)
    with open_raster(tmp_path / "a.ome.tif") as raster:
        raster.write_labels(
            tmp_path / "mask.ome.tif", lambda p, w: np.zeros((w.height, w.width), np.uint8), np.dtype(np.uint8), None
        )
    with tifffile.TiffFile(tmp_path / "mask.ome.tif") as file:
        assert 'TimeIncrement="2.5"' in file.ome_metadata and 'TimeIncrementUnit="s"' in file.ome_metadata
