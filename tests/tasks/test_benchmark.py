# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg benchmark`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffuseseg_diffusers import DiffuseSegPipeline, PixelClassifierEnsemble
from diffuseseg_diffusers.cli import main
from diffuseseg_diffusers.tasks.benchmark import BENCHMARKS

from ..conftest import draw, run
from ..paper.guided_unet import random_state
from ..paper.test_guided_diffusion import TINY, TINY_LINE


# Results are compared with those of another process, which runs with one thread.
pytestmark = pytest.mark.usefixtures("one_thread")


def write_folder(folder, count, seed, size=(16, 16)):
    """Images with `.npy` masks beside them, as the authors publish them."""
    folder.mkdir(parents=True)
    for i in range(count):
        image, mask = draw(size, seed + i, channels=3)
        Image.fromarray(image).save(folder / f"{i}.png")
        np.save(folder / f"{i}.npy", mask.astype(np.int64))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small benchmark: data in the published layout, a checkpoint of guided-diffusion, and its settings."""
    folder = tmp_path_factory.mktemp("published")
    for part, count, seed in (("real/train", 6, 0), ("real/test", 4, 50), ("ddpm", 4, 90)):
        write_folder(folder / "shapes_3" / part, count, seed)
    torch.save(random_state(TINY), folder / "shapes.pt")
    spec = json.loads(BENCHMARKS["horse_21"].read_text()) | {
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
    spec.pop("preset")
    spec["dataset_ddpm"] |= {"num_epochs": 1, "student": str(student_config(folder))}
    (folder / "shapes_3.json").write_text(json.dumps(spec))
    return folder


def student_config(folder):
    path = folder / "student.json"
    sizes = dict(depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[2, 1], strides=[2, 2])
    sizes |= dict(num_encoder_blocks=2, patch_sizes=[3, 3], mlp_ratios=[2, 2], decoder_hidden_size=16)
    path.write_text(json.dumps({"model_type": "segformer", **sizes}))
    return path


def arguments(published, out, *more) -> list[str]:
    given = [published / "shapes_3.json", "--data", published / "shapes_3", "--checkpoint", published / "shapes.pt"]
    return [str(x) for x in (*given, "--output_dir", out, *more)]


def benchmark(*given, expect: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", *arguments(*given)])
    assert ended.value.code == expect


def test_the_command_prints_our_result_and_resumes_where_it_was_cut_off(published, tmp_path, capsys):
    out = tmp_path / "out"
    said = run("diffuseseg", "benchmark", *arguments(published, out, "--num_seeds", "2"), OMP_NUM_THREADS="1")
    assert "Shapes-3, mean IoU in %" in said.stdout
    row = next(line for line in said.stdout.splitlines() if line.split()[:1] == ["DDPM"])
    assert "65.0 ± 0.8   here" in row and row.endswith("(2 runs)")
    result = json.loads((out / "ddpm.json").read_text())
    each = [json.loads((out / f"ddpm-seed{s}" / "metrics.json").read_text())["mean_iou"] for s in (0, 1)]
    assert result["mean_iou"] == [100 * x for x in each] and min(each) > 0.4
    assert Image.open(out / "ddpm-seed0" / "examples.png").size[0] > 300
    head = PixelClassifierEnsemble.from_pretrained(out / "ddpm-seed1" / "segmentation_head")
    pipe = DiffuseSegPipeline.from_pretrained(out / "model", segmentation_head=head)
    assert pipe.label_names == ["sky", "disc", "bar"] and head.config.blocks == [1, 3]

    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]))  # killed while the second was written
    benchmark(published, out, "--num_seeds", "2")
    assert capsys.readouterr().out.count("pixel accuracy") == 1  # the second seed alone
    assert json.loads((out / "ddpm.json").read_text()) == result
    benchmark(published, out, "--recipe", "fast", expect=1)
    assert "another run: --recipe paper (now fast)" in capsys.readouterr().err
    checkpoint = published / "shapes.pt"
    weights = checkpoint.read_bytes()
    torch.save({name: values + 1e-3 for name, values in random_state(TINY).items()}, checkpoint)
    benchmark(published, out, "--num_seeds", "2", expect=1)
    checkpoint.write_bytes(weights)
    assert "the contents of --checkpoint differ" in capsys.readouterr().err


@pytest.mark.slow
def test_dataset_ddpm_labels_what_the_model_draws_and_trains_a_student_and_overwriting_takes_all_of_it(
    published, tmp_path, capsys
):
    out = tmp_path / "out"
    more = ("--method", "dataset_ddpm", "--num_samples", "20", "--num_inference_steps", "3", "--batch_size", "10")
    benchmark(published, out, *more)
    assert "DatasetDDPM    60.8 ± 1.0   here" in capsys.readouterr().out
    folder = out / "dataset_ddpm-20-3-seed0"
    made = json.loads((folder / "synthetic" / "generation.json").read_text())
    assert made["result"]["num_kept"] == 18 and made["settings"]["drop_uncertain"] == 0.1
    assert json.loads((folder / "student" / "config.json").read_text())["id2label"]["1"] == "disc"

    benchmark(published, out, "--overwrite", "--checkpoint", str(tmp_path / "nothing.pt"), expect=1)
    (folder / "mine.txt").write_text("mine")
    benchmark(published, out, "--overwrite", expect=1)
    assert "mine.txt)" in capsys.readouterr().err and (folder / "student" / "config.json").is_file()
    (folder / "mine.txt").unlink()
    benchmark(published, out, "--overwrite", "--recipe", "fast")
    assert not folder.exists() and (out / "ddpm.json").is_file()


def test_what_is_missing_is_said_with_where_it_can_be_had(tmp_path, capsys):
    for part in ("test", "train"):
        write_folder(tmp_path / "real" / part, 1, 0)
    given = ["--data", tmp_path, "--checkpoint", tmp_path / "lsun_horse.pt", "--output_dir", tmp_path / "out"]
    for name, message in (
        ("horse_21", "lsun_horse.pt is at https://openaipublic.blob.core.windows.net"),
        ("dog_3", "no benchmark dog_3; there are ade_bedroom_30, bedroom_28"),
    ):
        with pytest.raises(SystemExit):
            main(["benchmark", name, *map(str, given)])
        said = capsys.readouterr()
        assert message in said.err
    assert not (tmp_path / "out").exists()
