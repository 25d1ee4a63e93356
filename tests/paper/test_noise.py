# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from diffuseseg_diffusers.features.noise import clean_scheduler
from diffuseseg_diffusers.features.pixel_unet import DecoderFeatureExtractor
from diffuseseg_diffusers.heads.cross_validation import LabeledActivations
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper.noise import NOISES, NoiseVariant, check_noise, noise

from ..conftest import make_pipeline
from .common import make_study, shorten


def test_the_variants_of_noise_are_what_they_are_called():
    pipe = make_pipeline()
    images = torch.rand(2, 1, 16, 16) * 2 - 1
    images[1] = images[0]

    def extracted(noise, seed=0, **kwargs):
        extractor = NoiseVariant.of(pipe, blocks=[3], timesteps=[150, 151], noise=noise, **kwargs)
        return extractor(images, generator=torch.Generator().manual_seed(seed)).activations

    plain = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, [3], [150, 151])(images).activations
    assert all(torch.equal(a, b) for a, b in zip(extracted("one"), plain))
    per_step = extracted("per timestep")
    assert torch.equal(per_step[0][0], per_step[0][1])  # the same for both images
    assert (per_step[0] - per_step[1]).abs().mean() > 3 * (plain[0] - plain[1]).abs().mean()  # not for both timesteps
    fresh = extracted("fresh")
    assert not torch.equal(fresh[0][0], fresh[0][1])
    generator = torch.Generator().manual_seed(0)
    clean = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, [3], [150, 151], clean=True)(images).activations
    assert all(torch.equal(a, b) for a, b in zip(extracted("none"), clean))
    one = NoiseVariant.of(pipe, blocks=[1], timesteps=[50], noise="fresh").choose([3], [150, 151])
    assert (one.noise, one.share_noise) == ("fresh", False)
    draws = [one(images, generator=generator).activations for _ in range(3)]
    averaged = extracted("averaged", draws=3)
    torch.testing.assert_close(averaged[0], sum(d[0] for d in draws) / 3)


def test_all_combinations_are_measured_with_the_recipe_and_not_again(tmp_path, monkeypatch):
    shorten(monkeypatch)
    options = dict(blocks=[5], timesteps=[50])
    report = noise(make_study(tmp_path, **options))
    assert [(r["trained"], r["tested"]) for r in report.rows] == [(a, b) for a in NOISES for b in NOISES]
    assert len({r["mean_iou"] for r in report.rows}) > 4 and len(report.summary) == 6
    monkeypatch.setattr(LabeledActivations, "extract", lambda *args, **how: pytest.fail("extracted again"))
    assert noise(make_study(tmp_path, **options)).rows == report.rows
    with pytest.raises(UserError, match=r"blocks \[5\] \(now \[3\]\)"):
        noise(make_study(tmp_path, blocks=[3], timesteps=[50]))


def test_models_without_noise_are_refused(tmp_path):
    study = make_study(tmp_path)
    study.extractor = object()
    with pytest.raises(UserError, match="is for diffusion U-Nets on pixels, and DiffuseSegPipeline holds none"):
        check_noise(study)
    study = make_study(tmp_path)
    study.pipe.register_modules(scheduler=clean_scheduler())
    with pytest.raises(UserError, match="was distilled to see no noise"):
        check_noise(study)
