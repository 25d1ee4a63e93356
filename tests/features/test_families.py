# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A third family of models is a new file and a line in a table: nothing else knows it."""

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from diffuseseg_diffusers import BackbonePipeline, DiffuseSegPipeline, evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.features import families
from diffuseseg_diffusers.features.base import FeatureExtractor, Features, Tap
from diffuseseg_diffusers.features.pixel_unet import DecoderFeatureExtractor
from diffuseseg_diffusers.heads.selection import choose_features
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import QUICK, drawn_dataset, make_unet


class Pyramid(torch.nn.Module):
    """The "model" of the third family: blurred pixels at three resolutions."""

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [F.avg_pool2d(images, stride) for stride in (4, 2, 1)]


class PyramidFeatureExtractor(FeatureExtractor):
    def __init__(self, backbone, blocks=None, timesteps=None, size=None):
        self.model, self.origin, self.settings = backbone, (backbone,), {"size": size}
        taps = [Tap(i, f"levels.{i}", 3, stride) for i, stride in enumerate((4, 2, 1))]
        super().__init__(taps, blocks, timesteps, size or (16, 16), in_channels=3)

    @classmethod
    def of(cls, pipe, **choice: Any):
        return cls(pipe.backbone, choice.get("blocks"), choice.get("timesteps"), choice.get("size"))

    device = property(lambda self: torch.device("cpu"))

    def default_blocks(self, of_18=None):
        return (0, 2)

    def __call__(self, images, class_labels=None, generator=None):
        levels = self.model(images)
        return self.check_finite(Features(activations=[levels[b] for b in self.blocks], info=self.feature_info()))


@pytest.fixture
def pyramids(monkeypatch):
    module = types.ModuleType("diffuseseg_diffusers.features.pyramid")
    module.PyramidFeatureExtractor = PyramidFeatureExtractor
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(families.FAMILIES, ("backbone", "Pyramid", None), "pyramid:PyramidFeatureExtractor")


def test_a_third_family_is_fitted_chosen_for_measured_and_used_without_a_change_elsewhere(pyramids):
    pipe, dataset = BackbonePipeline(Pyramid(), None), drawn_dataset(5, channels=3)
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3)
    assert list(pipe.segmentation_head.config.blocks) == [0, 2] and pipe.segmentation_head.config.in_channels == 3
    assert evaluate_segmentation(pipe, dataset, show_progress=False)[0]["mean_iou"] > 0.8
    best = choose_features(pipe, dataset, QUICK, folds=2, show_progress=False)
    assert set(best[0]["blocks"]) <= {0, 1, 2} and {c["timesteps"] for c in best} == {(0,)}
    output = pipe.segment([dataset[0].image], output_type="np", return_probabilities=True)
    assert np.array_equal(output.probabilities[0].argmax(0), output.masks[0])


def test_the_family_is_told_by_the_components_and_an_unknown_one_is_refused_by_name():
    pipe = DiffuseSegPipeline(make_unet(), DDPMScheduler())
    assert families.find_family(pipe.components) is DecoderFeatureExtractor
    with pytest.raises(UserError, match=r"backbone \(Pyramid\).*one with unet \(UNet2DModel"):
        BackbonePipeline(Pyramid(), None).features()


def test_an_extractor_chooses_anew_of_the_same_model():
    first = DecoderFeatureExtractor(make_unet(), DDPMScheduler(), (1,), (50,), share_noise=False, noise_seed=3)
    other = first.choose([0, 5])
    assert (other.blocks, other.timesteps, other.share_noise, other.noise_seed) == ((0, 5), (50,), False, 3)
    assert first.choose(timesteps=[10], up_blocks=[0]).blocks == (1,)
    assert [(t.index, t.stride) for t in first.taps] == [(0, 4), (1, 2), (2, 2), (3, 1), (4, 1), (5, 1)]
