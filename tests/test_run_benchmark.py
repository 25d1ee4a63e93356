# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, LabeledImages, PixelClassifierEnsemble
from diffuseseg_diffusers.guided_diffusion import PRESETS
from diffuseseg_diffusers.training.run_benchmark import BENCHMARKS, AtSize, load_images, read_recipe

from .conftest import dataset_of, draw, run, shared
from .guided_unet import random_state
from .test_guided_diffusion import TINY, TINY_LINE


def write_folder(folder, count, seed, size=(16, 16)):
    """Images with `.npy` masks beside them, as the authors publish them."""
    folder.mkdir(parents=True)
    for i in range(count):
        image, mask = draw(size, seed + i, channels=3)
        Image.fromarray(image).save(folder / f"{i}.png")
        np.save(folder / f"{i}.npy", mask.astype(np.int64))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small benchmark: data in the published layout, a checkpoint of guided-diffusion, and its recipe."""
    folder = tmp_path_factory.mktemp("published")
    for part, count, seed in (("real/train", 6, 0), ("real/test", 4, 50), ("ddpm", 4, 90)):
        write_folder(folder / "shapes_3" / part, count, seed)
    torch.save(random_state(TINY), folder / "shapes.pt")
    recipe = read_recipe("horse_21") | {
        "title": "Shapes-3",
        "label_names": ["sky", "disc", "bar"],
        "palette": [[0, 0, 0], [230, 159, 0], [86, 180, 233]],
        "train_images": 6,
        "test_images": 4,
        "image_size": 16,
        "flags": TINY_LINE,
        "blocks": [1, 3],
        "num_members": 3,
    }
    recipe.pop("preset")
    recipe["dataset_ddpm"] |= {"num_epochs": 1, "student": str(student_config(folder))}
    (folder / "shapes_3.json").write_text(json.dumps(recipe))
    return folder


def student_config(folder):
    path = folder / "student.json"
    sizes = dict(depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[2, 1], strides=[2, 2])
    sizes |= dict(num_encoder_blocks=2, patch_sizes=[3, 3], mlp_ratios=[2, 2], decoder_hidden_size=16)
    path.write_text(json.dumps({"model_type": "segformer", **sizes}))
    return path


def benchmark(published, out, *more, **kwargs):
    given = (published / "shapes_3.json", "--data", published / "shapes_3", "--checkpoint", published / "shapes.pt")
    return run("diffuseseg", "benchmark", *given, "--output_dir", out, *more, OMP_NUM_THREADS="1", **kwargs)


def test_the_whole_command_prints_our_cell_and_goes_on_where_it_was_cut_off(published, tmp_path):
    out = tmp_path / "out"
    said = benchmark(published, out, "--num_seeds", "2")
    assert "Shapes-3, mean IoU in %" in said.stdout
    row = next(line for line in said.stdout.splitlines() if line.split()[:1] == ["DDPM"])
    assert "65.0 ± 0.8   here" in row and row.endswith("(2 runs)")
    result = json.loads((out / "ddpm.json").read_text())
    each = [json.loads((out / f"ddpm-seed{s}" / "metrics.json").read_text())["mean_iou"] for s in (0, 1)]
    assert result["mean_iou"] == [100 * x for x in each] and min(each) > 0.4
    assert result["std"] == pytest.approx(np.std(result["mean_iou"], ddof=1))
    assert Image.open(out / "ddpm-seed0" / "examples.png").size[0] > 300
    head = PixelClassifierEnsemble.from_pretrained(out / "ddpm-seed1" / "segmentation_head")
    pipe = DiffuseSegPipeline.from_pretrained(out / "model", segmentation_head=head)
    assert pipe.label_names == ["sky", "disc", "bar"] and head.config.blocks == [1, 3]

    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]))  # killed while the second was written
    again = benchmark(published, out, "--num_seeds", "2")
    assert again.stdout.count("pixel accuracy") == 1  # the second seed alone
    assert json.loads((out / "ddpm.json").read_text()) == result
    said = benchmark(published, out, "--recipe", "fast", expect=1)
    assert "another study: recipe paper (now fast)" in said.stderr


def test_dataset_ddpm_labels_what_the_model_draws_and_trains_a_student(published, tmp_path):
    more = ("--method", "dataset_ddpm", "--num_samples", "20", "--num_inference_steps", "3", "--batch_size", "10")
    said = benchmark(published, tmp_path / "out", *more)
    assert "DatasetDDPM    60.8 ± 1.0   here" in said.stdout
    folder = tmp_path / "out" / "dataset_ddpm-20-3-seed0"
    made = json.loads((folder / "synthetic" / "generation.json").read_text())
    assert made["result"]["num_kept"] == 18 and made["settings"]["drop_uncertain"] == 0.1
    assert json.loads((folder / "student" / "config.json").read_text())["id2label"]["1"] == "disc"


def test_what_is_missing_is_said_with_where_it_can_be_had(tmp_path):
    recipe, folder = read_recipe("horse_21"), tmp_path / "real" / "test"
    with pytest.raises(ValueError, match="real/test; the datasets are in https://storage.yandexcloud.net"):
        load_images(recipe, folder, 30)
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "0.png")
    with pytest.raises(ValueError, match="has no masks: images of the benchmarks have a .npy file beside each"):
        load_images(recipe, folder, 30)
    with pytest.raises(ValueError, match="no benchmark dog_3; there are ade_bedroom_30, bedroom_28"):
        read_recipe("dog_3")
    np.save(folder / "0.npy", np.zeros((8, 8)))
    given = ("diffuseseg", "benchmark", "horse_21", "--data", tmp_path, "--checkpoint", tmp_path / "lsun_horse.pt")
    said = run(*given, "--output_dir", tmp_path / "out", expect=1)
    assert "has 1 images, and the paper's benchmark 30" in said.stdout
    assert "lsun_horse.pt is at https://openaipublic.blob.core.windows.net" in said.stderr


# Recipes


def test_the_recipes_are_the_published_ones():
    reference = json.loads(shared("reference/published_benchmarks.json").read_text())["benchmarks"]
    assert BENCHMARKS.keys() == reference.keys()
    for name, theirs in reference.items():
        ours = read_recipe(name)
        assert ours["label_names"] == theirs["class_names"] and len(ours["palette"]) == theirs["num_classes"]
        same = ("ignore_index", "checkpoint", "train_images", "test_images", "image_size", "blocks", "timesteps")
        assert [ours[k] for k in (*same, "batch_size")] == [theirs[k] for k in (*same, "batch_size")]
        assert ours["num_members"] == theirs["members"] and ours["preset"] in PRESETS
        cells = {method: f"{mean:.1f} ± {std:.1f}" for method, (mean, std) in ours["published_mean_iou"].items()}
        assert cells == theirs["published_miou"]
        assert ("dataset_ddpm" in ours) == ("DatasetDDPM" in cells)


def test_images_of_another_size_are_read_as_the_published_code_reads_them(tmp_path):
    write_folder(tmp_path / "part", 2, 0, size=(40, 40))
    recipe = read_recipe("horse_21") | {"label_names": ["sky", "disc", "bar"], "palette": None, "image_size": 16}
    row = load_images(recipe, tmp_path / "part", 2)[1]
    whole = np.load(tmp_path / "part" / "1.npy")
    assert row.image.size == (16, 16) and row.mask.dtype == np.uint8
    for y in range(16):
        for x in range(16):
            assert row.mask[y, x] == whole[int(y * 2.5), int(x * 2.5)]  # as cv2.INTER_NEAREST rounds
    oblong = LabeledImages(dataset_of(*[[x] for x in draw((16, 24), 0)]), num_classes=3)
    with pytest.raises(ValueError, match="24 × 16, but the benchmarks are of square images"):
        AtSize(oblong, 16)[0]
