# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper.guided_diffusion import PRESETS
from diffuseseg_diffusers.paper.published_benchmarks import (
    Benchmark,
    SquareImages,
    compare_with_published,
    load_benchmark_images,
    read_benchmark,
)
from diffuseseg_diffusers.tasks.benchmark import BENCHMARKS

from ..conftest import dataset_of, draw, shared


SHAPES = Benchmark(
    title="Shapes-3",
    label_names=["sky", "disc", "bar"],
    palette=None,
    ignore_index=255,
    dataset_url="https://example.org/datasets.tar.gz",
    checkpoint_url="https://example.org/shapes.pt",
    checkpoint="shapes.pt",
    train_images=6,
    test_images=4,
    image_size=16,
    blocks=[1, 3],
    timesteps=[50],
    num_members=3,
    batch_size=64,
    published_mean_iou={"MAE": [63.4, 1.4], "DDPM": [65.0, 0.8]},
)


def test_the_benchmarks_are_the_published_ones():
    reference = json.loads(shared("reference/published_benchmarks.json").read_text())["benchmarks"]
    assert BENCHMARKS.keys() == reference.keys()
    for name, theirs in reference.items():
        ours = read_benchmark(BENCHMARKS[name])
        assert ours.label_names == theirs["class_names"] and len(ours.palette) == theirs["num_classes"]
        same = ("ignore_index", "checkpoint", "train_images", "test_images", "image_size", "blocks", "timesteps")
        assert [getattr(ours, k) for k in (*same, "batch_size")] == [theirs[k] for k in (*same, "batch_size")]
        assert ours.num_members == theirs["members"] and ours.preset in PRESETS
        cells = {method: f"{mean:.1f} ± {std:.1f}" for method, (mean, std) in ours.published_mean_iou.items()}
        assert cells == theirs["published_miou"]
        assert (ours.dataset_ddpm is not None) == ("DatasetDDPM" in cells)


def test_a_file_that_is_no_benchmark_is_told(tmp_path):
    (tmp_path / "spec.json").write_text('{"title": "x", "colour": "red"}')
    with pytest.raises(UserError, match="it misses label_names, .*preset or flags and has unknown colour"):
        read_benchmark(tmp_path / "spec.json")


def test_images_of_another_size_are_read_as_the_published_code_reads_them(tmp_path):
    folder = tmp_path / "part"
    with pytest.raises(UserError, match="part; the datasets are in https://example.org"):
        load_benchmark_images(SHAPES, folder, 2)
    folder.mkdir()
    images, masks = zip(*[draw((40, 40), i, channels=3) for i in range(2)])
    for i in range(2):
        Image.fromarray(images[i]).save(folder / f"{i}.png")
    with pytest.raises(UserError, match="images of the benchmarks have a .npy file beside each"):
        load_benchmark_images(SHAPES, folder, 2)
    for i in range(2):
        np.save(folder / f"{i}.npy", masks[i].astype(np.int64))
    row = load_benchmark_images(SHAPES, folder, 2)[1]
    assert row.image.size == (16, 16) and row.mask.dtype == np.uint8
    for y in range(16):
        for x in range(16):
            assert row.mask[y, x] == masks[1][int(y * 2.5), int(x * 2.5)]  # as cv2.INTER_NEAREST rounds
    oblong = LabeledImages(dataset_of(*[[x] for x in draw((16, 24), 0)]), num_classes=3)
    with pytest.raises(UserError, match="24 × 16, but the benchmarks are of square images"):
        SquareImages(oblong, 16)[0]


def test_our_runs_stand_beside_the_papers():
    table, report = compare_with_published(SHAPES, "DDPM", [60.0, 64.0])
    assert table.splitlines()[0] == "Shapes-3, mean IoU in %"
    assert table.splitlines()[1].endswith("63.4 ± 1.4")
    assert table.splitlines()[2].endswith("65.0 ± 0.8   here 62.0 ± 2.8 (2 runs)")
    assert report["mean"] == 62 and report["std"] == pytest.approx(np.std([60, 64], ddof=1))
    assert compare_with_published(SHAPES, "DDPM", [60.0])[0].endswith("here 60.0 (1 run)")
