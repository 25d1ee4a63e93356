# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import os

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from diffuseseg_diffusers import UserError
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
    shown = found["c.tif"].shown()
    assert shown.mode == "RGB" and shown.size == (10, 8) and np.asarray(shown).max() > 250
    assert found["deep/er/b.jpg"].shown().mode == "RGB"


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


def test_a_picture_that_changed_its_size_is_named(tmp_path):
    save(tmp_path / "a.png")
    picture = find_pictures(tmp_path)[0]["a.png"]
    save(tmp_path / "a.png", (9, 9))
    with pytest.raises(UserError, match="a.png was 10 x 8 pixels and is now 9 x 9"):
        picture.read()


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
    for read in (picture.read, picture.check):
        with pytest.raises(UserError, match="is a link by now that leads out of the folder"):
            read()
