# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
from accelerate.commands.config import config_args

import diffuseseg_diffusers.jobs.hardware as hardware_module
from diffuseseg_diffusers.jobs.hardware import default_dtype, explain_dtype, find_dtype, hardware, report_processes

from ..conftest import run


PYTHON, LAUNCH = "/venv/bin/python", "/venv/bin/accelerate"
CPU = "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: true\n"


def reported(capsys, *words: str, processes: int = 1, is_main: bool = True) -> str:
    parent = SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=lambda: list(words)))
    with mock.patch.object(psutil, "Process", lambda: parent):
        report_processes(SimpleNamespace(num_processes=processes, is_main_process=is_main))
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        (PYTHON, LAUNCH, "launch", "--cpu", "--num_processes", "2", "x.py"),
        (PYTHON, LAUNCH, "launch", "--num-processes=2", "--cpu", "x.py", "--num_processes", "1"),
        (PYTHON, f"{LAUNCH}-launch", "--cpu", "--num_processes", "2", "x.py"),
        (PYTHON, "-m", "accelerate.commands.launch", "--num_processes", "2", "-m", "x"),
    ],
)
def test_fewer_processes_than_asked_for_are_said_in_one_line(words, capsys):
    line = reported(capsys, *words)
    assert line.count("\n") == 1 and "1 process runs, though `accelerate launch` was asked for 2" in line
    assert "Use `torchrun --nproc_per_node 2 SCRIPT …`" in line
    assert reported(capsys, *words, processes=2) == reported(capsys, *words, is_main=False) == ""


@pytest.mark.parametrize(
    "words",
    [
        ("bash",),
        (PYTHON, "-m", "pytest", "--num_processes", "2"),
        (PYTHON, LAUNCH, "launch", "--cpu", "x.py", "--num_processes", "2"),
        (PYTHON, LAUNCH, "test", "--num_processes", "2"),
        ("launch",),
        (),
    ],
)
def test_nothing_is_said_where_nothing_else_was_asked_for(words, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml"))
    assert reported(capsys, *words) == ""


def test_the_number_of_the_configuration_counts_where_the_command_line_names_none(capsys, monkeypatch, tmp_path):
    (tmp_path / "config.yaml").write_text(CPU + "num_processes: 4\n")
    launch = (PYTHON, LAUNCH, "launch")
    assert "asked for 4" in reported(capsys, *launch, "--config_file", str(tmp_path / "config.yaml"), "x.py")
    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "config.yaml"))
    assert "asked for 4" in reported(capsys, *launch, "x.py")
    assert reported(capsys, *launch, "--num_processes", "1", "x.py") == ""


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
        assert "torchrun --nproc_per_node 2" in result.stderr


def test_the_default_precision_is_that_of_the_hardware(monkeypatch):
    for amx, avx, expected in (
        (True, True, torch.bfloat16),
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ):
        known = {"amx_bf16": amx, "avx512_bf16": avx, "avx512_f": True, "architecture": "x86_64"}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        assert default_dtype(torch.device("cpu")) == expected
        assert ("neither" in explain_dtype(torch.device("cpu"))[1]) == (expected == torch.float32)
        assert default_dtype(torch.device("mps")) == torch.float32
    assert "threads" in hardware(torch.device("cpu"))


def test_where_instructions_do_not_tell_a_convolution_is_timed_once_and_the_result_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True, "architecture": "arm64"}, raising=False)
    monkeypatch.setattr(hardware_module, "HF_ASSETS_CACHE", str(tmp_path))
    measured, timed = [], hardware_module.measure_bfloat16

    def remembered(device):
        measured.append(timed(device))
        return measured[-1]

    monkeypatch.setattr(hardware_module, "measure_bfloat16", remembered)
    first = explain_dtype(torch.device("cpu"))
    assert explain_dtype(torch.device("cpu")) == first and len(measured) == 1 and measured[0] > 0
    assert (first[0] == torch.bfloat16) == (measured[0] >= hardware_module.FASTER)
    assert f"bfloat16 is {measured[0]:.1f} times as fast on this CPU" == first[1]
    kept = tmp_path / "diffuseseg" / "bfloat16.json"
    for ratio, expected in ((2.0, torch.bfloat16), (0.2, torch.float32)):
        kept.write_text(json.dumps(dict.fromkeys(json.loads(kept.read_text()), ratio)))
        assert default_dtype(torch.device("cpu")) == expected and len(measured) == 1
    kept.write_text("{")  # cut off
    assert explain_dtype(torch.device("cpu"))[1].endswith("on this CPU") and len(measured) == 2
    monkeypatch.setattr(hardware_module, "HF_ASSETS_CACHE", str(kept))  # a file is where the folder would be
    assert default_dtype(torch.device("cpu")) in (torch.bfloat16, torch.float32) and len(measured) == 3


@pytest.mark.parametrize("share, expected", [(0.9989, torch.float32), (0.999, torch.bfloat16), (None, torch.bfloat16)])
def test_auto_is_float32_for_a_model_whose_masks_differ_in_the_faster_precision(share, expected, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    agreement = {"float16": 0.5} | ({} if share is None else {"bfloat16": share})
    assert find_dtype("auto", torch.device("cpu"), "out/model", agreement) == expected
    said = "out/model: float32; bfloat16 is faster, but changes the class of 0.11 % of the pixels"
    assert [line.startswith(said) for line in caplog.messages] == [True] * (expected == torch.float32)
    assert find_dtype("bfloat16", torch.device("cpu"), "out/model", agreement) == torch.bfloat16
    assert find_dtype(torch.float16, torch.device("cpu"), "out/model", agreement) == torch.float16
