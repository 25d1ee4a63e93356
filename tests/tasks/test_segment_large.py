# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""`diffuseseg segment` on slides, maps and volumes."""

import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers.images.formats import opening
from diffuseseg_diffusers.images.formats.base import ArrayRaster, Window
from diffuseseg_diffusers.images.formats.opening import open_raster
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tiling import files as inference_files
from diffuseseg_diffusers.tiling import tiles
from diffuseseg_diffusers.tiling.tiles import Tiling, segment_tiled

from ..conftest import draw, run
from ..images.formats.pictures import dicom_series, geotiff, ome_tiff, ome_zarr, volume


def slide(height=144, width=200):
    """Grey drawings side by side, `[1, H, W]`."""
    rows = [
        np.concatenate([draw((24, 30), 10 * i + j)[0] for j in range(-(-width // 30))], 1)
        for i in range(-(-height // 24))
    ]
    return np.concatenate(rows)[None, :height, :width]


def lines(folder):
    return [json.loads(line) for line in (folder / "segments.jsonl").read_text().splitlines()]


def whole(path):
    if path.suffix == ".png":  # ids, not colours
        return np.asarray(Image.open(path))
    with open_raster(path) as raster:
        return raster.read_ids(0, Window(0, 0, *raster.size))[0]


def test_a_slide_is_tiled_by_itself_and_its_mask_is_a_slide(drawn, tmp_path):
    pixels = slide()
    ome_tiff(tmp_path / "slide.ome.tif", pixels)
    given = ("--model", drawn / "model", "--output_dir", tmp_path / "out")
    result = run("diffuseseg", "segment", tmp_path / "slide.ome.tif", *given)
    assert "200 × 144 pixels, is segmented by tiles of 30 × 30 pixels at a scale of 0.533" in result.stdout
    (line,) = lines(tmp_path / "out")
    assert line["mask"] == "slide_mask.ome.tif" and (line["height"], line["width"]) == (144, 200)
    pipe = load_pipeline(str(drawn / "model"))
    scale = pipe.fitted_tiles["scale"]
    assert line["tiles"]["scale"] == pytest.approx(scale, abs=1e-6)
    found = segment_tiled(pipe, ArrayRaster(pixels), Tiling(pipe.image_size, scale))
    mask = whole(tmp_path / "out" / "slide_mask.ome.tif")
    assert np.array_equal(mask, found.labels)
    share = {name: (mask == i).mean() for i, name in enumerate(["sky", "disc", "bar"])}
    assert line["class_fractions"] == pytest.approx(share, abs=1e-5) and 0 < line["uncertainty"] < 1.2
    assert Image.open(tmp_path / "out" / "slide_overlay.png").size == (200, 144)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *(".diffuseseg-run.json", "segments.jsonl", "slide_mask.ome.tif", "slide_overlay.png")
    ]
    seen = run(
        "diffuseseg", "segment", tmp_path / "slide.ome.tif", "--whole", *given[:2], "--output_dir", tmp_path / "w"
    )
    assert "tiles" not in seen.stdout and "tiles" not in lines(tmp_path / "w")[0]
    assert (whole(tmp_path / "w" / "slide_mask.ome.tif") != mask).any()


def test_the_same_picture_has_the_same_mask_in_every_format(drawn, tmp_path):
    pixels = slide()
    given = (
        "--model",
        drawn / "model",
        "--output_dir",
        tmp_path / "out",
        "--tile",
        "--scale",
        "0.5",
        "--blend",
        "crop",
    )
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    ome_tiff(tmp_path / "b.ome.tif", pixels, pyramid=False)
    geotiff(tmp_path / "c.tif", pixels)
    ome_zarr(tmp_path / "d.ome.zarr", pixels[None])
    run("diffuseseg", "segment", *(tmp_path / n for n in ("a.png", "b.ome.tif", "c.tif", "d.ome.zarr")), *given)
    masks = [whole(tmp_path / "out" / line["mask"]) for line in lines(tmp_path / "out")]
    assert len(masks) == 4 and all(np.array_equal(mask, masks[0]) for mask in masks[:3])
    # A pyramid is read where it has just enough, and its coarser level is made by leaving pixels out.
    assert (masks[3] == masks[0]).mean() > 0.6
    names = [line["mask"] for line in lines(tmp_path / "out")]
    assert names == ["a_mask.png", "b_mask.ome.tif", "c_mask.tif", "d_mask.ome.zarr"]


def test_a_strip_is_padded_and_not_distorted(drawn, tmp_path):
    strip = slide(6, 150)
    Image.fromarray(strip[0]).save(tmp_path / "strip.png")
    given = ("--model", drawn / "model", "--output_dir", tmp_path / "out", "--tile", "--scale", "1")
    run("diffuseseg", "segment", tmp_path / "strip.png", *given)
    assert lines(tmp_path / "out")[0]["tiles"]["height"] == 16
    pipe = load_pipeline(str(drawn / "model"))
    mirrored = np.concatenate([strip, strip[:, ::-1], strip[:, :4]], 1)  # as NumPy's "symmetric" goes on
    expected = segment_tiled(pipe, ArrayRaster(mirrored), Tiling(pipe.image_size))
    assert np.array_equal(whole(tmp_path / "out" / "strip_mask.png"), expected.labels[:6])


def test_volumes_and_series_come_back_in_their_format(drawn, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = volume(planes=3, height=40, width=44)
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    dicom_series(tmp_path / "series", image)
    fitted = tmp_path / "model"
    run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--recipe", "fast"),
        *("--num_members", "2", "--intensity_window", "0", "255", "--output_dir", fitted),
    )
    given = ("--model", fitted, "--output_dir", tmp_path / "out")
    run("diffuseseg", "segment", tmp_path / "scan.nii.gz", tmp_path / "series", *given)
    found = lines(tmp_path / "out")
    assert [line["mask"] for line in found] == ["scan_mask.nii.gz", "series_mask"]
    assert all(line["planes"] == 3 for line in found)
    mask = sitk.ReadImage(str(tmp_path / "out" / "scan_mask.nii.gz"))
    for place in ((0, 0, 0), (43, 39, 2)):
        assert mask.TransformIndexToPhysicalPoint(place) == pytest.approx(
            image.TransformIndexToPhysicalPoint(place), abs=1e-4
        )
    pixels = sitk.GetArrayFromImage(image)
    with open_raster(tmp_path / "out" / "series_mask") as series:
        other = np.stack([series.read(i, Window(0, 0, 40, 44))[0] for i in range(3)])
    assert np.array_equal(other, sitk.GetArrayFromImage(mask)) and other.shape == pixels.shape
    wrong = run(
        "diffuseseg",
        "segment",
        tmp_path / "scan.nii.gz",
        "--model",
        drawn / "model",
        "--output_dir",
        tmp_path / "o",
        expect=1,
    )
    assert "values of int16" in wrong.stderr and "which have no range of their own" in wrong.stderr
    assert "0 of 1 images segmented" in wrong.stdout and "Traceback" not in wrong.stderr


def test_objects_are_counted_in_pictures_of_every_kind(drawn, tmp_path):
    pytest.importorskip("skimage")
    pixels = slide()
    geotiff(tmp_path / "map.tif", pixels)
    Image.fromarray(draw((24, 30), 3)[0]).save(tmp_path / "small.png")
    result = run(
        *("diffuseseg", "segment", tmp_path / "map.tif", tmp_path / "small.png", "--model", drawn / "model"),
        *(
            "--instances",
            "watershed",
            "--object_classes",
            "disc",
            "--min_area",
            "4",
            "--export",
            "geojson",
            "coco",
            "gpkg",
        ),
        *("--output_dir", tmp_path / "out"),
    )
    assert "2 of 2 images segmented" in result.stdout
    skimage = pytest.importorskip("skimage.measure")
    for line, suffix in zip(lines(tmp_path / "out"), (".tif", ".png")):
        name = line["mask"].split("_")[0]
        disc = whole(tmp_path / "out" / line["mask"]) == 1
        found = whole(tmp_path / "out" / f"{name}_objects{suffix}")
        assert line["objects"] == found.max() and not found[~disc].any()
        kept = [r for r in skimage.regionprops(skimage.label(disc, connectivity=2)) if r.area >= 4]
        assert line["objects"] >= len(kept) > 0
        assert len((tmp_path / "out" / f"{name}_objects.csv").read_text().splitlines()) == line["objects"] + 1
        assert all((tmp_path / "out" / f"{name}_objects.{e}").is_file() for e in ("geojson", "coco.json", "gpkg"))


def test_a_run_that_was_killed_between_blocks_resumes_with_the_same_bytes(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "block_side", lambda *given: 40)
    ome_tiff(tmp_path / "slide.ome.tif", slide())
    command = ("diffuseseg", "segment", tmp_path / "slide.ome.tif", "--model", drawn / "model", "--output_dir")
    run(*command, tmp_path / "once")
    calls, make = [], inference_files.segment_block

    def cut_off(*given):
        calls.append(given[3])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return make(*given)

    monkeypatch.setattr(inference_files, "segment_block", cut_off)
    run(*command, tmp_path / "out", expect=130)
    assert not (tmp_path / "out" / "segments.jsonl").exists() and (tmp_path / "out" / ".parts").is_dir()
    (tmp_path / "out" / ".parts" / "large-0000000" / "made").mkdir()  # of a kill while it was put together
    run(*command, tmp_path / "out")
    blocks = len(Tiling((16, 16), load_pipeline(str(drawn / "model")).fitted_tiles["scale"]).blocks(144, 200, 40))
    assert len(calls) == blocks + 1  # the one that was cut off twice
    for name in ("slide_mask.ome.tif", "slide_overlay.png", "segments.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    run(*command, tmp_path / "out")  # says that it is complete
    other = run(*command, tmp_path / "out", "--blend", "crop", expect=1)
    assert "blend gaussian (now crop)" in other.stderr
    run(*command, tmp_path / "out", "--blend", "crop", "--overwrite")


def test_what_is_wrong_with_large_pictures_is_one_sentence_each(drawn, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    data = ome_tiff(tmp_path / "a.ome.tif", slide(), pyramid=False).read_bytes()
    (tmp_path / "cut.ome.tif").write_bytes(data[: len(data) * 2 // 3])
    tifffile.imwrite(
        tmp_path / "five.tif", np.repeat(slide(), 5, 0), photometric="minisblack", metadata={"axes": "CYX"}
    )
    tifffile.imwrite(tmp_path / "axes.tif", np.repeat(slide(), 5, 0), photometric="minisblack")
    tifffile.imwrite(tmp_path / "plain.tif", slide()[0])
    given = ("--model", drawn / "model", "--output_dir", tmp_path / "out", "--overwrite")
    for words, message in (
        (("cut.ome.tif",), "cut.ome.tif cannot be read"),
        (("five.tif",), "five.tif has 5 channels, and the model takes 1; choose them"),
        (("axes.tif",), "pass --axes CYX for channels, or --axes ZYX for pages"),
        (("five.tif", "--input_channels", "7"), "five.tif has no channel '7'; it has 0, 1, 2, 3, 4"),
        (
            ("plain.tif", "--pixel_size", "0.5"),
            "plain.tif does not say how large its pixels are, and 0.5 µm are wanted",
        ),
        (("a.ome.tif", "--tile_overlap", "0.9"), "--tile_overlap must lie in 0 to 0.75, got 0.9"),
        (("a.ome.tif", "--tile", "--max_memory", "0.001"), "GiB at least, got --max_memory 0.001"),
        (("a.ome.tif", "--instances", "components", "--object_classes", "x"), "There is no class 'x'"),
        (("a.ome.tif", "--export", "coco"), "--export and --object_classes need --instances"),
        (("a.ome.tif", "--tile", "--mask_size", "8", "8"), "leave --mask_size out"),
        (("a.ome.tif", "--pixel_size", "0"), "--pixel_size must be above 0, got 0"),
        (("a.ome.tif", "--whole", "--mask_size", "8", "8"), "has its size and geometry; --mask_size is for pictures"),
        ((), "Give images, or a --dataset_name"),
    ):
        names = [tmp_path / word if word.endswith(".tif") else word for word in words]
        result = run("diffuseseg", "segment", *names, *given, expect=1)
        assert message in result.stderr and "Traceback" not in result.stderr, (words, result.stderr)
    fine = run("diffuseseg", "segment", tmp_path / "five.tif", "--input_channels", "2", *given)
    assert "1 of 1 images segmented" in fine.stdout
    both = run("diffuseseg", "segment", tmp_path / "cut.ome.tif", tmp_path / "a.ome.tif", *given, expect=1)
    assert "1 of 2 images segmented" in both.stdout and "unreadable.jsonl lists them" in both.stderr
    assert json.loads((tmp_path / "out" / "unreadable.jsonl").read_text())["image"].endswith("cut.ome.tif")


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(drawn, tmp_path):
    rng = np.random.default_rng(0)  # noise, whose mask is large
    ome_tiff(tmp_path / "slide.ome.tif", rng.integers(0, 256, (1, 400, 400), dtype=np.uint8))
    words = ["segment", tmp_path / "slide.ome.tif", "--model", drawn / "model", "--tile", "--scale", "1"]
    words += ["--output_dir", tmp_path / "out"]
    limited = ["bash", "-c", 'ulimit -f "$0"; exec "$@"', "12", sys.executable, "-m", "diffuseseg_diffusers", *words]
    result = run(*map(str, limited), expect=1)
    assert re.search("error: .*out/.* could not be written", result.stderr) and "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "segments.jsonl").exists()
    run("diffuseseg", *words)
    assert lines(tmp_path / "out")[0]["mask"] == "slide_mask.ome.tif"


def test_masks_of_a_given_size_are_of_the_whole_picture(drawn, tmp_path):
    Image.fromarray(slide()[0]).save(tmp_path / "a.png")  # large enough for tiles
    given = ("--model", drawn / "model", "--mask_size", "20", "24", "--output_dir", tmp_path / "out")
    run("diffuseseg", "segment", tmp_path / "a.png", *given)
    assert whole(tmp_path / "out" / "a_mask.png").shape == (20, 24) and "tiles" not in lines(tmp_path / "out")[0]


def test_tiffs_that_only_pillow_can_read_here_are_said(drawn, tmp_path, monkeypatch):
    Image.fromarray(draw((24, 30), 3)[0]).save(tmp_path / "a.tif")
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)  # nothing is installed
    given = ("--model", drawn / "model", "--output_dir", tmp_path / "out")
    said = run("diffuseseg", "segment", tmp_path / "a.tif", *given).stdout
    assert "a.tif is read by Pillow, its first page alone" in said and "the extra `tiff`" in said
    assert (tmp_path / "out" / "a_mask.png").is_file()


def test_how_pictures_of_one_size_are_cut_is_said_once(drawn, tmp_path):
    (tmp_path / "pictures").mkdir()
    for i, (height, width) in enumerate([(144, 200)] * 3 + [(140, 200)]):
        Image.fromarray(slide()[0, :height, :width]).save(tmp_path / "pictures" / f"{i}.png")
    given = ("--model", drawn / "model", "--output_dir", tmp_path / "out")
    said = run("diffuseseg", "segment", tmp_path / "pictures", *given).stdout
    assert said.count("200 × 144 pixels, is segmented by tiles") == said.count("200 × 140 pixels, is segmented") == 1
    assert said.count("So are others of 200 × 144 pixels.") == 1 and len(lines(tmp_path / "out")) == 4
