# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What needs CUDA: precisions against float32, CPU offload, tables on the device, training, generation."""

import numpy as np
import pytest
import torch

from diffuseseg_diffusers import AutoDiffuseSegPipeline, fit_segmentation_head
from diffuseseg_diffusers.features.base import FeatureInfo
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.optimize import fit_members
from diffuseseg_diffusers.heads.recipes import RECIPES, Recipe
from diffuseseg_diffusers.heads.table import ActivationTable

from .conftest import QUICK, draw, drawn_dataset, make_head, make_pipeline
from .tiny_pipelines import FAMILIES


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA"),
]
IMAGES = [draw((16, 16), i)[0] for i in range(4)]


def agreement(first, second) -> float:
    return float(np.mean([(a == b).mean() for a, b in zip(first, second)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_on_the_gpu_agree_with_those_on_the_cpu_in_float32(dtype):
    pipe = make_pipeline(head=True)
    exact = pipe.segment(IMAGES, output_type="np")
    found = pipe.to("cuda", dtype).segment(IMAGES, output_type="np")
    assert agreement(exact.masks, found.masks) > (0.995 if dtype == torch.float32 else 0.9)
    assert found.uncertainty[0].dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_generation_in_every_precision_starts_from_the_same_noise(dtype):
    pipe = make_pipeline(head=True)
    exact = pipe(4, torch.Generator().manual_seed(0), 5, "np").images
    found = pipe.to("cuda", dtype)(4, torch.Generator().manual_seed(0), 5, "np")
    np.testing.assert_allclose(found.images, exact, atol=1e-3 if dtype == torch.float32 else 0.1)
    assert found.masks.shape == (4, 16, 16)


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_weights_give_the_same_masks(way):
    pipe = make_pipeline(head=True)
    before = pipe.to("cuda").segment(IMAGES, output_type="np").masks
    pipe.to("cpu")
    getattr(pipe, way)()
    assert agreement(before, pipe.segment(IMAGES, output_type="np").masks) > 0.995
    assert pipe(2, torch.Generator().manual_seed(0), 3, "np").masks.shape == (2, 16, 16)


def test_a_cuda_generator_draws_the_noise_of_the_features():
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, share_noise=False)
    pipe.to("cuda")
    first, again = (
        pipe.segment(IMAGES, generator=torch.Generator("cuda").manual_seed(3), output_type="pt").uncertainty
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_a_head_is_fitted_on_strokes_on_the_gpu():
    pipe, dataset = make_pipeline().to("cuda"), drawn_dataset()
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe="fast", num_members=2, sparse_labels=True)
    assert pipe.segment(IMAGES, output_type="np").masks[0].dtype == np.uint8


def test_a_head_fitted_on_the_gpu_segments_as_one_fitted_on_the_cpu():
    dataset, masks = drawn_dataset(), []
    for device in ("cpu", "cuda"):
        pipe = make_pipeline().to(device)
        pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3)
        assert pipe.segmentation_head.device.type == device
        masks.append(pipe.segment(IMAGES, output_type="np").masks)
    assert agreement(*masks) > 0.97


def test_tables_on_the_gpu_hold_what_those_in_memory_hold():
    info = [FeatureInfo(0, 50, 5, 8, 8), FeatureInfo(1, 50, 3, 16, 16)]
    tables = [ActivationTable(info, 2, (16, 16)) for _ in range(2)]
    for image in range(2):
        activations = [torch.randn(i.channels, i.height, i.width) for i in info]
        for table in tables:
            table.put(image, [a[None] for a in activations], torch.zeros(1, 16, 16, dtype=torch.uint8))
    on_gpu = tables[1].to(torch.device("cuda"))
    pixels = torch.randperm(512).view(2, -1)
    for mine, theirs in zip(tables[0].locate(pixels), on_gpu.locate(pixels.cuda())):
        a = tables[0].gather(mine, torch.empty(256, 8))
        b = on_gpu.gather(theirs, torch.empty(256, 8, device="cuda"))
        torch.testing.assert_close(a, b.cpu(), atol=2e-3, rtol=2e-3)


def test_activations_stay_on_the_gpu_where_they_fit_and_are_those_of_the_cpu():
    dataset, pipe = drawn_dataset(), make_pipeline()
    exact = extract_activations(pipe.features(), dataset, show_progress=False).to(torch.device("cuda"))
    found = extract_activations(pipe.to("cuda").features(), dataset, show_progress=False)
    assert found.device.type == "cuda" and torch.equal(found.labels, exact.labels)
    for a, b in zip(found.tables.values(), exact.tables.values()):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_first_training_step_is_that_of_the_cpu(name):
    pipe, heads = make_pipeline(), []
    recipe = Recipe(**{**vars(RECIPES[name]), "max_steps": 1, "patience": None})
    for device in ("cpu", "cuda"):
        head = make_head(pipe, blocks=(5,), timesteps=[50])
        table = ActivationTable([FeatureInfo(5, 50, 8, 8, 8)], 1, (16, 16))
        torch.manual_seed(0)
        table.put(0, [torch.randn(1, 8, 8, 8)], torch.randint(3, (1, 16, 16), dtype=torch.uint8))
        fit_members(head, table.to(torch.device(device)), recipe, device=device, show_progress=False)
        heads.append(head)
    for a, b in zip(*(h.state_dict().values() for h in heads)):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["Stable Diffusion", "DiT", "SD3", "Flux"])
@pytest.mark.parametrize("way", [None, "enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_pipelines_of_diffusers_give_their_own_images_and_masks_as_on_the_cpu(name, way):
    make, call = FAMILIES[name]
    pipe = AutoDiffuseSegPipeline.from_pipe(make())
    size = (16, 16) if name == "DiT" else (16, 24)
    dataset = drawn_dataset(3, channels=3)
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2, size=size)
    exact = pipe.segment([dataset[0].image], output_type="np").masks
    if way is None:
        pipe.to("cuda")
    else:
        getattr(pipe, way)()
    assert agreement(exact, pipe.segment([dataset[0].image], output_type="np").masks) > 0.99
    images = [
        p(**call, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images
        for p in (pipe, pipe.base)
    ]
    assert np.array_equal(*images)


@pytest.mark.parametrize("name", ["Stable Diffusion", "SDXL", "DiT", "SD3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_foreign_features_in_half_precision_are_nearly_those_in_float32(name, dtype):
    pipe = AutoDiffuseSegPipeline.from_pipe(FAMILIES[name][0]())
    size = (16, 16) if name == "DiT" else (16, 24)
    images = torch.rand(2, 3, *size) * 2 - 1
    exact = pipe.features(size=size)(images).activations
    pipe.to("cuda", dtype)
    for expected, found in zip(exact, pipe.features(size=size)(images).activations):
        assert (found.cpu().float() - expected).norm() < 0.1 * expected.norm()


def test_columns_of_a_table_are_chosen_on_the_device():
    info = [FeatureInfo(b, t, 4, 8, 8) for t in (10, 20) for b in (0, 1)]
    table = ActivationTable(info, 2, (8, 8)).to(torch.device("cuda"))
    for i in range(2):
        table.put(i, [torch.full((1, 4, 8, 8), float(k), device="cuda") for k in range(4)], torch.zeros(1, 8, 8))
    chosen = table.select([1, 3])
    assert chosen.device.type == "cuda" and [float(a.unique()) for a in chosen.image(0, [0, 1])] == [1.0, 3.0]
