# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch

from diffuseseg_diffusers.trainer.schedule import Plan, learning_rate_schedule


def rates(name="constant", warmup=0, **plan):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    return learning_rate_schedule(optimizer, name, 1e-3, warmup, Plan(**plan))


def test_learning_rates_warm_up_and_decay_over_the_steps():
    rate = rates("cosine", 10, max_steps=40)
    for step in range(40):
        expected = 1e-3 * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / 40))
        assert rate(step, 0.0) == pytest.approx(expected, rel=1e-3)


def test_learning_rates_decay_over_the_minutes_or_what_is_further():
    rate = rates("linear", max_minutes=2.0, max_steps=100)
    assert rate(0, 60.0) == pytest.approx(5e-4) and rate(75, 60.0) == pytest.approx(2.5e-4)
    assert rate(0, 1e9) == 0 and rates(max_minutes=2.0)(0, 1e9) == 1e-3


def test_steps_or_minutes_end_a_run_whichever_come_first():
    plan = Plan(max_steps=10, max_minutes=1.0)
    assert not plan.is_over({"step": 9, "seconds": 59.0})
    assert plan.is_over({"step": 10, "seconds": 0.0}) and plan.is_over({"step": 0, "seconds": 60.0})
    assert not Plan(max_minutes=1.0).is_over({"step": 10**9, "seconds": 59.0})
    assert Plan(max_minutes=0.0).is_over({"step": 0, "seconds": 0.0})
