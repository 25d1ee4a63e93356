# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg train-student`, and the folder that it leaves."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation, pipeline

from diffuseseg_diffusers.student import StudentSegmenter, make_processor
from diffuseseg_diffusers.training import train_student

from .conftest import dataset_of, draw, run
from .hub_server import validate_card
from .test_student import NAMES, write_config


# Bits are compared with those of other processes, which run with one thread.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def drawn(tmp_path):
    """Pictures with masks for training and testing."""
    folder = tmp_path / "drawn"
    for split, seeds in (("train", range(20)), ("test", range(20, 26))):
        images, masks = zip(*[draw((32, 32), i) for i in seeds])
        (folder / "data").mkdir(parents=True, exist_ok=True)
        dataset_of(images, masks).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(NAMES))))
    return folder


def options(drawn, output, *more) -> list[str]:
    given = ["--train_dataset_name", drawn, "--eval_dataset_name", drawn, "--model", write_config(drawn.parent)]
    given += ["--images_per_epoch", "32", "--train_batch_size", "8", "--dataloader_num_workers", "0"]
    given += ["--learning_rate", "5e-3", "--cache_dir", drawn.parent / "cache", "--output_dir", output, *more]
    return [str(x) for x in given]


def train(*given) -> dict:
    parser = argparse.ArgumentParser()
    train_student.add_arguments(parser)
    args = parser.parse_args(options(*given))
    train_student.main(args)
    return json.loads((args.output_dir / "student_training.json").read_text())


def test_a_student_learns_and_transformers_loads_the_folder(hub, drawn, tmp_path):
    said = run(
        *("diffuseseg", "train-student"),
        *options(drawn, tmp_path / "out", "--num_epochs", "6", "--real_dataset_name", drawn),
        *("--images_per_epoch", "400", "--push_to_hub", "--hub_model_id", "alice/student"),
        HF_HUB_OFFLINE="0",
        OMP_NUM_THREADS="1",
    )
    assert "Pushed: " in said.stdout
    report = json.loads((tmp_path / "out" / "student_training.json").read_text())
    assert report["evaluation"]["mean_iou"] > 0.5
    assert report["epochs"][-1]["loss"] < 0.7 * report["epochs"][0]["loss"]
    assert report["validation_mean_iou"] == max(e["validation"] for e in report["epochs"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "student_training.json",
    }
    picture, mask = draw((32, 32), 21)
    found = pipeline("image-segmentation", model=str(tmp_path / "out"))(Image.fromarray(picture).convert("RGB"))
    assert {f["label"] for f in found} <= set(NAMES)
    disc = next(np.asarray(f["mask"]) > 0 for f in found if f["label"] == "disc")
    assert (disc & (mask == 1)).sum() / (disc | (mask == 1)).sum() > 0.4

    files = hub.files("models", "alice/student")
    weights = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(files) - {".gitattributes"} == weights | {"README.md"}
    card = files["README.md"].decode()
    assert validate_card(card, "model") == []
    assert f"| **mean IoU** | **{report['evaluation']['mean_iou']:.4f}** |" in card
    for what in ("library_name: transformers", 'model="alice/student"', "| 1 | disc |", "20 of drawn", "random"):
        assert what in card, what
    assert str(tmp_path) not in card and "generated and labelled" not in card
    pushed = pipeline("image-segmentation", model="alice/student")(Image.fromarray(picture).convert("RGB"))
    assert all(np.array_equal(a["mask"], b["mask"]) for a, b in zip(pushed, found, strict=True))


def test_the_onnx_file_gives_the_masks_that_pytorch_gives(drawn, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    train(drawn, tmp_path / "student", "--num_epochs", "1", "--resolution", "32", "64")
    said = run("diffuseseg", "export-onnx", tmp_path / "student", tmp_path / "student.onnx")
    assert "pixels [N, 3, 32, 64]" in said.stdout
    segmenter = StudentSegmenter(
        AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "student"),
        make_processor(str(tmp_path / "student")),
    )
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        pictures = [draw((32, 64), i, channels=3)[0] for i in range(count)]
        pixels = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32) / 255
        masks = session.run(["masks"], {"pixels": pixels})[0]
        expected = np.stack(segmenter.segment(pictures).masks)
        assert masks.dtype == np.uint8 and (masks == expected).mean() > 0.999  # ties of float32
    said = run("diffuseseg", "export-onnx", tmp_path / "student", tmp_path / "student.onnx", expect=1)
    assert "exists and is kept" in said.stderr


def test_a_run_that_is_stopped_and_goes_on_ends_with_the_same_weights(drawn, tmp_path, monkeypatch):
    train(drawn, tmp_path / "whole", "--num_epochs", "3")
    real = train_student.evaluate_segmentation
    calls = []

    def stop(*args, **kwargs):  # in the second epoch, before its checkpoint
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(train_student, "evaluate_segmentation", stop)
    with pytest.raises(KeyboardInterrupt):
        train(drawn, tmp_path / "stopped", "--num_epochs", "3")
    monkeypatch.undo()
    train(drawn, tmp_path / "stopped", "--num_epochs", "3")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_cannot_be_trained_is_a_sentence(drawn, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(FileExistsError, match="exists and is kept"):
        train(drawn, tmp_path / "out")
    with pytest.raises(FloatingPointError, match="The loss is nan in epoch"):
        train(drawn, tmp_path / "diverged", "--learning_rate", "1e30", "--num_epochs", "3")
