# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import copy

import numpy as np
import pytest
import torch

from diffuseseg_diffusers.inference.precision import measure_agreement

from ..conftest import draw, make_pipeline


IMAGES = [draw((24, 20), i)[0] for i in range(3)]


def test_agreement_is_the_share_of_pixels_of_the_size_that_the_model_sees(capsys):
    exact = make_pipeline(head=True)
    pipe = copy.deepcopy(exact)
    pipe.unet.to(torch.bfloat16)
    found = measure_agreement(pipe, lambda: exact, iter(IMAGES))
    masks = [np.stack(p.segment(IMAGES, mask_size=(16, 16), output_type="np").masks) for p in (pipe, exact)]
    assert found == {"bfloat16": pytest.approx((masks[0] == masks[1]).mean(), abs=2 / masks[0].size)}
    assert 0.8 < found["bfloat16"] and "Masks in bfloat16 agree with float32 on" in capsys.readouterr().out


def test_masks_of_another_head_do_not_agree_and_a_line_says_what_follows(capsys):
    exact = make_pipeline(head=True)
    pipe = copy.deepcopy(exact)
    pipe.unet.to(torch.bfloat16)
    with torch.no_grad():
        pipe.segmentation_head.layers[6].bias[:, 1] += 100
    assert measure_agreement(pipe, lambda: exact, IMAGES)["bfloat16"] < 0.9
    assert "less than 99.9%: `--dtype auto` will take float32 for it" in capsys.readouterr().out


def test_what_computes_in_float32_is_compared_with_nothing(capsys):
    def never():
        raise AssertionError("nothing is to be made")

    assert measure_agreement(make_pipeline(head=True), never, IMAGES) == {} and capsys.readouterr().out == ""
