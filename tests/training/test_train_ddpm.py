# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""`train-ddpm`, as a user types it, and its promises about runs that are cut off or shared out."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file

from diffuseseg_diffusers.datasets.unlabeled import UnlabeledImages, load_unlabeled
from diffuseseg_diffusers.diffusion import readiness
from diffuseseg_diffusers.diffusion.objective import denoising_losses
from diffuseseg_diffusers.jobs.command_line import config_line, parse
from diffuseseg_diffusers.jobs.errors import NotFiniteError, UserError
from diffuseseg_diffusers.jobs.locks import unlock_folder
from diffuseseg_diffusers.tasks.train_ddpm import TrainDDPMConfig
from diffuseseg_diffusers.training.train_ddpm import train_ddpm

from ..conftest import QUICK, ROOT, draw, make_pipeline, run
from ..diffusion.two_processes import observe


TINY = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "sample_size": 16,
}


# On any free port; `accelerate launch` wants MPI for several processes on CPUs.
TWO = ("torchrun", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Forty drawn images as files, the same as Parquet files, and the config of a tiny U-Net."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "images" / "sub").mkdir(parents=True)
    cells = []
    for i in range(40):
        path = folder / "images" / ("sub" if i % 2 else ".") / f"{i:02d}.png"
        Image.fromarray(draw((20, 24), i)[0]).save(path)
        cells.append({"bytes": path.read_bytes(), "path": path.name})
    (folder / "parquet" / "data").mkdir(parents=True)
    for k in range(2):
        dataset = Dataset.from_dict({"image": cells[k::2]}, features=Features({"image": ImageFeature()}))
        dataset.to_parquet(folder / "parquet" / "data" / f"train-{k:05d}-of-00002.parquet")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    return folder


@pytest.fixture
def quick_shutdown(monkeypatch):
    """`datasets` waits five seconds for its threads at the end of each epoch of a stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


# Bits are compared with those of other processes, which run with one thread.
pytestmark = pytest.mark.usefixtures("one_thread")


def arguments(drawn: Path, out: Path, *more, steps=6) -> list[str]:
    given = ["--train_data_dir", drawn / "images"] if not {"--dataset_name", "--train_data_dir"} & set(more) else []
    if not {"--model_config", "--pretrained", "--pretrained_model_name_or_path", "--base_channels"} & set(more):
        given += ["--model_config", drawn / "tiny.json"]
    given += ["--max_train_steps", steps] if steps else []
    for name, value in {"--train_batch_size": 4, "--num_samples": 0, "--mixed_precision": "no"}.items():
        given += [name, value] if name not in more else []
    given += ["--output_dir", out]
    return [str(x) for x in [*given, *more]]


def reset_accelerate() -> None:
    """Ends what an earlier run in this process set up."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(drawn: Path, out: Path, *more, steps=6) -> dict:
    """Trains in this process; returns what `training_state.json` says."""
    reset_accelerate()
    words = arguments(drawn, out, *more, steps=steps)
    found = train_ddpm(parse(config_line("train_ddpm.py", TrainDDPMConfig), words))
    unlock_folder()  # as the end of a process
    assert found == json.loads((out / "training_state.json").read_text())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [e["loss"] for e in log(folder) if "loss" in e]


@contextmanager
def started(*command):
    """A process with what it prints in one file, `process.output`; it does not outlive the test."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(c) for c in command],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        process.output = lambda: (output.seek(0), output.read())[1]
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    for _ in range(3600):
        if (out / "train_log.jsonl").is_file() and any(e["step"] >= step for e in log_so_far(out)):
            return
        assert process.poll() is None, process.output()
        time.sleep(0.05)
    raise AssertionError("the run did not come to its step")


def log_so_far(out: Path) -> list[dict]:
    lines = (out / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def test_the_command_leaves_a_pipeline_samples_and_figures(drawn, tmp_path):
    out = tmp_path / "run"
    result = run(
        *("diffuseseg", "train-ddpm"),
        *arguments(drawn, out, "--use_ema", "--report_to", "tensorboard", "--num_samples", "5", steps=12),
        *("--num_inference_steps", "2", "--sample_steps", "6", "--validation_steps", "6", "--random_flip"),
        fresh=True,
        OMP_NUM_THREADS="1",
    )
    assert "images of 1 × 16 × 16, 36 to train on, in memory" in result.stdout
    assert "12 steps, 48 images" in result.stdout and "waiting for data" in result.stdout
    assert re.search(r"loss \d\.\d+, .*images/s", result.stderr)
    pipe = DDPMPipeline.from_pretrained(out)
    assert type(pipe.unet) is UNet2DModel and type(pipe.scheduler) is DDPMScheduler
    images = pipe(2, num_inference_steps=2).images
    assert images[0].size == (16, 16) and images[0].mode == "L"
    for step in (6, 12):
        assert Image.open(out / "samples" / f"step-{step:06d}.png").size == (48, 32)  # five in a grid of three by two
    state = json.loads((out / "training_state.json").read_text())
    assert state["step"] == 12 and state["images_seen"] == 48 and state["arguments"]["random_flip"]
    assert len(state["denoising_loss"]["validation"]) == len(state["denoising_loss"]["train_sample"]) == 10
    assert [e["step"] for e in log(out) if "validation" in e] == [6, 12]
    curves = np.asarray(Image.open(out / "training_curves.png").convert("RGB"))
    assert curves.shape[1] == 1500 and len(np.unique(curves.reshape(-1, 3), axis=0)) > 50

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "logs" / "train_ddpm"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [6, 10, 12]
    assert events.Scalars("loss")[-1].value == pytest.approx(losses(out)[-1])
    assert "validation/timesteps_9" in events.Tags()["scalars"]
    assert [e.step for e in events.Images("samples")] == [6, 12]


@pytest.mark.slow
def test_a_run_killed_at_any_step_ends_with_the_same_bits(drawn, tmp_path):
    """By SIGKILL; the same command line, here by `accelerate launch`, resumes."""
    options = ("--use_ema", "--dropout", "0.1", "--random_flip", "--lr_scheduler", "cosine", "--snr_gamma", "5")
    options += ("--checkpointing_steps", "7", "--checkpoints_total_limit", "2")
    train(drawn, tmp_path / "alone", *options, steps=40)
    command = (ROOT / "training" / "train_ddpm.py", *arguments(drawn, tmp_path / "killed", *options, steps=40))
    with started(sys.executable, *command) as killed:
        wait_for_step(killed, tmp_path / "killed", 8)
        time.sleep(random.uniform(0, 0.3))
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    if (tmp_path / "killed" / "model_index.json").exists():
        pytest.skip("the run ended before it was killed")
    (tmp_path / "killed" / ".checkpoint-000003.partial").mkdir()  # of another kill, while it saved
    assert "Resuming from" in run("accelerate", "launch", *command, OMP_NUM_THREADS="1").stdout
    assert same(weights(tmp_path / "killed"), weights(tmp_path / "alone"))
    names = ["checkpoint-000035", "checkpoint-000040"]
    assert sorted(p.name for p in (tmp_path / "killed").glob("*checkpoint-*")) == names
    for name in ("model.safetensors", "unet_ema/diffusion_pytorch_model.safetensors"):
        a, b = (load_file(tmp_path / which / names[-1] / name) for which in ("killed", "alone"))
        assert same(a, b)
    adam = [
        torch.load(tmp_path / which / names[-1] / "optimizer.bin", weights_only=True)["state"]
        for which in ("killed", "alone")
    ]
    assert all(torch.equal(adam[0][i][k], adam[1][i][k]) for i in adam[0] for k in adam[0][i])
    by_step = {e["step"]: e["loss"] for e in log(tmp_path / "alone") if "loss" in e}
    assert {e["step"]: e["loss"] for e in log(tmp_path / "killed") if "loss" in e} == by_step


@pytest.mark.slow
def test_a_terminated_run_saves_first_and_resumes_exactly(drawn, tmp_path):
    command = (sys.executable, ROOT / "training" / "train_ddpm.py")
    with started(*command, *arguments(drawn, tmp_path / "run", steps=100_000)) as endless:
        wait_for_step(endless, tmp_path / "run", 10)
        endless.send_signal(signal.SIGTERM)
        assert endless.wait(180) == 128 + signal.SIGTERM, endless.output()
        told = re.search(r"step (\d+) is saved; the same command line resumes", endless.output())
    step = int(told[1])
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{step:06d}"]
    train(drawn, tmp_path / "run", steps=step + 3)
    train(drawn, tmp_path / "alone", steps=step + 3)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))


@pytest.mark.slow
def test_two_processes_train_as_one_with_both_batches(drawn, tmp_path, quick_shutdown):
    """Over gloo: gradients, decoding, streams, and a whole run (tests/diffusion/two_processes.py)."""
    options = ("--lr_warmup_steps", "0", "--use_ema")
    both = arguments(drawn, tmp_path / "both", *options, steps=10)
    run(*TWO, "tests/diffusion/two_processes.py", drawn, tmp_path / "two", *both, OMP_NUM_THREADS="1")
    reset_accelerate()
    one = observe(drawn)
    halves = [torch.load(tmp_path / f"two_{i}.pt", weights_only=True) for i in range(2)]
    assert one["gradient"].abs().max() > 1e-3
    for half in halves:
        torch.testing.assert_close(half["gradient"], one["gradient"], rtol=1e-4, atol=1e-6)
        assert torch.equal(half["pixels"], one["pixels"])
    streams = [half["streamed"] for half in halves]
    assert streams[0].isdisjoint(streams[1]) and streams[0] | streams[1] == one["streamed"]

    alone = train(drawn, tmp_path / "single", *options, "--train_batch_size", "8", steps=10)
    state = json.loads((tmp_path / "both" / "training_state.json").read_text())
    assert state["num_processes"] == 2 and state["images_seen"] == alone["images_seen"] == 80
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "single"), rel=1e-3)
    # One process resumes where two were.
    state = train(drawn, tmp_path / "both", *options, steps=12)
    assert state["images_seen"] == 80 + 2 * 4


@pytest.mark.slow
def test_the_averaged_weights_are_not_much_worse_after_the_warm_up(drawn, tmp_path):
    train(
        *(drawn, tmp_path, "--use_ema", "--checkpointing_steps", "100", "--checkpoints_total_limit", "0"),
        *("--learning_rate", "2e-3", "--train_batch_size", "8", "--overwrite"),
        steps=300,
    )
    dataset, column = load_unlabeled(data_dir=str(drawn / "images"))
    pixels, _ = UnlabeledImages(dataset, column, (16, 16), 1).load()
    found = {}
    for checkpoint in sorted(tmp_path.glob("checkpoint-*")):
        averaged = UNet2DModel.from_pretrained(checkpoint / "unet_ema")
        raw = UNet2DModel.from_pretrained(checkpoint / "unet_ema")
        raw.load_state_dict(load_file(checkpoint / "model.safetensors"))
        found[checkpoint.name] = [denoising_losses(u, DDPMScheduler(), pixels).mean().item() for u in (averaged, raw)]
    assert len(found) == 3
    for name, (averaged, raw) in found.items():
        assert averaged < (1.05 if name >= "checkpoint-000300" else 1.6) * raw, (name, found)
    assert found["checkpoint-000300"][0] < 0.7 * found["checkpoint-000100"][0]


@pytest.mark.parametrize(
    "options",
    [
        ("--beta_schedule", "cosine", "--prediction_type", "v_prediction", "--snr_gamma", "5", "--dropout", "0.1"),
        ("--prediction_type", "sample", "--adam_weight_decay", "0.01", "--max_grad_norm", "0"),
        ("--resolution", "12", "20", "--channels", "3", "--resize_mode", "pad", "--gradient_checkpointing"),
        ("--mixed_precision", "bf16", "--lr_scheduler", "cosine_with_restarts", "--lr_warmup_steps", "2"),
        ("--base_channels", "8", "--resolution", "16", "--ema_max_decay", "0.9", "--ema_power", "0.6", "--use_ema"),
    ],
    ids=lambda o: o[0],
)
def test_options(options, drawn, tmp_path):
    state = train(drawn, tmp_path / "run", *options, steps=3)
    pipe = DDPMPipeline.from_pretrained(tmp_path / "run")
    given = dict(zip(options[::2], options[1::2]))
    schedule = {"cosine": "squaredcos_cap_v2"}.get(given.get("--beta_schedule"), "linear")
    assert pipe.scheduler.config.beta_schedule == schedule
    assert pipe.scheduler.config.prediction_type == given.get("--prediction_type", "epsilon")
    assert pipe.unet.config.dropout == float(given.get("--dropout", 0))
    if "--resize_mode" in options:
        assert pipe.unet.config.in_channels == 3 and list(pipe.unet.config.sample_size) == [12, 20]
    if "--base_channels" in options:
        assert list(pipe.unet.config.block_out_channels) == [8, 16, 16, 16]
        saved = json.loads((tmp_path / "run" / "checkpoint-000003" / "unet_ema" / "config.json").read_text())
        assert saved["decay"] == 0.9 and saved["power"] == 0.6
    assert all(np.isfinite(losses(tmp_path / "run"))) and state["step"] == 3


@pytest.mark.slow
def test_each_way_to_read_the_images_trains_the_same(drawn, tmp_path):
    memory = train(drawn, tmp_path / "memory", "--num_validation_images", "4")
    workers = train(drawn, tmp_path / "workers", "--num_validation_images", "4", "--image_cache_gb", "0")
    assert memory["images_seen"] == workers["images_seen"] == 24
    assert same(weights(tmp_path / "memory"), weights(tmp_path / "workers"))
    options = ("--num_validation_images", "4", "--image_cache_gb", "0")
    train(drawn, tmp_path / "stopped", *options, steps=4)
    train(drawn, tmp_path / "stopped", *options, steps=6)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "memory"))


@pytest.mark.slow
def test_a_stream_is_trained_on_and_resumed_exactly(drawn, tmp_path, quick_shutdown):
    options = ("--dataset_name", str(drawn / "parquet"), "--streaming", "--num_validation_images", "4")
    options += ("--shuffle_buffer_size", "6", "--dataloader_num_workers", "2")
    state = train(drawn, tmp_path / "alone", *options, steps=14)
    assert state["images_seen"] == 56 and np.isfinite(state["denoising_loss"]["validation"]).all()
    train(drawn, tmp_path / "run", *options, steps=8)
    train(drawn, tmp_path / "run", *options, steps=14)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "alone"))


def test_accumulated_batches_are_one_step(drawn, tmp_path):
    state = train(drawn, tmp_path / "run", "--gradient_accumulation_steps", "3", steps=4)
    assert state["step"] == 4 and state["images_seen"] == 4 * 3 * 4
    adam = torch.load(tmp_path / "run" / "checkpoint-000004" / "optimizer.bin", weights_only=True)["state"]
    assert adam[0]["step"] == 4


@pytest.mark.slow
def test_a_compiled_model_trains_the_same(drawn, tmp_path, monkeypatch):
    compiled = torch.nn.Module.compile  # without the C++ compiler, which takes minutes
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="aot_eager"))
    options = ("--lr_warmup_steps", "0", "--use_ema")
    train(drawn, tmp_path / "eager", *options, steps=3)
    try:
        train(drawn, tmp_path / "compiled", *options, "--compile", steps=3)
    finally:
        torch.compiler.reset()
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "eager"), rel=1e-3)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "eager").keys()


def test_time_ends_a_run_and_lowers_its_learning_rate(drawn, tmp_path):
    minutes = 4 / 60
    options = ("--max_train_minutes", str(minutes), "--lr_scheduler", "linear", "--lr_warmup_steps", "0")
    state = train(drawn, tmp_path / "run", *options, steps=None)
    assert 4 <= state["seconds"] and state["step"] > 1
    rates = [e["learning_rate"] for e in log(tmp_path / "run") if "loss" in e]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1] > 0
    assert train(drawn, tmp_path / "run", *options, steps=None) == state  # its time is over


@pytest.mark.slow
def test_fine_tuning_starts_from_the_pretrained_weights(drawn, tmp_path):
    train(drawn, tmp_path / "first", "--prediction_type", "v_prediction")
    options = ("--pretrained", str(tmp_path / "first"), "--learning_rate", "0", "--dropout", "0.2")
    train(drawn, tmp_path / "second", *options, steps=2)
    assert same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    assert DDPMPipeline.from_pretrained(tmp_path / "second").scheduler.config.prediction_type == "v_prediction"
    train(drawn, tmp_path / "third", *options[:2], steps=2)
    assert not same(weights(tmp_path / "first"), weights(tmp_path / "third"))


def test_bad_input_is_one_sentence(drawn, tmp_path):
    def refused(sentence, *more, steps=6, out="bad"):
        with pytest.raises(UserError, match=sentence):
            train(drawn, tmp_path / out, *more, steps=steps)

    refused("How long?", steps=None)
    refused(r"multiples of 2, got 15 × 16; the nearest is 16 × 16", "--resolution", "15", "16")
    (tmp_path / "groups.json").write_text(json.dumps({**TINY, "norm_num_groups": 3}))
    refused(r"8 channels do not divide into 3 groups", "--model_config", str(tmp_path / "groups.json"))
    refused("it has 'image'", "--dataset_name", str(drawn / "parquet"), "--image_column", "scan")
    refused("--streaming is for --dataset_name", "--streaming")
    refused("no folder", "--dataset_name", "./nowhere")
    refused("at least 1, got 0", "--train_batch_size", "0")
    refused("max_train_steps must be at least 1, got 0", steps="0")
    refused("brings its own", "--pretrained", "x", "--beta_schedule", "cosine")
    refused("There is no folder ./nowhere", "--pretrained_model_name_or_path", "./nowhere")
    refused("40 cannot be held out", "--num_validation_images", "40")
    refused("tracker nonsense is not installed", "--report_to", "tensorboard", "nonsense")
    refused("height and width, in pixels; got 8 8 8", "--resolution", "8", "8", "8")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused("exists and is kept", out="mine")


def test_the_same_command_line_resumes_and_says_when_nothing_is_left_to_do(drawn, tmp_path, capsys):
    out = tmp_path / "run"
    train(drawn, out, "--use_ema", "--checkpointing_steps", "3")
    first = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()}
    capsys.readouterr()
    train(drawn, out, "--use_ema", "--checkpointing_steps", "3")
    assert "is complete, 6 steps; more of them need a higher --max_train_steps" in capsys.readouterr().out
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file()} == first
    # How long, how often, where and with which precision may change.
    more = ("--use_ema", "--checkpointing_steps", "5", "--sample_steps", "2", "--mixed_precision", "bf16")
    assert train(drawn, out, *more, steps=8)["step"] == 8
    assert f"Resuming from {out / 'checkpoint-000006'}" in capsys.readouterr().out
    # What was left out when the run was cut off between its last checkpoint and its pipeline is made up for.
    (out / "training_state.json").unlink()
    assert train(drawn, out, *more, steps=8)["step"] == 8


def test_other_settings_than_the_run_s_are_refused_by_name(drawn, tmp_path):
    out = tmp_path / "run"
    train(drawn, out, "--use_ema", steps=3)
    (tmp_path / "wide.json").write_text(json.dumps({**TINY, "block_out_channels": [8, 24]}))
    wide = ("--model_config", str(tmp_path / "wide.json"))
    different = [
        (r"--seed 0 \(now 1\)", "--use_ema", "--seed", "1"),
        (r"learning_rate 0\.0002 \(now 0\.001\)", "--use_ema", "--learning_rate", "1e-3"),
        (r"36 training images, and now there are 38", "--use_ema", "--num_validation_images", "2"),
        (r"another model: block_out_channels is \[8, 16\] there and \[8, 24\] here", "--use_ema", *wide),
        ("made with --use_ema; do the same here",),
        ("is no checkpoint", "--use_ema", "--resume_from_checkpoint", str(tmp_path)),
    ]
    for sentence, *more in different:
        with pytest.raises(UserError, match=sentence):
            train(drawn, out, *more)
    # A checkpoint that is named may be trained further with others, here or elsewhere.
    named = ("--use_ema", "--learning_rate", "1e-3", "--resume_from_checkpoint", str(out / "checkpoint-000003"))
    assert train(drawn, tmp_path / "elsewhere", *named, steps=5)["step"] == 5
    assert train(drawn, out, *named, steps=5)["step"] == 5
    assert same(weights(tmp_path / "elsewhere"), weights(out))
    assert train(drawn, out, *named[:-2], steps=6)["step"] == 6  # they are the run's from then on
    with pytest.raises(UserError, match=r"learning_rate 0\.001 \(now 0\.0002\)"):
        train(drawn, out, "--use_ema")


def test_a_run_is_not_resumed_over_a_replaced_image(drawn, tmp_path):
    shutil.copytree(drawn / "images", tmp_path / "data")
    data = ("--train_data_dir", str(tmp_path / "data"))
    train(drawn, tmp_path / "run", *data, steps=2)
    picture = tmp_path / "data" / "04.png"
    kept = picture.read_bytes()
    Image.fromarray(draw((20, 24), 99)[0]).save(picture)
    with pytest.raises(UserError, match=r"the contents of --train_data_dir differ \(row \d+ 04\.png\)"):
        train(drawn, tmp_path / "run", *data, steps=4)
    picture.write_bytes(kept)
    assert train(drawn, tmp_path / "run", *data, steps=4)["step"] == 4


def test_checkpoints_of_another_version_are_refused(drawn, tmp_path):
    train(drawn, tmp_path / "run", steps=2)
    state = tmp_path / "run" / "checkpoint-000002" / "run.json"
    state.write_text(state.read_text().replace('"model"', '"unet"'))  # as 0.1.0 wrote it
    with pytest.raises(UserError, match="is no checkpoint, or one of another version of DiffuseSeg"):
        train(drawn, tmp_path / "run", steps=4)


WANDB = """
import pathlib

class Run:
    update = log = finish = lambda *args, **kwargs: None

config = Run()

def init(project, dir=".", **kwargs):  # offline, the real one writes below `dir`
    path = pathlib.Path(dir, "wandb", "offline-run-1")
    path.mkdir(parents=True)
    (path / "run.wandb").touch()
    return Run()
"""


@pytest.mark.slow
def test_weights_and_biases_writes_below_the_output_folder(drawn, tmp_path):
    """A stand-in for the client, which is not among what the tests install."""
    (tmp_path / "packages" / "wandb").mkdir(parents=True)
    (tmp_path / "packages" / "wandb" / "__init__.py").write_text(WANDB)
    (tmp_path / "packages" / "wandb-1.dist-info").mkdir()
    (tmp_path / "packages" / "wandb-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: wandb\nVersion: 1\n"
    )
    (tmp_path / "here").mkdir()
    script = (sys.executable, str(ROOT / "training" / "train_ddpm.py"))
    given = arguments(drawn, tmp_path / "run", "--report_to", "wandb", "--num_validation_images", "0", steps=2)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path / "packages")}
    subprocess.run([*script, *given], cwd=tmp_path / "here", env=environment, check=True, timeout=120)
    assert not list((tmp_path / "here").iterdir())
    assert (tmp_path / "run" / "logs" / "wandb" / "offline-run-1" / "run.wandb").is_file()
    train(drawn, tmp_path / "run", "--overwrite", steps=2)  # they are the run's own files


def test_overwrite_removes_the_run_s_own_files_alone_and_only_after_all_inputs_are_valid(drawn, tmp_path):
    out = tmp_path / "run"
    train(drawn, out, steps=3)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for wrong in (("--image_column", "scan", "--dataset_name", str(drawn / "parquet")), ("--resolution", "15")):
        with pytest.raises(UserError):
            train(drawn, out, "--overwrite", *wrong)
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    train(drawn, out, "--overwrite", "--seed", "1", steps=2)  # begins anew
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-000002"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"no run of DiffuseSeg recorded \(notes\.txt\)"):
        train(drawn, out, "--overwrite", steps=2)
    assert (out / "notes.txt").read_text() == "mine" and (out / "model_index.json").is_file()


def test_corrupt_images_are_named_or_counted(tmp_path, drawn, capsys):
    (tmp_path / "data").mkdir()
    for i in range(12):
        Image.fromarray(draw((16, 16), i)[0]).save(tmp_path / "data" / f"{i}.png")
    (tmp_path / "data" / "5.png").write_bytes(b"broken")
    data = ("--train_data_dir", str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"5\.png cannot be read"):
        train(drawn, tmp_path / "run", *data)
    state = train(drawn, tmp_path / "run", *data, "--skip_unreadable")
    state = train(drawn, tmp_path / "run", *data, "--skip_unreadable", steps=8)
    assert state["unreadable"] == 1 and "1 times an image could not be read" in capsys.readouterr().out


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(drawn, tmp_path):
    train(drawn, tmp_path / "run", steps=5)
    options = ("--learning_rate", "1e20", "--lr_warmup_steps", "0", "--max_grad_norm", "0")
    good = ("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-000005"))
    with pytest.raises(NotFiniteError, match=r"step (7|8|9) is not finite.*checkpoint-000005"):
        train(drawn, tmp_path / "run", *options, *good, steps=40)
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-000005"]
    assert train(drawn, tmp_path / "run", *good, steps=8)["step"] == 8


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_good_checkpoint(drawn, tmp_path):
    train(drawn, tmp_path / "run", "--use_ema", steps=5)
    before = load_file(tmp_path / "run" / "checkpoint-000005" / "model.safetensors")
    more = arguments(drawn, tmp_path / "run", "--use_ema", steps=8)
    # No file may grow beyond 8 KiB, which the log does not and the weights do.
    command = f"ulimit -f 8; exec {sys.executable} training/train_ddpm.py " + " ".join(more)
    result = run("bash", "-c", command, expect=1, OMP_NUM_THREADS="1")
    assert "error: The checkpoint of step 8 cannot be saved" in result.stderr and "Traceback" not in result.stderr
    assert "checkpoint-000005" in result.stderr
    assert sorted(p.name for p in (tmp_path / "run").glob("*checkpoint-*")) == ["checkpoint-000005"]
    assert same(load_file(tmp_path / "run" / "checkpoint-000005" / "model.safetensors"), before)
    assert train(drawn, tmp_path / "run", "--use_ema", steps=8)["step"] == 8


def test_a_run_is_estimated_and_its_features_are_judged_at_the_end(drawn, tmp_path, monkeypatch, capsys):
    for kind in ("images", "masks"):
        (tmp_path / "labeled" / kind).mkdir(parents=True)
    for seed in range(3):
        for kind, pixels in zip(("images", "masks"), draw((20, 24), seed)):
            Image.fromarray(pixels).save(tmp_path / "labeled" / kind / f"{seed}.png")
    load = readiness.load_pipeline
    twin = lambda name, **more: make_pipeline() if name in ("general", "untrained") else load(name, **more)  # noqa: E731
    monkeypatch.setattr(readiness, "load_pipeline", twin)
    monkeypatch.setattr(readiness, "suited_recipe", lambda *_: SimpleNamespace(for_studies=lambda: QUICK))
    state = train(drawn, tmp_path / "out", "--labeled_dataset_name", tmp_path / "labeled", steps=12)
    assert list(state["labeled_mean_iou"]) == ["own", "general", "untrained"]
    said = capsys.readouterr().out
    assert "About 12 steps, 48 images, 1.3 passes over the data" in said
    assert "Cross-validated mean IoU of features on the labelled images: own" in said
