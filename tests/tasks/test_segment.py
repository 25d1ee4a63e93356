# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.features.base import FeatureExtractor
from diffuseseg_diffusers.images import image_processor
from diffuseseg_diffusers.images.formats import pictures
from diffuseseg_diffusers.images.image_processor import DiffuseSegImageProcessor
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tasks.segment import SegmentConfig, list_images, segment
from diffuseseg_diffusers.tiling import files as inference_files
from diffuseseg_diffusers.tiling.files import free_names, stem

from ..conftest import draw, make_pipeline, run
from ..http_server import served


def test_segmenting_writes_masks_overlays_and_a_line_for_each_image(drawn, tmp_path):
    images = [draw((40 + i, 50), 80 + i, 3)[0] for i in range(3)]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    Image.fromarray(images[0]).save(tmp_path / "a" / "photo.jpg")
    Image.fromarray(images[1]).save(tmp_path / "b" / "photo.png")
    Image.fromarray(images[2]).convert("RGBA").save(tmp_path / "other.png")
    result = run(
        *("diffuseseg", "segment", tmp_path / "a" / "photo.jpg", tmp_path / "b", tmp_path / "other.png"),
        *("--model", drawn / "model", "--output_dir", tmp_path / "out"),
    )
    assert "3 of 3 images segmented" in result.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "segments.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == ["photo_mask.png", "photo-2_mask.png", "other_mask.png"]
    pipe = load_pipeline(str(drawn / "model"))
    for line, image in zip(lines, images):
        mask = Image.open(tmp_path / "out" / line["mask"])
        assert mask.mode == "P" and mask.size == image.shape[1::-1] == (line["width"], line["height"])
        assert Image.open(tmp_path / "out" / line["overlay"]).size == mask.size
        share = {n: (np.asarray(mask) == i).mean() for i, n in enumerate(["sky", "disc", "bar"])}
        assert line["class_fractions"] == pytest.approx(share, abs=1e-5) and 0 <= line["uncertainty"] < 1.1
    expected = pipe.segment(tmp_path / "other.png", output_type="np").masks[0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "other_mask.png")), expected)


def test_a_broken_image_is_named_and_the_others_are_segmented(drawn, tmp_path):
    Image.fromarray(draw((20, 20), 0)[0]).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:80])
    result = run(
        *("diffuseseg", "segment", tmp_path / "broken.png", tmp_path / "none.png", tmp_path / "good.png"),
        *("--model", drawn / "model", "--output_dir", tmp_path / "out"),
        expect=1,
    )
    assert "broken.png cannot be read" in result.stderr and "There is no file" in result.stderr
    assert "1 of 3 images segmented" in result.stdout and (tmp_path / "out" / "good_mask.png").exists()
    (tmp_path / "empty").mkdir()
    result = run(
        *("diffuseseg", "segment", tmp_path / "empty", "--model", drawn / "model", "--output_dir", tmp_path / "o"),
        expect=1,
    )
    assert result.stderr.strip().endswith("empty has no images in it.") and "Traceback" not in result.stderr


def test_segmenting_needs_no_extra(drawn, tmp_path):
    without = (
        "import sys; sys.modules.update(dict.fromkeys(['datasets', 'evaluate', 'matplotlib', 'peft', 'transformers']));"
    )
    without += "from diffuseseg_diffusers.cli import main; main(sys.argv[1:])"
    images, model = drawn / "data" / "test" / "images", ("--model", drawn / "model")
    run("python", "-c", without, "segment", images, *model, "--output_dir", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*_mask.png"))) == 4


def test_a_model_without_a_head_says_how_to_fit_one(drawn, tmp_path):
    result = run(
        *("diffuseseg", "segment", drawn / "data" / "test" / "images", "--model", drawn / "ddpm"),
        *("--output_dir", tmp_path / "out"),
        expect=1,
    )
    assert "no segmentation head; fit one with" in result.stderr and "`diffuseseg fit`" in result.stderr


def test_addresses_are_segmented_as_files_are(drawn, tmp_path):
    folder, model = drawn / "data" / "test" / "images", ("--model", drawn / "model")
    with served(folder) as server:
        address, gone = f"{server}/20.png?size=full", f"{server}/none.png"
        result = run("diffuseseg", "segment", address, gone, *model, "--output_dir", tmp_path / "fetched", expect=1)
    assert f"{gone} cannot be fetched" in result.stderr and "1 of 2 images segmented" in result.stdout
    assert json.loads((tmp_path / "fetched" / "segments.jsonl").read_text())["image"] == address
    run("diffuseseg", "segment", folder / "20.png", *model, "--output_dir", tmp_path / "read")
    masks = [(tmp_path / out / "20_mask.png").read_bytes() for out in ("fetched", "read")]
    assert masks[0] == masks[1]


def test_a_student_segments_as_a_pipeline_does(drawn, student, tmp_path):
    images = drawn / "data" / "test" / "images"
    run("diffuseseg", "segment", images, "--model", student, "--output_dir", tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "segments.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == [f"{i}_mask.png" for i in range(20, 24)]
    assert all(0 < line["uncertainty"] <= 1.1 and sum(line["class_fractions"].values()) > 0.99 for line in lines)


def test_a_killed_run_resumes_and_overwriting_takes_its_own_files_alone(drawn, tmp_path, monkeypatch):
    images, out = drawn / "data" / "test" / "images", tmp_path / "out"
    command = ("diffuseseg", "segment", images, "--model", drawn / "model", "--batch_size", "1", "--output_dir", out)

    def cut_off(run, batch, segment_pictures=inference_files.segment_pictures):
        if batch[0][0] == 2:
            (out / ".22_mask.png.4711.partial").write_bytes(b"half")  # a kill leaves that behind
            raise KeyboardInterrupt
        return segment_pictures(run, batch)

    monkeypatch.setattr(inference_files, "segment_pictures", cut_off)
    run(*command, expect=130)
    monkeypatch.undo()
    assert (out / "21_overlay.png").exists() and not (out / "22_mask.png").exists()
    assert not (out / "segments.jsonl").exists()  # which says that all is there
    (out / "mine_mask.png").write_bytes(b"mine")  # named like a result, and not one of this run
    assert "mine_mask.png" in run(*command, "--overwrite", expect=1).stderr
    (out / "mine_mask.png").rename(tmp_path / "mine_mask.png")
    again, calls = inference_files.segment_pictures, []
    monkeypatch.setattr(inference_files, "segment_pictures", lambda *given: calls.append(given) or again(*given))
    run(*command)
    assert len(calls) == 2  # the images that were missing
    made = [f"{i}_{kind}.png" for i in range(20, 24) for kind in ("mask", "overlay")]
    assert sorted(p.name for p in out.iterdir()) == sorted([*made, "segments.jsonl", ".diffuseseg-run.json"])
    lines = [json.loads(line) for line in (out / "segments.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == [name for name in made if "mask" in name]
    run(*command, "--overwrite")
    assert sorted(p.name for p in out.iterdir()) == sorted([*made, "segments.jsonl", ".diffuseseg-run.json"])


def test_one_image_that_cannot_be_segmented_is_named_and_does_not_stop_the_others(drawn, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(drawn / "data" / "test" / "images", images)
    Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)).save(images / "nan.tiff")
    shutil.copy(images / "20.png", images / f"{'x' * 245}.png")
    given = ("--model", drawn / "model", "--output_dir", tmp_path / "out")
    said = run("diffuseseg", "segment", images, *given, expect=1)
    assert "nan.tiff" in said.stderr and "have no range" in said.stderr
    assert "5 of 6 images segmented" in said.stdout


def test_nothing_is_overwritten_where_no_image_is_found(drawn, tmp_path):
    images, model = drawn / "data" / "test" / "images", ("--model", drawn / "model")
    run("diffuseseg", "segment", images / "20.png", *model, "--output_dir", tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    for wrong, message in (
        ((tmp_path / "nowhere",), "There is no file or folder"),
        ((images, "--batch_size", "0"), "--batch_size must be at least 1"),
        ((images, "--mask_size", "8", "0"), "--mask_size must be at least 1, got 0"),
        ((images, "--alpha", "1.5"), "--alpha must lie in 0 to 1"),
    ):
        result = run("diffuseseg", "segment", *wrong, *model, "--output_dir", tmp_path / "out", "--overwrite", expect=1)
        assert message in result.stderr and "Traceback" not in result.stderr
        assert sorted(tmp_path.rglob("*")) == before


def test_files_are_named_after_their_images_without_a_name_twice():
    assert free_names(["a", "a", "a-2", "b", "a", "a-2"]) == ["a", "a-2", "a-2-2", "b", "a-3", "a-2-3"]
    addresses = {"https://h/x/a%20b.png?size=2": "a b", "http://h/": "image", "dir/c.tar.png": "c.tar"}
    assert {address: stem(address) for address in addresses} == addresses


def test_masks_beside_images_are_no_images_and_each_image_is_segmented_once(tmp_path, caplog):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            Image.fromarray(draw((16, 16), i)[folder == "masks"]).save(tmp_path / folder / f"{i}.png")
    first, second = (str(tmp_path / "images" / f"{i}.png") for i in range(2))
    assert list_images([second, str(tmp_path)]) == [second, first]
    assert f"2 pictures of {tmp_path} are masks (images/ and masks/), and are left out" in caplog.text
    assert "1 are given twice" in caplog.text
    caplog.clear()
    assert list_images([str(tmp_path / "masks")]) == [str(tmp_path / "masks" / f"{i}.png") for i in range(2)]
    assert not caplog.messages


@pytest.mark.parametrize("changed", ["model", "precision", "picture", "another picture"])
def test_a_run_is_resumed_only_with_the_model_the_precision_and_the_pictures_of_its_first_half(
    drawn, tmp_path, monkeypatch, changed
):
    """Was: after a new fit under the same name, 18 masks of one model and 6 of the other, with status 0."""
    images, model, out = tmp_path / "images", tmp_path / "model", tmp_path / "out"
    shutil.copytree(drawn / "data" / "test" / "images", images)
    shutil.copytree(drawn / "model", model)
    command = ("diffuseseg", "segment", images, "--model", model, "--batch_size", "1", "--output_dir", out)
    command = (*command, "--dtype", "float32")

    def cut_off(run, batch, segment_pictures=inference_files.segment_pictures):
        if batch[0][0] == 2:
            raise KeyboardInterrupt
        return segment_pictures(run, batch)

    with monkeypatch.context() as patch:
        patch.setattr(inference_files, "segment_pictures", cut_off)
        run(*command, expect=130)
    before = {path: path.read_bytes() for path in out.glob("*.png")}
    if changed == "model":  # fitted anew
        fit = ("diffuseseg", "fit", "--model", drawn / "ddpm", "--dataset_name", drawn / "data", "--recipe", "fast")
        run(*fit, "--num_members", "3", "--seed", "1", "--output_dir", model, "--overwrite")
        said = "the contents of --model differ (segmentation_head"
    elif changed == "precision":
        command = (*command[:-1], "bfloat16")
        said = "--dtype float32 (now bfloat16)"
    elif changed == "picture":
        Image.fromarray(draw((24, 30), 99)[0]).save(images / "20.png")
        said = f"the contents of images differ ({images / '20.png'})"
    else:
        Image.fromarray(draw((24, 30), 99)[0]).save(images / "99.png")
        said = f"the contents of images differ ({images / '99.png'})"
    refused = run(*command, expect=1)
    assert said in refused.stderr and "pass --overwrite" in refused.stderr
    assert {path: path.read_bytes() for path in out.glob("*.png")} == before
    run(*command, "--overwrite")
    complete = {path: path.read_bytes() for path in out.glob("*_mask.png")}
    assert len(complete) == 4 + (changed == "another picture")
    assert "is complete" in run(*command).stdout
    assert not all(complete.get(path) == data for path, data in before.items()) or "picture" in changed


def test_python_gets_the_list_of_results_and_what_could_not_be_read(drawn, tmp_path):
    given = dict(model=drawn / "model", images=[drawn / "data" / "test" / "images"])
    lines = segment(SegmentConfig(**given, output_dir=tmp_path / "out"))
    assert lines == tmp_path / "out" / "segments.jsonl" and len(lines.read_text().splitlines()) == 4
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given["images"].append(tmp_path / "broken.png")
    with pytest.raises(UserError, match="1 of 5 images cannot be read; .*unreadable.jsonl lists them"):
        segment(SegmentConfig(**given, output_dir=tmp_path / "other"))
    assert len(list((tmp_path / "other").glob("*_mask.png"))) == 4


def test_a_photo_is_decoded_once_and_needs_one_extractor(tmp_path, monkeypatch):
    """Was: four extractors for a photo, its pixels converted three times, and turned photos decoded twice."""
    make_pipeline(head=True, in_channels=3, out_channels=3).save_pretrained(tmp_path / "model")
    turned = Image.Exif()
    turned[274] = 6
    for i in range(6):
        Image.fromarray(draw((24, 30), i, 3)[0]).save(tmp_path / f"{i}.jpg", exif=turned)
    calls = Counter()

    def count(owner, name):
        made = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **given: calls.update([name]) or made(*args, **given))

    for owner, name in (
        (FeatureExtractor, "__init__"),
        (DiffuseSegImageProcessor, "load"),
        (DiffuseSegImageProcessor, "convert"),
        (image_processor, "decode_image"),
        (Path, "replace"),
    ):
        count(owner, name)
    monkeypatch.setattr(pictures, "decode_image", image_processor.decode_image)
    given = dict(model=tmp_path / "model", images=[tmp_path / f"{i}.jpg" for i in range(6)])
    segment(SegmentConfig(**given, output_dir=tmp_path / "whole"))
    assert calls["__init__"] == 2  # where the pipeline is loaded, and for the whole run
    assert calls["load"] == 1 and not calls["convert"]
    calls.clear()
    segment(SegmentConfig(**given, tile=True, output_dir=tmp_path / "tiles"))
    assert calls["__init__"] == 2 and calls["decode_image"] == 6
    lines = [json.loads(line) for line in (tmp_path / "tiles" / "segments.jsonl").read_text().splitlines()]
    assert [(line["height"], line["width"]) for line in lines] == [(30, 24)] * 6


def test_results_that_are_not_whole_are_not_called_complete(drawn, tmp_path):
    arguments = ("diffuseseg", "segment", drawn / "data" / "test" / "images", "--model", drawn / "model")
    arguments += ("--output_dir", tmp_path / "out")
    run(*arguments)
    mask = next((tmp_path / "out").glob("*_mask.png"))
    kept = mask.read_bytes()
    mask.unlink()
    assert f"{mask.name} is missing" in run(*arguments, expect=1).stderr
    mask.write_bytes(kept)
    assert "is complete" in run(*arguments).stdout
    lines = tmp_path / "out" / "segments.jsonl"
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:-1]))
    assert "segments.jsonl lists" in run(*arguments, expect=1).stderr
