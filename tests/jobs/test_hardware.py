# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import itertools
import json
import platform
import shutil
from types import SimpleNamespace

import pytest
import torch

import diffuseseg_diffusers.jobs.hardware as hardware_module
from diffuseseg_diffusers.jobs.hardware import (
    default_dtype,
    explain_dtype,
    find_dtype,
    hardware,
    kept_speedups,
    report_processes,
)

from ..conftest import run


@pytest.mark.parametrize(
    "environment, processes, is_said",
    [
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, 1, True),
        ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, 2, False),  # with MPI
        ({"ACCELERATE_USE_CPU": "True"}, 1, False),
        ({"MASTER_ADDR": "127.0.0.1"}, 1, False),  # of something else than `accelerate launch`
    ],
)
def test_one_process_in_place_of_several_is_said_in_one_line(environment, processes, is_said, monkeypatch, capsys):
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    report_processes(SimpleNamespace(num_processes=processes, is_main_process=True))
    line = capsys.readouterr().err
    assert line.count("\n") == is_said and ("Use `torchrun --nproc_per_node" in line) == is_said
    report_processes(SimpleNamespace(num_processes=processes, is_main_process=False))
    assert not capsys.readouterr().err


@pytest.mark.slow
def test_accelerate_launch_on_cpus_says_that_one_process_runs_and_what_to_use(tmp_path):
    """Point 13 of what was found, with Accelerate itself."""
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import Accelerator\n"
        "from diffuseseg_diffusers.jobs.hardware import report_processes\n"
        "accelerator = Accelerator(cpu=True)\n"
        "report_processes(accelerator)\n"
        "print('processes', accelerator.num_processes)\n"
    )
    result = run("accelerate", "launch", "--cpu", "--num_processes", "2", script)
    if "processes 1" in result.stdout:  # without MPI
        assert "torchrun --nproc_per_node" in result.stderr


CPU_DEVICE = torch.device("cpu")


@pytest.mark.parametrize(
    "float32, bfloat16, expected",
    [
        (0.002, 0.001, torch.bfloat16),
        (0.0012, 0.001, torch.float32),  # not worth other masks
        (0.499, 0.753, torch.float32),  # seconds an image, of a CPU whose flags promise bfloat16
    ],
)
def test_auto_takes_bfloat16_where_it_is_timed_to_be_faster_whatever_the_cpu_says_of_itself(
    float32, bfloat16, expected, precision_clock, monkeypatch
):
    promises = {"avx512_bf16": True, "amx_bf16": False, "architecture": "x86_64"}
    for flags in (promises, {"architecture": "x86_64"}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        precision_clock(float32, bfloat16)
        dtype, reason = explain_dtype(CPU_DEVICE)
        assert dtype == default_dtype(CPU_DEVICE) == expected
        times = f"{float32 / bfloat16:.1f} times as fast in"
        assert reason == f"bfloat16 was timed on this CPU: {times} convolutions, {times} products"
    assert default_dtype(torch.device("mps")) == torch.float32
    assert "threads" in hardware(CPU_DEVICE)


def test_the_slower_of_convolutions_and_products_decides(monkeypatch, tmp_path):
    seconds = iter([2.0, 1.0] * 12 + [1.0, 1.0] * 12)  # float32 and bfloat16 in turn
    readings = itertools.accumulate(x for second in seconds for x in (0.0, second))
    monkeypatch.setattr(hardware_module, "perf_counter", lambda: next(readings))
    monkeypatch.setattr(hardware_module, "HF_ASSETS_CACHE", str(tmp_path))
    dtype, reason = explain_dtype(CPU_DEVICE)
    assert dtype == torch.float32
    assert reason.endswith("2.0 times as fast in convolutions, 1.0 times as fast in products")


def test_a_machine_is_timed_once_for_all_processes_and_computes_the_same_way_ever_after(precision_clock, tmp_path):
    path, of_another_process = tmp_path / "kept" / "bfloat16.json", tmp_path / "other" / "bfloat16.json"
    precision_clock(2.0, 1.0)
    first = kept_speedups(path)
    assert first == pytest.approx({"convolutions": 2.0, "products": 2.0})
    precision_clock(1.0, 2.0)
    assert kept_speedups(path) == first
    shutil.copytree(path.parent, of_another_process.parent)
    assert kept_speedups(of_another_process) == first
    (machine,) = json.loads(path.read_text())
    assert platform.node() in machine and f"torch {torch.__version__}" in machine


@pytest.mark.parametrize("text", ["{", "[]", '{"KEY": 2.0}', '{"KEY": {"convolutions": 2.0, "products": null}}'])
def test_what_was_kept_and_cannot_be_read_is_timed_anew(text, precision_clock, tmp_path):
    precision_clock(2.0, 1.0)
    kept_speedups(tmp_path / "good.json")
    (machine,) = json.loads((tmp_path / "good.json").read_text())
    (tmp_path / "bad.json").write_text(text.replace("KEY", machine))
    precision_clock(1.0, 2.0)
    assert kept_speedups(tmp_path / "bad.json") == pytest.approx({"convolutions": 0.5, "products": 0.5})
    assert json.loads((tmp_path / "bad.json").read_text()).keys() == {machine}


def test_a_home_that_cannot_be_written_to_stops_nothing(tmp_path):
    (tmp_path / "file").write_text("where the folder would be")
    speedups = kept_speedups(tmp_path / "file" / "bfloat16.json")
    assert speedups.keys() == {"convolutions", "products"} and min(speedups.values()) > 0


@pytest.mark.parametrize("share, expected", [(0.9989, torch.float32), (0.999, torch.bfloat16), (None, torch.bfloat16)])
def test_auto_is_float32_for_a_model_whose_masks_differ_in_the_faster_precision(share, expected, fast_bfloat16, caplog):
    agreement = {"float16": 0.5} | ({} if share is None else {"bfloat16": share})
    assert find_dtype("auto", torch.device("cpu"), "out/model", agreement) == expected
    said = "out/model: float32; bfloat16 is faster, but changes the class of 0.11 % of the pixels"
    assert [line.startswith(said) for line in caplog.messages] == [True] * (expected == torch.float32)
    assert find_dtype("bfloat16", torch.device("cpu"), "out/model", agreement) == torch.bfloat16
    assert find_dtype(torch.float16, torch.device("cpu"), "out/model", agreement) == torch.float16
