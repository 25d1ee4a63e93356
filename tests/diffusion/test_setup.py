# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import math
from argparse import Namespace

import pytest
import torch

from diffuseseg_diffusers.diffusion.setup import learning_rate_schedule, make_model
from diffuseseg_diffusers.jobs.errors import UserError


def rates(**given):
    defaults = dict(learning_rate=1e-3, lr_scheduler="constant", lr_warmup_steps=0)
    args = Namespace(**{**defaults, "max_train_steps": None, "max_train_minutes": None, **given})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    return learning_rate_schedule(args, optimizer)


def test_learning_rates_warm_up_and_decay_over_the_steps():
    rate = rates(lr_scheduler="cosine", lr_warmup_steps=10, max_train_steps=40)
    for step in range(40):
        expected = 1e-3 * min(1, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * step / 40))
        assert rate(step, 0.0) == pytest.approx(expected, rel=1e-3)


def test_learning_rates_decay_over_the_minutes_or_what_is_further():
    rate = rates(lr_scheduler="linear", max_train_minutes=2.0, max_train_steps=100)
    assert rate(0, 60.0) == pytest.approx(5e-4) and rate(75, 60.0) == pytest.approx(2.5e-4)
    assert rate(0, 1e9) == 0 and rates(max_train_minutes=2.0)(0, 1e9) == 1e-3


def test_a_model_without_a_unet_on_pixels_is_no_start():
    with pytest.raises(UserError, match="some/student has no U-Net on pixels"):
        make_model(Namespace(pretrained="some/student", resolution=None), object(), None, lambda: 1)
