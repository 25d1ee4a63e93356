# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from diffuseseg_diffusers.trainer.log import read_log


def test_logs_end_at_the_checkpoint_and_at_half_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n')
    assert [e["step"] for e in read_log(path, 20)] == [10, 20]
    path.write_text('{"step": 10}\n{"st')
    assert [e["step"] for e in read_log(path, 20)] == [10]
    assert read_log(tmp_path / "none", 5) == []
