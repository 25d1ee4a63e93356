# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The command `diffuseseg train-student`, and the folder that it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import pipeline

from diffuseseg_diffusers import fit_segmentation_head, load_labeled_images, load_pipeline
from diffuseseg_diffusers.cli import main
from diffuseseg_diffusers.evaluation.decision_fitting import fit_decisions
from diffuseseg_diffusers.jobs.errors import NotFiniteError
from diffuseseg_diffusers.jobs.files import write_record
from diffuseseg_diffusers.students import report
from diffuseseg_diffusers.trainer.loop import Trainer
from diffuseseg_diffusers.training import train_student

from ..conftest import QUICK, dataset_of, draw, make_pipeline, run
from ..hub_server import validate_card
from ..students.test_networks import NAMES, write_config


@pytest.fixture
def drawn(tmp_path):
    """Images with masks for training and testing."""
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


def train(*given, expect: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train-student", *options(*given)])
    assert ended.value.code == expect


def report_of(folder) -> dict:
    return json.loads((folder / "student_training.json").read_text())


def test_a_student_learns_and_transformers_loads_the_folder(hub, drawn, tmp_path, fast_bfloat16):
    said = run(
        *("diffuseseg", "train-student"),
        *options(drawn, tmp_path / "out", "--num_epochs", "6", "--real_dataset_name", drawn),
        *("--images_per_epoch", "400", "--push_to_hub", "--hub_model_id", "alice/student"),
        HF_HUB_OFFLINE="0",
        OMP_NUM_THREADS="1",
    )
    assert "Pushed: " in said.stdout
    report = report_of(tmp_path / "out")
    assert report["evaluation"]["mean_iou"] > 0.5
    assert report["epochs"][-1]["loss"] < 0.7 * report["epochs"][0]["loss"]
    assert report["validation_mean_iou"] == max(e["validation"] for e in report["epochs"])
    agreement = json.loads((tmp_path / "out" / "config.json").read_text())["agreement"]
    assert 0.9 < agreement["bfloat16"] <= 1 and report["agreement"] == agreement
    weights = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *weights,
        "student_training.json",
        "train_log.jsonl",
        ".diffuseseg-run.json",
    }
    image, mask = draw((32, 32), 21)
    found = pipeline("image-segmentation", model=str(tmp_path / "out"))(Image.fromarray(image).convert("RGB"))
    assert {f["label"] for f in found} <= set(NAMES)
    disc = next(np.asarray(f["mask"]) > 0 for f in found if f["label"] == "disc")
    assert (disc & (mask == 1)).sum() / (disc | (mask == 1)).sum() > 0.4

    files = hub.files("models", "alice/student")
    assert set(files) - {".gitattributes"} == weights | {"README.md"}
    card = files["README.md"].decode()
    assert validate_card(card, "model") == []
    assert f"| **mean IoU** | **{report['evaluation']['mean_iou']:.4f}** |" in card
    for what in ("library_name: transformers", 'model="alice/student"', "| 1 | disc |", "20 of drawn", "random"):
        assert what in card, what
    assert str(tmp_path) not in card and "generated and labelled" not in card
    pushed = pipeline("image-segmentation", model="alice/student")(Image.fromarray(image).convert("RGB"))
    assert all(np.array_equal(a["mask"], b["mask"]) for a, b in zip(pushed, found, strict=True))


def test_a_stopped_run_resumes_and_ends_with_the_same_weights(drawn, tmp_path, monkeypatch, capsys):
    train(drawn, tmp_path / "whole", "--num_epochs", "3")
    real = report.evaluate_segmentation
    calls = []

    def stop(*args, **kwargs):  # in the second epoch, before its checkpoint
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    stopped = (drawn, tmp_path / "stopped", "--num_epochs", "3", "--resume_from_checkpoint", "latest")
    monkeypatch.setattr(report, "evaluate_segmentation", stop)
    train(*stopped, expect=130)
    monkeypatch.undo()
    train(*stopped, "--seed", "1", expect=1)
    assert "holds another run: --seed 0 (now 1)" in capsys.readouterr().err
    train(*stopped)
    assert "checkpoint-000004." in capsys.readouterr().out
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert report_of(tmp_path / "whole")["epochs"] == report_of(tmp_path / "stopped")["epochs"]
    assert not list((tmp_path / "stopped").glob("*checkpoint*"))
    train(*stopped)
    assert "is complete" in capsys.readouterr().out
    others = dataset_of(*zip(*[draw((32, 32), i) for i in range(40, 60)]))
    others.to_parquet(drawn / "data" / "train-00000-of-00001.parquet")
    train(*stopped, expect=1)
    assert "the contents of --train_dataset_name differ" in capsys.readouterr().err


def test_overwriting_removes_the_runs_own_files_alone_and_only_if_the_inputs_are_valid(drawn, tmp_path, capsys):
    out = tmp_path / "out"
    train(drawn, out, "--num_epochs", "1")
    before = (out / "model.safetensors").read_bytes()
    for wrong in (("--model", tmp_path / "nothing"), ("--eval_split", "nothing"), ("--resolution", "1", "2", "3")):
        train(drawn, out, "--overwrite", *wrong, expect=1)
    (out / "mine.txt").write_text("mine")
    train(drawn, out, "--overwrite", expect=1)
    assert "(mine.txt)" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    (out / "mine.txt").unlink()
    train(drawn, out, "--overwrite", "--num_epochs", "1", "--seed", "1")
    assert (out / "model.safetensors").read_bytes() != before


def test_what_cannot_be_trained_is_a_sentence(drawn, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    train(drawn, tmp_path / "full", expect=1)
    assert "exists and is kept" in capsys.readouterr().err
    train(drawn, tmp_path / "diverged", "--learning_rate", "1e30", "--num_epochs", "3", expect=1)
    assert "is not finite; there is no checkpoint yet" in capsys.readouterr().err and issubclass(
        NotFiniteError, FloatingPointError
    )


@pytest.fixture
def taught(drawn, tmp_path):
    """A fitted pipeline, and a folder of pictures without labels."""
    pipe = make_pipeline()
    pipe.segmentation_head = fit_segmentation_head(
        pipe, load_labeled_images(str(drawn), cache_dir=str(tmp_path / "cache")), recipe=QUICK, num_members=2
    )
    pipe.save_pretrained(tmp_path / "teacher")
    (tmp_path / "pictures").mkdir()
    for i in range(30, 54):
        Image.fromarray(draw((32, 32), i)[0]).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "teacher", tmp_path / "pictures"


def distill(drawn, taught, output, *more) -> list[str]:
    given = [
        "train-student",
        "--teacher",
        taught[0],
        "--unlabeled_dataset_name",
        taught[1],
        "--eval_dataset_name",
        drawn,
    ]
    given += ["--train_dataset_name", drawn, "--train_batch_size", "8", "--dataloader_num_workers", "0"]
    given += ["--cache_dir", drawn.parent / "cache", "--output_dir", output, *more]
    return [str(x) for x in given]


@pytest.mark.slow
def test_a_teacher_teaches_a_u_net_from_pictures_without_labels(hub, drawn, taught, tmp_path):
    said = run(
        "diffuseseg",
        *distill(drawn, taught, tmp_path / "out", "--num_epochs", "4", "--images_per_epoch", "160"),
        *("--push_to_hub", "--hub_model_id", "alice/distilled"),
        HF_HUB_OFFLINE="0",
        OMP_NUM_THREADS="1",
    )
    assert "Pushed: " in said.stdout and "mean IoU" in said.stdout
    report = report_of(tmp_path / "out")
    assert report["evaluation"]["mean_iou"] > 0.6 and report["num_unlabeled_images"] == 24
    assert report["teacher"] == "teacher" and report["validation_mean_iou"] is None and report["num_images"] == 20
    weights = {"config.json", "diffusion_pytorch_model.safetensors", "student.json"}
    left = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert left == {*weights, "student_training.json", "train_log.jsonl", ".diffuseseg-run.json"}
    files = hub.files("models", "alice/distilled")
    assert set(files) - {".gitattributes"} == weights | {"README.md"}
    card = files["README.md"].decode()
    assert validate_card(card, "model") == [] and str(tmp_path) not in card
    for what in ("library_name: diffusers", 'load_pipeline("alice/distilled")', "24 of pictures", "by teacher"):
        assert what in card, what
    assert "images with masks and from what a fitted model thinks of images without labels" in card
    image, mask = draw((32, 32), 21)
    ours, theirs = (
        load_pipeline(name, device="cpu", dtype="float32") for name in (tmp_path / "out", "alice/distilled")
    )
    found = np.asarray(ours.segment(image).masks[0])
    assert (found == mask).mean() > 0.8 and np.array_equal(found, np.asarray(theirs.segment(image).masks[0]))
    # What it expects of the pictures without labels decides.
    assert ours.decisions == theirs.decisions is not None
    pictures = [Image.open(path) for path in sorted(taught[1].iterdir())]
    expected = fit_decisions(theirs, pictures, len(pictures), show_progress=False)
    assert ours.decisions.iou == pytest.approx(expected.iou, abs=0.02)


@pytest.mark.slow
def test_a_distillation_that_was_killed_resumes_bit_for_bit_and_asks_the_teacher_once(drawn, taught, tmp_path):
    short = ("--num_epochs", "3", "--images_per_epoch", "32", "--targets_dir", tmp_path / "targets")
    program = [str(Path(sys.executable).parent / "diffuseseg"), *distill(drawn, taught, tmp_path / "killed", *short)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([str(x) for x in program], env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 1"):
            break
    process.kill()
    process.wait()
    process.stdout.close()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "targets").glob("*.safetensors")}
    resumed = run("diffuseseg", *distill(drawn, taught, tmp_path / "killed", *short))
    assert "Resuming from" in resumed.stdout
    run("diffuseseg", *distill(drawn, taught, tmp_path / "whole", *short))
    name = "diffusion_pytorch_model.safetensors"
    a, b = (load_file(tmp_path / folder / name) for folder in ("killed", "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert before and {p: p.stat().st_mtime_ns for p in before} == before  # two runs, asked once
    other = distill(drawn, taught, tmp_path / "other", *short, "--max_unlabeled", "5")
    said = run("diffuseseg", *other, expect=1).stderr
    assert "other images: max_unlabeled None (now 5), unlabeled_images 24 (now 5), unlabeled_contents " in said
    assert not (tmp_path / "other").exists()


def test_a_denoiser_is_trained_on_with_rates_that_fall(drawn, taught, tmp_path):
    given = ("--model", taught[0], "--num_epochs", "1", "--images_per_epoch", "16", "--layer_decay", "0.7")
    run("diffuseseg", *distill(drawn, taught, tmp_path / "out", *given))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["out_channels"], config["block_out_channels"]) == (3, [8, 16, 24])
    assert report_of(tmp_path / "out")["start"] != "random"


def test_a_dataset_of_other_classes_than_the_teachers_is_refused(drawn, taught, tmp_path):
    (drawn / "id2label.json").write_text(json.dumps(dict(enumerate(["disc", "sky", "bar"]))))
    result = run("diffuseseg", *distill(drawn, taught, tmp_path / "out"), expect=1)
    assert "has the classes disc, sky, bar, but the model has sky, disc, bar" in result.stderr


@pytest.mark.slow
def test_nothing_of_an_earlier_student_goes_before_all_is_known_to_be_valid(drawn, taught, tmp_path):
    out = tmp_path / "out"
    run("diffuseseg", *distill(drawn, taught, out, "--num_epochs", "1", "--images_per_epoch", "16"))
    before = {p: p.read_bytes() for p in out.iterdir()}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file.txt").write_text("mine")
    wrong = [("--targets_dir", tmp_path / "mine"), ("--targets_dir", out / "targets"), ("--max_unlabeled", "0")]
    wrong += [("--layer_decay", "0.5", "--model", write_config(tmp_path)), ("--teacher", tmp_path / "none")]
    for more in wrong:
        result = run("diffuseseg", *distill(drawn, taught, out, "--overwrite", *more), expect=1)
        assert "Traceback" not in result.stderr and {p: p.read_bytes() for p in out.iterdir()} == before, more
    assert (tmp_path / "mine" / "file.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "wrong, message",
    [
        ((("--unlabeled_dataset_name",),), "go together"),
        ((("--teacher",),), "go together"),
        ((("--teacher",), ("--unlabeled_dataset_name",), ("--train_dataset_name",)), "nothing to learn from"),
    ],
)
def test_what_a_distillation_lacks_is_a_sentence(drawn, taught, tmp_path, wrong, message):
    words = distill(drawn, taught, tmp_path / "out")
    for (option,) in wrong:
        at = words.index(option)
        del words[at : at + 2]
    result = run("diffuseseg", *words, expect=1)
    assert message in result.stderr and "Traceback" not in result.stderr and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_other_images_or_fewer_options_are_another_run(drawn, taught, tmp_path, monkeypatch):
    """Neither old targets for new pictures, nor a run that goes on without what it began with."""
    stopped = ("--num_epochs", "2", "--images_per_epoch", "16")
    targets = ("--targets_dir", tmp_path / "targets")
    words = distill(drawn, taught, tmp_path / "out", *stopped, *targets, "--layer_decay", "0.5")
    real = Trainer.save

    def stop(self, write):
        if len(self.state["epochs"]) == 2:
            raise KeyboardInterrupt
        real(self, write)

    monkeypatch.setattr(Trainer, "save", stop)
    run("diffuseseg", *words, expect=130)
    monkeypatch.undo()
    notes = tmp_path / "out" / "checkpoint-000002" / "notes.txt"
    notes.write_text("mine")
    assert "layer_decay 0.5 (now 1.0)" in run("diffuseseg", *words[:-2], expect=1).stderr
    alone = [x for x in words if x not in ("--teacher", str(taught[0]), "--unlabeled_dataset_name", str(taught[1]))]
    at = alone.index("--targets_dir")
    del alone[at : at + 2]
    alone += ["--validation_fraction", "0"]
    assert "teacher" in run("diffuseseg", *alone, expect=1).stderr
    pictures = sorted(taught[1].glob("*.png"))
    kept = pictures[0].read_bytes()
    Image.fromarray(255 - np.asarray(Image.open(pictures[0]))).save(pictures[0])
    assert "other images: unlabeled_contents" in run("diffuseseg", *words, expect=1).stderr
    pictures[0].write_bytes(kept)
    run("diffuseseg", *words)
    assert notes.read_text() == "mine" and not (notes.parent / "run.json").exists()


def test_settings_that_waste_the_teacher_and_folders_within_the_images_are_refused(drawn, taught, tmp_path):
    (tmp_path / "file").write_text("x")
    for more, message in (
        (("--unlabeled_fraction", "0"), "nothing is learned from --teacher"),
        (("--labels_last", "1"), "nothing is learned from --teacher"),
        (("--images_per_epoch", "0"), "--images_per_epoch"),
        (("--targets_dir", tmp_path / "file" / "x"), "is a file, and a folder is needed; choose another --targets_dir"),
        (("--targets_dir", taught[1] / "targets"), "lies in the dataset"),
        (("--model", taught[1]), "cannot be loaded"),
    ):
        result = run("diffuseseg", *distill(drawn, taught, tmp_path / "out", *more), expect=1)
        assert message in result.stderr and "Traceback" not in result.stderr, more
    within = taught[1] / "out"
    assert "lies in the dataset" in run("diffuseseg", *distill(drawn, taught, within), expect=1).stderr
    assert not (tmp_path / "out").exists() and not within.exists()


def test_what_a_killed_process_left_of_the_targets_is_the_runs_own(drawn, taught, tmp_path):
    out = tmp_path / "out"
    words = distill(drawn, taught, out, "--num_epochs", "1", "--images_per_epoch", "16")
    write_record(out, "train-student", train_student.OWNED)
    left = out / "targets" / ".targets-00000-of-00001.safetensors.lock"
    left.parent.mkdir()
    left.touch()
    run("diffuseseg", *words, "--overwrite")
    assert not left.exists() and (out / "student.json").is_file()
