# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What masks depend on: runs and heads tell it from anything else, and from nothing else."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from diffuseseg_diffusers import AutoDiffuseSegPipeline, DiffuseSegPipeline, PixelClassifierEnsemble
from diffuseseg_diffusers.heads.decisions import Decisions
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.identity import weights_digest
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import make_unet
from ..tiny_pipelines import stable_diffusion


SIZE = (16, 24)


def random_head(pipe, seed: int = 1, **config) -> PixelClassifierEnsemble:
    """A head that was fitted on nothing: quick, and its masks show every change of the activations."""
    extractor = pipe.features(size=SIZE if pipe.components.get("vae") else None)
    torch.manual_seed(seed)
    head = PixelClassifierEnsemble(
        num_classes=4,
        block_channels=[i.channels for i in extractor.feature_info()[: len(extractor.blocks)]],
        blocks=list(extractor.blocks),
        timesteps=list(extractor.timesteps),
        num_members=2,
        image_size=list(extractor.size),
        in_channels=extractor.in_channels,
        voting="soft",
        **config,
    )
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return head.eval()


def composed(head: PixelClassifierEnsemble | None = None):
    pipe = AutoDiffuseSegPipeline.from_pipe(stable_diffusion())
    pipe.segmentation_head = copy.deepcopy(head) if head is not None else random_head(pipe)
    return pipe


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def nudge(module: torch.nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 0.01


CHANGES = {
    "unet": (lambda p: nudge(p.unet), {"unet"}),
    "vae": (lambda p: nudge(p.vae), {"vae"}),
    "text encoder": (lambda p: nudge(p.text_encoder), {"text_encoder"}),
    "head": (lambda p: nudge(p.segmentation_head), {"segmentation_head"}),
    "labels": (lambda p: p.segmentation_head.register_to_config(label_names=list("abcd")), {"segmentation_head"}),
    "scale of latents": (lambda p: p.vae.register_to_config(scaling_factor=0.5), {"vae"}),
    "FreeU": (lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), {"freeu"}),
    "decisions": (lambda p: setattr(p, "decisions", Decisions((0.1,) * 4, (0.2,) * 4)), {"decisions"}),
    "precision": (lambda p: p.unet.to(torch.bfloat16), {"unet"}),
    "betas": (
        lambda p: setattr(p, "scheduler", DDPMScheduler.from_config(p.scheduler.config, beta_end=0.02)),
        {"noise"},
    ),
    "sampler": (
        lambda p: setattr(p, "scheduler", EulerDiscreteScheduler.from_config(p.scheduler.config)),
        set(),
    ),
    "slices": (lambda p: p.enable_attention_slicing(), set()),
    "agreement": (lambda p: p.segmentation_head.register_to_config(agreement={"bfloat16": 0.9}), set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_identity_names_what_changed_and_nothing_else(change):
    pipe = composed()
    before = pipe.identity()
    assert before == pipe.identity() and all(isinstance(value, str) for value in before.values())
    make, expected = CHANGES[change]
    make(pipe)
    assert differing(before, pipe.identity()) == expected


def test_pixels_students_and_averages_have_identities_too():
    pipe = DiffuseSegPipeline(make_unet(), DDPMScheduler())
    assert set(pipe.identity()) == {"unet", "channels"}
    pipe.segmentation_head = random_head(pipe)
    student = new_unet(pipe.label_names, pipe.image_size, pipe.in_channels)
    before = student.identity()
    nudge(student.model)
    assert differing(before, student.identity()) == {"model"}
    student.timestep = 3
    assert differing(before, student.identity()) == {"model", "timestep"}
    both = AveragedSegmenter({"a": pipe, "b": student})
    before = both.identity()
    nudge(pipe.unet)
    assert differing(before, both.identity()) == {"0.unet"}


def test_a_digest_is_of_the_weights_and_not_of_their_precision():
    torch.manual_seed(0)
    layer, other = torch.nn.Linear(4, 3).bfloat16(), torch.nn.Linear(4, 3)
    assert weights_digest(layer) == weights_digest(layer.float()) and len(weights_digest(layer)) == 16
    assert len({weights_digest(layer), weights_digest(other), weights_digest(layer, other)}) == 3
