# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import os
import signal
from argparse import Namespace

import pytest
import torch

from diffuseseg_diffusers.diffusion.stopping import StopSignal, check_finite, finished
from diffuseseg_diffusers.jobs.errors import NotFiniteError


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered_and_the_second_ends_at_once(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    assert signal.getsignal(number) == before


def test_steps_or_minutes_end_a_run_whichever_come_first():
    args = Namespace(max_train_steps=10, max_train_minutes=1.0)
    assert not finished(args, {"step": 9, "seconds": 59.0})
    assert finished(args, {"step": 10, "seconds": 0.0}) and finished(args, {"step": 0, "seconds": 60.0})
    assert not finished(Namespace(max_train_steps=None, max_train_minutes=1.0), {"step": 10**9, "seconds": 59.0})


def test_a_step_that_is_not_finite_is_named(tmp_path):
    args = Namespace(output_dir=tmp_path)
    losses = torch.tensor([[1.0, 1.0], [1.0, float("inf")], [float("nan"), 1.0]])
    with pytest.raises(NotFiniteError, match="step 19 is not finite; there is no checkpoint yet"):
        check_finite(args, 20, losses, "no")
    with pytest.raises(NotFiniteError, match="step 20 "):  # its gradient scaler passes over infinite gradients
        check_finite(args, 20, losses, "fp16")
    check_finite(args, 20, losses[:1], "no")
