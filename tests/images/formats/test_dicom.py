# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""DICOM folders as scanners and people leave them, written by pydicom; masks as pydicom reads them."""

import shutil

import numpy as np
import pytest

from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.formats.opening import find_rasters, is_raster, open_raster
from diffuseseg_diffusers.jobs.errors import UserError


pydicom = pytest.importorskip("pydicom")
pytest.importorskip("SimpleITK")
ROWS, COLUMNS = 6, 8


def write(path, value, z=0.0, number=1, **changes):
    """A slice of one value; tags are set or, if `None`, removed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    frames = changes.pop("frames", None)
    shape = (changes.get("Rows", ROWS), COLUMNS)
    pixels = (
        np.full(shape, value, np.uint16) if frames is None else np.stack([np.full(shape, i) for i in range(frames)])
    )
    meta, one = FileMetaDataset(), Dataset()
    meta.MediaStorageSOPClassUID = one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"1.2.3.4.{number}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.file_meta, one.Modality, one.PatientName, one.StudyInstanceUID = meta, "MR", "Doe^Jane", "1.2.3"
    one.SeriesInstanceUID, one.InstanceNumber, one.StudyID, one.SeriesNumber = "1.2.3.4", number, "7", 3
    one.ImagePositionPatient, one.ImageOrientationPatient = [5, 6, z], [1, 0, 0, 0, 1, 0]
    one.PixelSpacing, one.SliceThickness, one.SamplesPerPixel = [0.7, 0.5], 2, 1
    one.Rows, one.Columns, one.PhotometricInterpretation = *shape, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation, one.PixelData = 15, 0, pixels.astype(np.uint16).tobytes()
    if frames is not None:
        one.NumberOfFrames = frames
    for name, new in changes.items():
        if new is None:
            delattr(one, name)
        else:
            setattr(one, name, new)
    one.save_as(path, enforce_file_format=True)


def series(folder, names="{}.dcm", count=4, distance=2.5, **changes):
    """A slice for each number, `distance` mm apart; the value is the number."""
    for i in range(count):
        own = {name: change(i) if callable(change) else change for name, change in changes.items()}
        write(folder / names.format(i), i, own.pop("z", distance * i), i + 1, **own)


def phases(folder):
    for phase in (1, 2):
        for i in range(3):
            more = {"TemporalPositionIdentifier": phase}
            write(folder / f"{phase}{i}.dcm", i, 3 * i, 10 * phase + i, **more)


def with_copy(folder):
    series(folder)
    shutil.copy(folder / "2.dcm", folder / "2 copy.dcm")


def with_text(folder):
    series(folder)
    (folder / "DICOMDIR").write_bytes(b"nothing")
    (folder / "readme.txt").write_text("nothing")


READ = {
    "plain": (series, [0, 1, 2, 3], "DICOM PS3.3 C.7.6.2"),
    "no suffix": (lambda f: series(f, "IM{:05d}"), [0, 1, 2, 3], "DICOM PS3.10: names have no suffix on media"),
    "numbers as suffix": (lambda f: series(f, "1.2.840.{}"), [0, 1, 2, 3], "files named after their UID"),
    "IMA": (lambda f: series(f, "S.MR.{}.IMA"), [0, 1, 2, 3], "Siemens' suffix"),
    "head to feet": (lambda f: series(f, distance=-2.5), [3, 2, 1, 0], "PS3.3 C.7.6.2.1.1: order is by position"),
    "copied slice": (with_copy, [0, 1, 2, 3], "PS3.3 C.12.1: a SOPInstanceUID is of one slice"),
    "files that are none": (with_text, [0, 1, 2, 3], "PS3.10: the prefix DICM"),
    "rescaled each": (
        lambda f: series(f, RescaleSlope=lambda i: [1, 0.5][i % 2], RescaleIntercept=0),
        [0, 0.5, 2, 1.5],
        "PS3.3 C.11.1: the modality LUT is of a slice",
    ),
}


def pixels(raster):
    return np.stack([raster.read(plane, Window(0, 0, *raster.size)) for plane in range(raster.planes)])


@pytest.mark.parametrize("case", READ)
def test_a_folder_with_one_volume_is_read_in_the_order_of_its_slices(tmp_path, case):
    make, values, _ = READ[case]
    folder = tmp_path / "Series A"
    folder.mkdir()
    make(folder)
    assert is_raster(folder) and find_rasters(tmp_path) == [folder]
    with open_raster(folder) as raster:
        assert pixels(raster)[:, 0, 0, 0].tolist() == values and raster.size == (ROWS, COLUMNS)
        assert raster.pixel_size == pytest.approx((700, 500)) and raster.plane_distance == pytest.approx(2500)
        assert bool(raster.notes) == (case == "copied slice")


REFUSED = {
    "phases": (phases, r"it has 2 slices at each of 3 places \(TemporalPositionIdentifier 1, 2\)"),
    "film": (lambda f: series(f, distance=0), "all 4 slices lie at one place, as of a film"),
    "another pixel size": (
        lambda f: series(f, PixelSpacing=lambda i: [0.7, 0.5] if i < 2 else [1.4, 1]),
        r"0.dcm has the PixelSpacing 0.7\\0.5, but 2.dcm has 1.4\\1",
    ),
    "another size": (lambda f: series(f, Rows=lambda i: ROWS + 2 * (i == 1)), "0.dcm has the rows 6, but 1.dcm has 8"),
    "another orientation": (
        lambda f: series(f, ImageOrientationPatient=lambda i: [1, 0, 0, 0, 1, 0] if i else [0, 1, 0, 0, 0, -1]),
        "0.dcm has the ImageOrientationPatient .* but 1.dcm has",
    ),
    "two at one place": (lambda f: series(f, z=lambda i: [0, 2.5, 2.5, 5][i]), "1.dcm and 2.dcm lie at one place"),
    "a slice missing": (lambda f: series(f, z=lambda i: [0, 2.5, 5, 10][i]), "lie 5 mm, .* 2.5 mm: a slice is missing"),
    "a localizer": (lambda f: series(f, SeriesInstanceUID=lambda i: f"1.2.{3 + (i == 0)}"), "has 2 DICOM series"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_is_no_volume_is_refused_for_its_own_reason(tmp_path, case):
    make, reason = REFUSED[case]
    make(tmp_path)
    with pytest.raises(UserError, match=reason):
        open_raster(tmp_path)


def labels(plane, window):
    return np.full((window.height, window.width), plane % 3, np.uint8)


def test_a_mask_has_the_place_and_spacing_of_its_series_and_numbers_of_its_own(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    series(folder)
    with open_raster(folder) as raster:
        raster.write_labels(tmp_path / "mask", labels, np.dtype(np.uint8), None)
        again = open_raster(tmp_path / "mask")
    assert again.grid.matches(raster.grid) and pixels(again)[:, 0, 0, 0].tolist() == [0, 1, 2, 0]
    for i, path in enumerate(sorted((tmp_path / "mask").iterdir())):
        mask, source = pydicom.dcmread(path), pydicom.dcmread(folder / f"{i}.dcm")
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "StudyInstanceUID", "StudyID"):
            assert getattr(mask, name) == getattr(source, name), name
        assert mask.SpacingBetweenSlices == 2.5 and mask.SeriesNumber == 1003 and mask.InstanceNumber == i + 1
        assert mask.SeriesInstanceUID != source.SeriesInstanceUID and (mask.pixel_array == i % 3).all()


def test_a_mask_of_frames_keeps_their_distance(tmp_path):
    write(tmp_path / "m.dcm", 0, frames=4, SpacingBetweenSlices=2.5, StudyID=None)
    with open_raster(tmp_path / "m.dcm") as raster:
        assert pixels(raster)[:, 0, 0, 0].tolist() == [0, 1, 2, 3] and raster.plane_distance == 2500
        raster.write_labels(tmp_path / "mask.dcm", labels, np.dtype(np.uint8), None)
    mask = pydicom.dcmread(tmp_path / "mask.dcm")
    measures = mask.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SpacingBetweenSlices == 2.5 and measures.PixelSpacing == [0.7, 0.5]
    assert mask.StudyID == "1" and mask.pixel_array[:, 0, 0].tolist() == [0, 1, 2, 0]


def test_slices_of_a_tilted_gantry_lie_where_they_say(tmp_path):
    series(tmp_path, ImagePositionPatient=lambda i: [0, 0.8 * i, 3.0 * i])
    raster = open_raster(tmp_path)
    assert np.allclose(raster.grid.affine[:3, 0], [0, 0.8, 3]) and raster.plane_distance == pytest.approx(3000)
    assert "shifted against one another" in raster.notes[0]


def test_slices_without_places_follow_their_numbers(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    series(folder, count=11, ImagePositionPatient=None, ImageOrientationPatient=None)
    raster = open_raster(folder)
    assert pixels(raster)[:, 0, 0, 0].tolist() == list(range(11)) and raster.grid is None
    assert "have no positions; their order is that of InstanceNumber" in raster.notes[0]
    raster.write_labels(tmp_path / "mask", labels, np.dtype(np.uint8), None)
    assert pixels(open_raster(tmp_path / "mask"))[:, 0, 0, 0].tolist() == [i % 3 for i in range(11)]


@pytest.mark.parametrize("cut", [1, 50, 90])
def test_a_slice_that_is_cut_off_is_refused_in_a_series_too(tmp_path, cut):
    (tmp_path / "whole").mkdir()
    series(tmp_path / "whole", count=3)
    file = tmp_path / "whole" / sorted(p.name for p in (tmp_path / "whole").iterdir())[1]
    file.write_bytes(file.read_bytes()[:-cut])
    for path in (file, tmp_path / "whole"):
        with pytest.raises(UserError, match="cannot be read"):
            open_raster(path)


def test_pixels_that_are_not_there_are_not_taken_from_memory(tmp_path):
    series(tmp_path, count=1)
    file = tmp_path / "0.dcm"
    header = pydicom.dcmread(file)
    header.PixelData = header.PixelData[: len(header.PixelData) // 4 * 2]
    header.save_as(file)
    with pytest.raises(UserError, match="cut off after"):
        open_raster(file)
