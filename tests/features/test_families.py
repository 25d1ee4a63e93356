# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A third family of models is a new file and a line in a table: nothing else knows it."""

import sys
import types
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from transformers import ResNetConfig, ResNetModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from diffuseseg_diffusers import (
    AutoDiffuseSegPipeline,
    BackbonePipeline,
    DiffuseSegPipeline,
    evaluate_segmentation,
    fit_segmentation_head,
)
from diffuseseg_diffusers.features import families
from diffuseseg_diffusers.features.base import FeatureExtractor, Tap
from diffuseseg_diffusers.features.filters import filter_bank
from diffuseseg_diffusers.features.pixel_unet import DecoderFeatureExtractor
from diffuseseg_diffusers.heads.selection import choose_features
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import QUICK, drawn_dataset, make_unet
from ..tiny_pipelines import latent_unet


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

    def run(self, images, class_labels=None, generator=None):
        levels = self.model(images)
        return [levels[b] for b in self.blocks]


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


@pytest.mark.parametrize("kind", ["pixels", "latents", "vision"])
def test_every_family_gives_filters_behind_its_activations_or_alone(kind):
    size = (16, 24)
    if kind == "pixels":
        pipe: Any = DiffuseSegPipeline(make_unet(sample_size=size, in_channels=3, out_channels=3), DDPMScheduler())
    elif kind == "latents":
        pipe = AutoDiffuseSegPipeline.from_pipe(latent_unet())
    else:
        backbone = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).eval()
        pipe = BackbonePipeline(backbone, ViTImageProcessorPil(size={"height": 16, "width": 24}))
    plain, extractor = pipe.features(size=size), pipe.features(size=size, filters=(1.0, 3.5))
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    *activations, filters = extractor(images).activations
    assert all(torch.equal(a, b) for a, b in zip(activations, plain(images).activations, strict=True))
    assert torch.equal(filters, filter_bank(images, (1.0, 3.5)))
    last = extractor.feature_info()[-1]
    assert (last.block, last.timestep, last.channels, last.height, last.width) == ("filters", 0, 51, *size)
    assert extractor.choose(extractor.blocks[:1]).filters == (1.0, 3.5) and plain.choose().filters is None
    alone = pipe.features([], [], filters=[1.0], size=size)
    assert [i.channels for i in alone.feature_info()] == [27] and alone.choose().blocks == ()
    assert len(alone(images).activations) == 1
    quick = replace(QUICK, inputs=("activations", "filters"), voting="soft", max_steps=60)
    dataset = drawn_dataset(3, size=size, channels=3)
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=quick, num_members=2, size=size)
    assert pipe.segmentation_head.config.format_version == 6
    assert pipe.segment([dataset[0].image], output_type="np").masks[0].shape == size
