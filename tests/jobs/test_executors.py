# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import subprocess
from dataclasses import dataclass

import torch

from diffuseseg_diffusers.jobs.executors import WORKER, share_work
from diffuseseg_diffusers.tasks.options import SharesWork, WritesFolder


@dataclass(frozen=True, kw_only=True)
class Drawing(WritesFolder, SharesWork):
    """Draw something."""


class Started:
    every = []

    def __init__(self, command, env, **how):
        self.every.append((command[3:], env))

    def wait(self):
        pass


def test_each_process_sees_another_gpu_and_has_the_same_command_line(monkeypatch, tmp_path):
    """`--device` would make another run of it, which is refused."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = Drawing(output_dir=tmp_path, tasks=4, overwrite=True)
    assert share_work(config, "draw", lambda: None)
    assert [command for command, _ in Started.every] == [["draw", "--tasks=4", f"--output_dir={tmp_path}"]] * 3
    assert [(env[WORKER], env["CUDA_VISIBLE_DEVICES"]) for _, env in Started.every] == [*zip("123", "101")]
