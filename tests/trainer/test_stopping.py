# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import os
import signal

import pytest
import torch

from diffuseseg_diffusers.jobs.errors import NotFiniteError
from diffuseseg_diffusers.trainer.stopping import StopSignal, check_finite


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_remembered_and_the_second_ends_at_once(number):
    before = signal.getsignal(number)
    stop = StopSignal()
    stop.listen()
    try:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.pause()
    finally:
        stop.restore()
    assert signal.getsignal(number) == before


def test_a_step_that_is_not_finite_is_named(tmp_path):
    losses = torch.tensor([[1.0, 1.0], [1.0, float("inf")], [float("nan"), 1.0]])
    with pytest.raises(NotFiniteError, match="step 19 is not finite; there is no checkpoint yet"):
        check_finite(tmp_path, 20, losses, "no")
    with pytest.raises(NotFiniteError, match="step 20 "):  # its gradient scaler passes over infinite gradients
        check_finite(tmp_path, 20, losses, "fp16")
    check_finite(tmp_path, 20, losses[:1], "no")
