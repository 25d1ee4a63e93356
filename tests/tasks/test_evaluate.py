# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json

import torch
from PIL import Image

from diffuseseg_diffusers.jobs.hardware import explain_dtype

from ..conftest import run


def test_what_is_fitted_in_one_process_is_measured_in_another(drawn, tmp_path):
    data = ("--dataset_name", drawn / "data")
    evaluated = run(
        *("diffuseseg", "evaluate", "--model", drawn / "model", *data, "--output_dir", tmp_path / "eval"),
        *("--verbose", "--device", "cpu"),
        fresh=True,
    )
    precision, reason = explain_dtype(torch.device("cpu"))
    said = f"{drawn / 'model'}: {str(precision).removeprefix('torch.')} on cpu ({reason})"
    assert said in evaluated.stderr.splitlines()
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["mean_iou"] > 0.7 and metrics["num_images"] == 4
    assert list(metrics["per_class_iou"]) == ["sky", "disc", "bar"]
    printed = [line for line in evaluated.stdout.splitlines() if line.startswith("mean IoU")][0].split()
    assert printed == f"mean IoU {metrics['mean_iou']:.4f}".split()
    page = Image.open(tmp_path / "eval" / "examples.png")
    assert page.width > 400 and page.height > 400


def test_evaluating_ignores_what_the_model_was_fitted_to_ignore(drawn, tmp_path):
    data = ("--dataset_name", drawn / "data")
    run(
        *("diffuseseg", "fit", "--model", drawn / "ddpm", *data, "--num_members", "2", "--recipe", "fast"),
        *("--ignore_index", "0", "--output_dir", tmp_path / "model"),
    )
    named = ("--pretrained_model_name_or_path", tmp_path / "model", "--train_data_dir", drawn / "data")
    run("diffuseseg", "evaluate", *named, "--output_dir", tmp_path / "eval")
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["per_class_iou"]["sky"] is None and metrics["mean_iou"] > 0.5


def test_a_student_is_measured_as_a_pipeline_is(drawn, student, tmp_path):
    data = ("--dataset_name", drawn / "data")
    run("diffuseseg", "evaluate", "--model", student, *data, "--output_dir", tmp_path / "eval")
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert list(metrics["per_class_iou"]) == ["sky", "disc", "bar"] and metrics["num_images"] == 4
    assert (tmp_path / "eval" / "examples.png").exists()  # of a model without uncertainty
