# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What `diffuseseg inspect` says of right folders and of wrong ones."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from diffuseseg_diffusers import InspectConfig, UserError, inspect, load_labeled_images
from diffuseseg_diffusers.datasets.inspection import Inspection
from diffuseseg_diffusers.datasets.picture import Picture


IDS = np.zeros((20, 30), np.uint8)
IDS[5:10, 5:20] = 1


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(values).save(path)
    return path


def photo(path: Path, seed: int, size: tuple[int, int] = (20, 30)) -> Path:
    return save(path, np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def pairs(folder: Path, mask: np.ndarray = IDS, number: int = 3) -> Path:
    for i in range(number):
        photo(folder / "images" / f"{i}.png", i)
        save(folder / "masks" / f"{i}.png", mask)
    return folder


def test_the_command_tells_and_draws_what_was_understood(tmp_path):
    for split, seed in (("train", 0), ("val", 10)):
        photo(tmp_path / "data/images" / split / "a.png", seed)
        save(tmp_path / "data/masks" / split / "a.png", IDS)
    (tmp_path / "data/id2label.json").write_text('["soil", "<b>weed</b>"]')
    words = ["inspect", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), "--json"]
    done = subprocess.run([sys.executable, "-m", "diffuseseg_diffusers", *words], capture_output=True, check=True)
    found = json.loads(done.stdout)
    assert found["splits"] == {"train": 1, "val": 1}
    assert [(c["name"], c["pixels"], c["images"]) for c in found["classes"]] == [
        ("soil", 1050, 2),
        ("<b>weed</b>", 150, 2),
    ]
    assert found == json.loads((tmp_path / "out/inspection.json").read_text())
    page = (tmp_path / "out/inspection.html").read_text(encoding="utf-8")
    assert page.count("<img") == 6 and "&lt;b&gt;weed" in page and "<b>" not in page
    sheet = np.asarray(PIL.Image.open(tmp_path / "out/contact_sheet.png"))
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100  # photographs, not blank cells


def test_text_holds_sizes_values_and_shares(tmp_path, capsys):
    inspect(InspectConfig(dataset_name=str(pairs(tmp_path))))
    said = capsys.readouterr().out
    assert "3 images; 30 × 20; uint8 red+green+blue; values 0 to 254" in said
    assert "class 1  12.50% of pixels, in 3 images" in said


def test_a_refused_folder_says_so_with_the_values_of_its_masks(tmp_path, capsys):
    inspect(InspectConfig(dataset_name=str(pairs(tmp_path, IDS * 7))))
    said = capsys.readouterr().out
    assert "`diffuseseg fit` refuses this" in said and "value 7  12.50%" in said


def test_values_and_colours_of_refused_masks_are_shown_whatever_else_is_asked_for(tmp_path, capsys):
    masks = IDS.astype(np.uint16) * 7
    masks[0] = 65535
    inspect(InspectConfig(dataset_name=str(pairs(tmp_path / "ids", masks))))
    said = capsys.readouterr().out
    assert "5.0% of pixels without a label" in said and "value 7  13.16%" in said and "253" not in said
    data = pairs(tmp_path / "colours", np.stack([IDS * 255, IDS * 0, IDS * 128], -1))
    palette = tmp_path / "palette.json"
    palette.write_text('["#000000", "#00ff00"]')
    options = {"mask_format": "rgb", "palette": palette}
    found = inspect(InspectConfig(dataset_name=str(data), label_names=("a", "b", "c"), nearest_color=True, **options))
    assert "#ff0080 12.5%" in found["notes"][0]


def missing(folder: Path) -> None:
    (pairs(folder) / "masks/2.png").unlink()


def without_image(folder: Path) -> None:
    save(pairs(folder) / "masks/z.png", IDS)


def two_suffixes(folder: Path) -> None:
    photo(folder / "images/a.png", 0)
    photo(folder / "images/a.bmp", 1)
    save(folder / "masks/a.png", IDS)


def broken(folder: Path) -> None:
    image = pairs(folder) / "images/1.png"
    image.write_bytes(image.read_bytes()[:200])


def in_two_splits(folder: Path) -> None:
    for split in ("train", "test"):
        photo(folder / "images" / split / f"{split}.png", 0)
        save(folder / "masks" / split / f"{split}.png", IDS)


def unread(folder: Path) -> None:
    (pairs(folder) / "images/9.heic").write_bytes(b"heic")


WRONG = {
    "binary masks of 0 and 255": (lambda f: pairs(f, IDS * 255), "--mask_format binary"),
    "ids with gaps": (lambda f: pairs(f, IDS * 7), "0, 7"),
    "masks in colour": (lambda f: pairs(f, np.stack([IDS * 255, IDS * 0, IDS * 128], -1)), "#ff0080 12.5%"),
    "masks of many objects": (lambda f: pairs(f, (1 - IDS).astype(np.uint16) * 900), "from 0 to 900"),
    "ids with gaps in 16 bits": (lambda f: pairs(f, IDS.astype(np.uint16) * 7), "0, 7"),
    "masks of another size": (lambda f: pairs(f, IDS[:10]), "30 × 10 (width × height); save the mask at the size"),
    "an image without a mask": (missing, "2.png"),
    "a mask without an image": (without_image, "z.png"),
    "two images for one mask": (two_suffixes, "a.bmp"),
    "a broken image": (broken, "1.png cannot be read"),
    "the same image in two splits": (in_two_splits, "in several splits"),
    "formats that are not read": (unread, "1 .heic"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_folder_is_said(kind, tmp_path):
    make, expected = WRONG[kind]
    make(tmp_path)
    warnings = inspect(InspectConfig(dataset_name=str(tmp_path)))["warnings"]
    assert any(expected in warning for warning in warnings), warnings
    assert len(set(warnings)) == len(warnings)


def test_a_clean_copy_is_read_as_the_original_was(tmp_path):
    data = pairs(tmp_path / "data", IDS * 255)
    config = InspectConfig(dataset_name=str(data), mask_format="binary", fix=tmp_path / "clean")
    before = inspect(config)
    after = inspect(InspectConfig(dataset_name=str(tmp_path / "clean")))
    assert after["warnings"] == [] and after["mask_format"] == "index"
    assert [p["digest"] for p in after["pictures"]] == [p["digest"] for p in before["pictures"]]
    copy = load_labeled_images(tmp_path / "clean", split="all")
    assert all(np.array_equal(copy[i].mask, IDS) for i in range(3))


def test_a_clean_copy_has_all_files_of_an_image(tmp_path):
    sitk, rasterio = pytest.importorskip("SimpleITK"), pytest.importorskip("rasterio")
    for kind, values in (("images", IDS * 100), ("masks", IDS)):
        save(tmp_path / "data" / kind / "map.png", values)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "data" / kind / "scan.mhd"))
    (tmp_path / "data/images/map.pgw").write_text("2\n0\n0\n-2\n500001\n4000019\n")
    inspect(InspectConfig(dataset_name=str(tmp_path / "data"), fix=tmp_path / "clean"))
    copied = tmp_path / "clean" / "all" / "images"
    assert rasterio.open(copied / "map.png").transform.c == 500000
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(copied / "scan.mhd"))), IDS * 100)
    read = load_labeled_images(tmp_path / "clean", split="all")
    assert len(read) == 2 and all(np.array_equal(example.mask, IDS) for example in read)
    for kind, values in (("images", IDS * 100), ("masks", IDS)):
        save(tmp_path / "data" / kind / "first" / "scan.png", values)
    with pytest.raises(UserError, match="scan.mhd is in several files, and another picture has its name"):
        inspect(InspectConfig(dataset_name=str(tmp_path / "data"), fix=tmp_path / "again"))


def test_a_clean_copy_is_not_made_of_what_cannot_be_read(tmp_path):
    data = pairs(tmp_path / "data", IDS * 7)
    with pytest.raises(UserError, match="no clean copy"):
        inspect(InspectConfig(dataset_name=str(data), fix=tmp_path / "clean"))
    assert not (tmp_path / "clean").exists()


def test_a_volume_is_counted_plane_by_plane(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    planes = np.random.default_rng(0).integers(0, 4000, (3, 20, 30), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "images/a.tif", planes, metadata={"axes": "ZYX"}, imagej=True)
    tifffile.imwrite(tmp_path / "masks/a.tif", np.stack([IDS, IDS * 0, IDS]), metadata={"axes": "ZYX"}, imagej=True)
    found = inspect(InspectConfig(dataset_name=str(tmp_path)))
    assert (found["pictures"][0]["planes"], found["pictures"][0]["high"]) == (3, float(planes.max()))
    assert [c["pixels"] for c in found["classes"]] == [1650, 150]


def test_pictures_without_masks_are_listed(tmp_path, capsys):
    photo(tmp_path / "a.png", 0)
    found = inspect(InspectConfig(dataset_name=str(tmp_path)))
    assert found["classes"] == [] and "no masks" in capsys.readouterr().out


def test_images_of_another_size_are_refused_as_fit_does_and_counted(tmp_path, capsys):
    inspect(InspectConfig(dataset_name=str(pairs(tmp_path, IDS[:10], 9)), output_dir=tmp_path / "out"))
    said = capsys.readouterr().out
    assert "`diffuseseg fit` refuses this" in said and "masks: none is read" in said and "0.00%" not in said
    assert said.count("differ in size") == 3 and "6 more images cannot be used" in said
    assert "fit refuses this" in (tmp_path / "out/inspection.html").read_text(encoding="utf-8").replace(
        "diffuseseg ", ""
    )


def test_a_split_without_any_mask_does_not_refuse_the_others(tmp_path, capsys):
    for name in ("imagesTr/a_0000.png", "imagesTs/b_0000.png"):
        photo(tmp_path / name, len(name))
    save(tmp_path / "labelsTr/a.png", IDS)
    found = inspect(InspectConfig(dataset_name=str(tmp_path)))
    assert found["refusals"] == [] and "refuses" not in capsys.readouterr().out
    assert any("No image of test has a mask" in warning for warning in found["warnings"])
    refused = inspect(InspectConfig(dataset_name=str(tmp_path), split="test"))["refusals"]
    assert len(refused) == 1 and "has no mask" in refused[0]


def test_a_list_of_train_and_val_together_counts_once(tmp_path):
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for i in range(3):
        photo(tmp_path / f"JPEGImages/{i}.png", i)
        save(tmp_path / f"SegmentationClass/{i}.png", IDS)
    for name, words in (("train", "0\n1"), ("val", "2"), ("trainval", "0\n1\n2")):
        (lists / f"{name}.txt").write_text(words)
    found = inspect(InspectConfig(dataset_name=str(tmp_path)))
    assert found["duplicates"] == [] and [c["images"] for c in found["classes"]] == [3, 3]
    assert found["warnings"] == ["trainval holds the images of train and val, which count once."]
    (lists / "val.txt").write_text("1\n2")
    assert "in several splits" in " ".join(inspect(InspectConfig(dataset_name=str(tmp_path)))["warnings"])


@pytest.mark.parametrize(
    ("dtype", "top", "expected"),
    [
        ("uint16", 2779, "fill 4.2% of the range"),
        ("uint16", 60000, ""),
        ("int16", 2779, "have no range of their own: pass --intensity_percentiles"),
        ("float32", 0.5, ""),
        ("float32", 400, "have no range"),
    ],
)
def test_values_without_a_range_of_their_own_are_told_before_fit_refuses_them(dtype, top, expected, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "images").mkdir()
    values = np.linspace(0, top, 600).reshape(20, 30).astype(dtype)
    tifffile.imwrite(tmp_path / "images/a.tif", values)
    save(tmp_path / "masks/a.png", IDS)
    warnings = inspect(InspectConfig(dataset_name=str(tmp_path)))["warnings"]
    assert (len(warnings) == 1 and expected in warnings[0]) if expected else warnings == []


@pytest.mark.parametrize(
    ("meters", "expected"),
    [(0.1, "0.1 × 0.1 m"), (10.0, "10 × 10 m"), (8e-4, "0.8 × 0.8 mm"), (6.5e-7, "0.65 × 0.65 µm")],
)
def test_sizes_of_pixels_have_a_unit_that_suits_them(meters, expected):
    found = Inspection("x", pictures=[Picture("all", "a", 1, 1, dtype="uint8", pixel_size=[meters * 1e6] * 2)])
    assert f"pixels of {expected}" in found.as_text()


def test_where_page_and_copy_are_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    data, page, copy = pairs(tmp_path / "data"), tmp_path / "page", tmp_path / "copy"
    inspect(InspectConfig(dataset_name=str(data), output_dir=page, fix=copy))
    assert str(page / "inspection.html") in caplog.text and f"in {copy}" in caplog.text


def test_pictures_alone_name_the_layouts_that_have_masks(tmp_path, capsys):
    photo(tmp_path / "cat/a.png", 0)
    inspect(InspectConfig(dataset_name=str(tmp_path)))
    assert "x.jpg beside x_mask.png" in capsys.readouterr().out


def test_of_refused_masks_with_many_values_some_are_listed(tmp_path, capsys):
    inspect(InspectConfig(dataset_name=str(pairs(tmp_path, np.arange(0, 180, 3, np.uint8).repeat(10).reshape(20, 30)))))
    said = capsys.readouterr().out
    assert "value 33 " in said and "value 36 " not in said and "and 48 more values" in said


def test_masks_of_other_names_are_a_refusal(tmp_path):
    photo(tmp_path / "images/a.png", 0)
    save(tmp_path / "masks/b.png", IDS)
    (refusal,) = inspect(InspectConfig(dataset_name=str(tmp_path)))["refusals"]
    assert "1 pictures and 1 masks" in refusal


def test_names_that_are_no_text_can_be_written(tmp_path):
    pairs(tmp_path / "data")
    (tmp_path / "data/id2label.json").write_text('{"0": "\\ud800", "1": "cell"}')
    inspect(InspectConfig(dataset_name=str(tmp_path / "data"), output_dir=tmp_path / "out"))
    assert "\\ud800" in (tmp_path / "out/inspection.html").read_text("utf-8")
