# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import os

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from diffuseseg_diffusers import UserError, open_raster
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.images.formats.base import Window
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.labeling import pictures
from diffuseseg_diffusers.labeling.pictures import find_pictures


def save(path, size=(8, 10), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], 100).save(path)
    return path


def test_pictures_of_any_format_are_found_in_all_folders(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "deep" / "er" / "b.jpg", mode="RGB")
    values = np.arange(3 * 80, dtype=np.uint16).reshape(8, 10, 3) * 200
    tifffile.imwrite(tmp_path / "c.tif", values, photometric="rgb")
    (tmp_path / "notes.txt").write_text("no picture")
    found, left_out, notes = find_pictures(tmp_path, (8, 10))
    assert list(found) == ["a.png", "c.tif", "deep/er/b.jpg"] and not left_out and not notes
    assert all(p.size == (8, 10) for p in found.values())
    assert found["c.tif"].shown(InputChannels())[0].size == (10, 8)


def test_links_that_lead_out_of_the_folder_are_left_out(tmp_path):
    outside = save(tmp_path / "secret.png")
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").symlink_to(outside)
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "in" / "a.png")
    found, left_out, notes = find_pictures(tmp_path / "in")
    assert list(found) == ["a.png", "c.png"]
    assert left_out == {"b.png": "is a link that leads out of the folder"}
    assert notes == ["1 of 3 pictures are left out: b.png is a link that leads out of the folder"]


def test_broken_and_huge_ones_are_left_out_with_the_reason(tmp_path, monkeypatch):
    save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    (tmp_path / "empty.jpg").write_bytes(b"")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    save(tmp_path / "huge.png", (10, 11))
    found, left_out, notes = find_pictures(tmp_path)
    assert list(found) == ["a.png"] and sorted(left_out) == ["broken.png", "empty.jpg", "huge.png"]
    assert left_out["huge.png"] == "has 11 x 10 pixels, 100 are the most; cut it into pieces"
    assert notes[0].startswith("3 of 4 pictures are left out: broken.png")


def test_a_folder_without_pictures_is_refused_and_says_why(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        find_pictures(tmp_path / "none")
    with pytest.raises(UserError, match="There are no pictures in .* that can be labelled."):
        find_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="that can be labelled: broken.png "):
        find_pictures(tmp_path)


def test_what_is_squeezed_gets_a_line(tmp_path):
    save(tmp_path / "a.png", (40, 40))
    save(tmp_path / "b.png", (10, 10))
    notes = find_pictures(tmp_path, (10, 10))[2]
    assert notes[0].startswith("1 pictures are 4 times as large as what the model sees (10 x 10) or larger, a.png")
    save_stack(tmp_path / "stack.tif")
    assert find_pictures(tmp_path, (2, 2))[2][0].startswith("8 pictures are 4 times as large")


def test_a_picture_that_changed_its_size_is_named(tmp_path):
    save(tmp_path / "a.png")
    picture = find_pictures(tmp_path)[0]["a.png"]
    save(tmp_path / "a.png", (9, 9))
    with pytest.raises(UserError, match="a.png was 10 x 8 pixels and is now 9 x 9"):
        picture.read(InputChannels())


def test_a_folder_that_is_a_picture_and_holds_a_link_out_is_left_out(tmp_path):
    outside = save(tmp_path / "secret.png")
    save(tmp_path / "in" / "a.png")
    zarr.create_group(tmp_path / "in" / "b.ome.zarr", zarr_format=3)
    (tmp_path / "in" / "b.ome.zarr" / "c").symlink_to(outside)
    assert find_pictures(tmp_path / "in")[1]["b.ome.zarr"] == "is a link that leads out of the folder"


def test_a_name_that_is_no_text_is_left_out(tmp_path):
    save(tmp_path / "a.png")
    os.rename(save(tmp_path / "b.png"), os.fsencode(tmp_path) + b"/bad\xff.png")
    found, left_out, _ = find_pictures(tmp_path)
    assert list(found) == ["a.png"]
    assert left_out == {"'bad\\udcff.png'": "has a name with characters that cannot be shown; rename it"}


def test_a_picture_that_becomes_a_link_out_of_the_folder_or_goes_is_not_read(tmp_path):
    save(tmp_path / "in" / "a.png")
    picture = find_pictures(tmp_path / "in")[0]["a.png"]
    picture.check()
    (tmp_path / "in" / "a.png").unlink()
    with pytest.raises(UserError, match="a.png is gone"):
        picture.check()
    (tmp_path / "in" / "a.png").symlink_to(save(tmp_path / "secret.png"))
    for read in (lambda: picture.read(InputChannels()), picture.check):
        with pytest.raises(UserError, match="is a link by now that leads out of the folder"):
            read()


GRID = np.arange(8 * 10).reshape(8, 10)
DARK = (GRID * 2779 / 79).astype(np.uint16)  # 0 to 2,779 of 65,535
RGB = np.stack([GRID * 3, 255 - GRID, GRID], 2).astype(np.uint8)
CMYK = np.stack([GRID, GRID * 2, 255 - GRID, GRID], 2).astype(np.uint8)
OF_CMYK = ((255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255).round()
RAMP = np.arange(256) * 257
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP]).astype(np.uint16)
STRETCHED = (DARK - np.percentile(DARK, 0.5)) / np.diff(np.percentile(DARK, (0.5, 99.5)))
STRETCHED = (STRETCHED.clip(0, 1) * 255).round()
SPARSE = np.eye(16, 20, 15, dtype=np.uint16) * 300 * (np.arange(16) == 2)[:, None]  # one pixel of 320
FLOAT = np.where(GRID < 8, np.nan, GRID / 100).astype(np.float32)
OF_FLOAT = np.where(GRID < 8, 0, (GRID - 8.355) / (78.645 - 8.355)).clip(0, 1) * 255


def pillow(name, image, **options):
    return name, lambda path: image.save(path, **options)


def tiff(values, **options):
    return "a.tif", lambda path: tifffile.imwrite(path, values, **options)


def turned_exif():
    exif = Image.Exif()
    exif[274] = 6
    return {"exif": exif}


FRAMES = [Image.fromarray(RGB).quantize(8), Image.new("P", (10, 8))]
WITH_ALPHA = np.concatenate([RGB, np.full((8, 10, 1), 9, np.uint8)], 2)
FIVE = np.stack([GRID, GRID * 2, GRID * 3, GRID, GRID]).astype(np.uint8)
SHOWN = {  # how it is written; what a viewer shows, `[H, W]` or `[H, W, 3]`, 0 to 255; what is said beside it
    # TIFF 6.0, section 16: inks, not light
    "CMYK TIFF": (tiff(CMYK, photometric="separated"), OF_CMYK, None),
    "CMYK TIFF of Pillow": (pillow("a.tif", Image.fromarray(CMYK, "CMYK")), OF_CMYK, None),
    # TIFF 6.0: photometric 0, a palette, orientation 6 (row 0 is the right side)
    "white is 0": (tiff(GRID.astype(np.uint8), photometric="miniswhite"), 255 - GRID, None),
    "palette": (tiff(GRID.astype(np.uint8), photometric="palette", colormap=COLOURS), COLOURS.T[GRID] >> 8, None),
    "turned TIFF": (tiff(RGB, extratags=[(274, 3, 1, 6, True)]), np.rot90(RGB, -1), None),
    "turned by EXIF": (pillow("a.png", Image.fromarray(RGB), **turned_exif()), np.rot90(RGB, -1), None),
    "one bit": (tiff(GRID % 2 == 1, photometric="minisblack"), GRID % 2 * 255, None),
    # Stretched, as ImageJ and QuPath do, by percentiles of the values
    "dark TIFF": (
        tiff(DARK),
        STRETCHED,
        "Stretched for display alone, from percentile 0.5 to 99.5: 13.825 to 2,764.8.",
    ),
    "dark PNG": (pillow("a.png", Image.fromarray(DARK)), STRETCHED, "For the model, 0 is black and 65,535 white."),
    "one bright spot": (tiff(SPARSE), SPARSE // 300 * 255, ": 0 to 300."),
    "floating point": (tiff(FLOAT), OF_FLOAT, "10.0% of its pixels hold no measurement; they are of no class."),
    # Without what the model does not see
    "alpha of a TIFF": (tiff(WITH_ALPHA, extrasamples=["unassalpha"]), RGB, "has an alpha channel, which is not read"),
    "alpha of a PNG": (pillow("a.png", Image.fromarray(WITH_ALPHA)), RGB, "Its transparency is left out"),
    "opaque": (pillow("a.png", Image.fromarray(RGB).convert("RGBA")), RGB, None),
    "five channels": (
        tiff(FIVE, photometric="minisblack", planarconfig="separate"),
        FIVE[:3].transpose(1, 2, 0),
        "Of 5 channels, 0, 1, 2 are shown as red, green and blue.",
    ),
    "animation": (
        pillow("a.gif", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
        FRAMES[0].convert("RGB"),
        "a.gif has 2 pages; the first is read and the others are left out.",
    ),
}


@pytest.mark.parametrize("case", SHOWN)
def test_pictures_are_shown_as_viewers_show_them_and_read_as_segment_reads_them(tmp_path, case):
    (name, write), expected, said = SHOWN[case]
    write(tmp_path / name)
    picture = find_pictures(tmp_path)[0][name]
    channels = InputChannels()
    shown, lines, _ = picture.shown(channels)
    if expected is not None:
        expected = np.asarray(expected)
        expected = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2)
        assert np.abs(np.asarray(shown.convert("RGB"), float) - expected).max() <= 1
    assert (said in " ".join(lines)) if said else not lines
    assert str(tmp_path) not in " ".join(lines)
    with open_raster(tmp_path / name) as raster:
        values = raster.read(0, Window(0, 0, *raster.size))[channels.indices(raster.channels, name)]
    processor = DiffuseSegImageProcessor(5 if len(values) == 5 else 3)
    seen = channels.encode(values, processor.in_channels) * 2 - 1
    assert np.abs(picture.pixels(processor, picture.size)[0].numpy() - seen).max() <= 2 / 255


def test_axes_that_a_tiff_does_not_state_are_asked_for_and_taken(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB.transpose(2, 0, 1), photometric="minisblack")
    with pytest.raises(UserError, match="pass --axes CYX"):
        find_pictures(tmp_path)
    picture = find_pictures(tmp_path, axes="CYX")[0]["a.tif"]
    picture.check()
    assert np.array_equal(np.asarray(picture.shown(InputChannels())[0]), RGB)


def test_what_is_left_out_of_a_folder_is_said(tmp_path, monkeypatch):
    for i in range(3):
        Image.fromarray(RGB).save(tmp_path / f"{i}.jpg")
        Image.fromarray((GRID > 40).astype(np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "text.tif").write_text("no picture")
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, WITH_ALPHA, extrasamples=["unassalpha"])
    (tmp_path / "raw.heic").write_bytes(b"")
    monkeypatch.setattr(pictures, "NOTES", 1)
    found, left_out, notes = find_pictures(tmp_path)
    assert list(found) == ["0.jpg", "1.jpg", "2.jpg", "a.tif", "b.tif"]
    assert list(left_out) == ["text.tif"] and "cannot be read" in left_out["text.tif"]
    assert f"3 pictures of {tmp_path} are masks" in notes[0] and any("not read: 1 .heic" in note for note in notes)
    assert notes[-3:] == [
        f"1 of 6 pictures are left out: text.tif {left_out['text.tif']}",
        "a.tif has an alpha channel, which is not read.",
        "1 more such lines stand beside their pictures.",
    ]


STACK = np.random.default_rng(0).integers(0, 60000, (6, 8, 10)).astype(np.uint16)


def save_stack(path, values=STACK, axes="ZYX"):
    tifffile.imwrite(path, values, imagej=True, metadata={"axes": axes})


def test_each_plane_of_a_stack_is_a_picture(tmp_path):
    save(tmp_path / "a.png")
    save_stack(tmp_path / "stack.tif")
    save_stack(tmp_path / "times.tif", STACK.reshape(2, 3, 8, 10), "TZYX")
    save_stack(tmp_path / "film.tif", STACK[:2], "TYX")
    found, left_out, notes = find_pictures(tmp_path)
    assert not left_out and not notes
    assert list(found) == [
        "a.png",
        *("film.tif, t 1", "film.tif, t 2"),
        *(f"stack.tif, z {z}" for z in range(1, 7)),
        *(f"times.tif, z {z}, t {t}" for t in (1, 2) for z in (1, 2, 3)),
    ]
    for name, plane in (("stack.tif, z 4", 3), ("times.tif, z 3, t 2", 5), ("film.tif, t 2", 1)):
        picture = found[name]
        picture.check()
        read = picture.read(InputChannels())
        assert np.array_equal(read.image[..., 0], STACK[plane]) and picture.size == (8, 10)
        assert picture.file_name == name.split(",")[0]
        low, high = picture.shown(InputChannels()).display["least"], picture.shown(InputChannels()).display["most"]
        assert (low, high) == (STACK[plane].min(), STACK[plane].max())


def test_slices_of_a_nifti_volume_are_pictures(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(STACK.astype(np.int16).T, np.eye(4)), tmp_path / "scan.nii.gz")
    found = find_pictures(tmp_path)[0]
    assert list(found) == [f"scan.nii.gz, z {z}" for z in range(1, 7)]
    found["scan.nii.gz, z 5"].check()
    assert np.array_equal(found["scan.nii.gz, z 5"].read(InputChannels()).image[..., 0], STACK[4].astype(np.int16))


def test_of_long_stacks_evenly_spread_planes_are_pictures_and_a_line_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PLANES", 4)
    save_stack(tmp_path / "stack.tif", STACK.reshape(12, 4, 10))
    save_stack(tmp_path / "times.tif", STACK.reshape(3, 4, 4, 10), "TZYX")
    save_stack(tmp_path / "whole.tif", STACK.reshape(12, 4, 10)[:4])
    found, _, notes = find_pictures(tmp_path)
    of = {name: [n.split(", ", 1)[1] for n in found if n.startswith(name)] for name in ("stack", "times", "whole")}
    assert of["stack"] == ["z 1", "z 4", "z 7", "z 10"] and of["whole"] == ["z 1", "z 2", "z 3", "z 4"]
    assert of["times"] == ["z 1, t 1", "z 2, t 2", "z 3, t 3"]  # not of one slice alone
    assert notes == [
        "stack.tif has 12 planes, and 4 at most are pictures: one in 3, from z 1, z 4 on to z 10.",
        "times.tif has 12 planes, and 4 at most are pictures: one in 5, from z 1, t 1, z 2, t 2 on to z 3, t 3.",
    ]
    assert found["stack.tif, z 7"].shown(InputChannels()).lines[0] == notes[0]
    assert np.array_equal(found["stack.tif, z 7"].read(InputChannels()).image[..., 0], STACK.reshape(12, 4, 10)[6])


def test_a_stack_that_changed_its_number_of_planes_is_refused(tmp_path):
    save_stack(tmp_path / "stack.tif")
    save(tmp_path / "a.png")
    picture = find_pictures(tmp_path)[0]["stack.tif, z 2"]
    for now in (STACK[:5], STACK[0]):
        save_stack(tmp_path / "stack.tif", now, "ZYX"[3 - now.ndim :])
        for read in (picture.check, lambda: picture.read(InputChannels())):
            with pytest.raises(
                UserError, match=r"stack.tif had 6 planes and has \d now; put back the stack that it was."
            ):
                read()
    save_stack(tmp_path / "stack.tif", STACK[:, :7])
    with pytest.raises(UserError, match="stack.tif, z 2 was 10 x 8 pixels and is now 10 x 7"):
        picture.check()
    save_stack(tmp_path / "flat.tif", STACK[0], "YX")
    flat = find_pictures(tmp_path)[0]["flat.tif"]
    save_stack(tmp_path / "flat.tif")
    with pytest.raises(UserError, match="flat.tif was a picture of one plane and is now one of 6 planes."):
        flat.check()


def test_stamps_of_plain_pictures_stay_and_those_of_planes_differ(tmp_path):
    save(tmp_path / "a.png")
    save_stack(tmp_path / "stack.tif")
    found = find_pictures(tmp_path)[0]
    stat = os.stat(tmp_path / "a.png")
    assert found["a.png"].stamp() == f"{stat.st_size}-{stat.st_mtime_ns}-2-None"
    assert len({found[name].stamp() for name in found}) == 7


def test_a_picture_that_is_called_like_a_plane_is_left_out(tmp_path):
    pytest.importorskip("pydicom")
    from ..images.formats.test_dicom import write

    save_stack(tmp_path / "stack.tif")
    (tmp_path / "stack.tif, z 3").mkdir()
    write(tmp_path / "stack.tif, z 3" / "1.dcm", 5)
    found, left_out, notes = find_pictures(tmp_path)
    assert list(found) == [f"stack.tif, z {z}" for z in range(1, 7)] and found["stack.tif, z 3"].path.is_file()
    assert left_out == {"stack.tif, z 3": "would share the name 'stack.tif, z 3' with 'stack.tif'; rename one of them"}
    assert notes == [f"1 of 7 pictures are left out: stack.tif, z 3 {left_out['stack.tif, z 3']}"]
