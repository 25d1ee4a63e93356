# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import copy

import numpy as np
import pytest
import torch

from diffuseseg_diffusers.evaluation.agreement import agreement_line, measure_agreement

from ..conftest import draw, make_head, make_pipeline


IMAGES = [draw((24, 20), i)[0] for i in range(3)]


def test_agreement_is_the_share_of_pixels_of_the_size_that_the_model_sees():
    exact = make_pipeline(head=True)
    pipe = copy.deepcopy(exact)
    pipe.unet.to(torch.bfloat16)
    found = measure_agreement(pipe, lambda: exact, iter(IMAGES))
    masks = [np.stack(p.segment(IMAGES, mask_size=(16, 16), output_type="np").masks) for p in (pipe, exact)]
    assert found == {"bfloat16": pytest.approx((masks[0] == masks[1]).mean(), abs=2 / masks[0].size)}
    assert 0.8 < found["bfloat16"]


def test_masks_of_another_head_do_not_agree():
    exact = make_pipeline(head=True)
    pipe = copy.deepcopy(exact)
    pipe.unet.to(torch.bfloat16)
    with torch.no_grad():
        pipe.segmentation_head.layers[6].bias[:, 1] += 100
    assert measure_agreement(pipe, lambda: exact, IMAGES)["bfloat16"] < 0.9


def test_heads_with_fresh_noise_are_compared_on_the_same_noise():
    exact = make_pipeline()
    exact.segmentation_head = make_head(exact, share_noise=False)
    pipe = copy.deepcopy(exact)
    pipe.unet.to(torch.bfloat16)
    with_own = measure_agreement(pipe, lambda: exact, IMAGES)["bfloat16"]
    exact.segmentation_head.register_to_config(share_noise=True)
    pipe.segmentation_head.register_to_config(share_noise=True)
    assert with_own > measure_agreement(pipe, lambda: exact, IMAGES)["bfloat16"] - 0.03


def test_a_line_says_what_was_found_and_what_follows():
    said = "Masks in bfloat16 agree with float32 on 99.896% of the pixels"
    assert agreement_line({"bfloat16": 0.99896}).startswith(
        f"{said}, less than 99.9%: `--dtype auto` will take float32"
    )
    assert agreement_line({"bfloat16": 0.999}) == "Masks in bfloat16 agree with float32 on 99.900% of the pixels."
    assert "auto" not in agreement_line({"float16": 0.5})


def test_what_computes_in_float32_is_compared_with_nothing():
    def never():
        raise AssertionError("nothing is to be made")

    assert measure_agreement(make_pipeline(head=True), never, IMAGES) == {}
