# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import os

import pytest
import torch
import torch.nn.functional as F

from diffuseseg_diffusers.labeling.features import (
    DIMENSIONS,
    Basis,
    PictureFeatures,
    at_most,
    model_key,
    places,
    sample_pixels,
)


def activations(seed: int, count: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, c, h, w, generator=generator) for c, h, w in ((40, 6, 4), (50, 12, 8))]


def test_features_are_principal_components_of_the_whole_upsampled_activations():
    """Against the plain formula: upsample, concatenate, standardise, project."""
    basis = Basis.of([activations(seed) for seed in range(3)])
    found = basis.reduce(activations(7))
    assert found.shape == (1, DIMENSIONS, 12, 8) and found.dtype == torch.float16
    full = torch.cat([F.interpolate(a, (12, 8), mode="bilinear") for a in activations(7)], 1)  # [1,90,12,8]
    expected = torch.einsum("ncyx,cd->ndyx", full, basis.projection) + basis.offset[None, :, None, None]
    assert torch.allclose(found.float(), expected, atol=0.02)


def test_components_are_of_standardised_activations():
    """Scale and offset of an activation do not matter, and components are uncorrelated."""
    given = [activations(seed) for seed in range(8)]
    scaled = [[a * 100 + 3, b] for a, b in given]
    first, second = Basis.of(given), Basis.of(scaled)
    a, b = first.reduce(given[0]).float(), second.reduce(scaled[0]).float()
    assert torch.allclose(a, b, atol=0.05)


def test_few_and_constant_activations_do():
    constant = [torch.zeros(1, 5, 4, 4), torch.rand(1, 2, 4, 4)]
    found = Basis.of([constant]).reduce(constant)
    assert found.shape == (1, DIMENSIONS, 4, 4) and torch.isfinite(found).all() and (found[0, 7:] == 0).all()


def test_pixels_are_read_as_upsampling_would_give_them():
    grid = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    size = (13, 9)
    full = F.interpolate(grid[None], size, mode="bilinear", align_corners=False)[0]
    y, x = torch.meshgrid(torch.arange(13), torch.arange(9), indexing="ij")
    pixels = torch.stack([y.flatten(), x.flatten()], 1)
    assert torch.allclose(sample_pixels(grid, pixels, size), full.flatten(1).T, atol=1e-5)


def test_places_are_means_over_neighbours_on_64_pixels_at_most():
    grid = torch.randn(2, 128, 96, generator=torch.Generator().manual_seed(0))
    found = places(grid)
    assert found.shape == (2, 64, 48)
    assert torch.allclose(found[:, 10, 10], grid[:, 18:24, 18:24].mean((1, 2)), atol=1e-5)
    assert torch.allclose(found[:, 0, 0], grid[:, :4, :4].mean((1, 2)), atol=1e-5)
    assert at_most(grid, 200) is grid


def test_a_picture_keeps_samples_of_itself():
    grid = torch.randn(DIMENSIONS, 40, 40).half()
    own = PictureFeatures.of(grid)
    assert own.small.shape == (DIMENSIONS, 32, 32)
    flat = grid.flatten(1).T
    assert all((flat == pixel).all(1).any() for pixel in own.pixels)


def test_features_are_extracted_once_and_again_after_a_change(open_session, pictures):
    session = open_session()
    asked = []
    original = session.store._activations
    session.store._activations = lambda name: asked.append(name) or original(name)
    seen = []
    session.extract(lambda done, total: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(7)] and set(asked) == set(session.pictures)
    before = {name: session.store.read(name, "grid") for name in session.pictures}

    again = open_session()
    asked.clear()
    original = again.store._activations
    again.store._activations = lambda name: asked.append(name) or original(name)
    again.extract()
    assert asked == [] and all(torch.equal(again.store.read(n, "grid"), g) for n, g in before.items())

    path = pictures[0] / "2.png"
    os.utime(path, (1, 1))
    changed = open_session()
    original = changed.store._activations
    changed.store._activations = lambda name: asked.append(name) or original(name)
    changed.extract()
    assert asked == ["2.png"]


def test_half_a_file_is_extracted_again(open_session):
    session = open_session()
    session.extract()
    path = session.store.path("1.png")
    path.write_bytes(path.read_bytes()[:100])
    assert not session.store.has("1.png") and session.store.has("2.png")


@pytest.mark.parametrize("content", [b"no tensors", None])
def test_features_on_components_that_cannot_be_read_are_extracted_again(open_session, content):
    session = open_session()
    session.extract()
    expected, folder = session.grid("1.png").clone(), session.store.folder
    path = folder / "basis.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    again = open_session()
    assert not again.store.has("1.png") and list(folder.iterdir()) == []
    again.extract()
    assert torch.equal(again.grid("1.png"), expected)


def test_other_models_and_sizes_have_other_features(pipe):
    extractor = pipe.features()
    keys = {
        model_key(pipe, extractor, (1.0,)),
        model_key(pipe, extractor, (1.5,)),
        model_key(pipe, extractor.choose(timesteps=[7]), (1.0,)),
        model_key(pipe, pipe.features(size=(8, 8)), (1.0,)),
    }
    assert len(keys) == 4 and model_key(pipe, extractor, (1.0,)) in keys


@pytest.mark.parametrize("name", ["a.png", "sub/ü €.png", chr(0xDCFF) + ".png"])
def test_names_of_any_kind_have_files(open_session, name):
    path = open_session().store.path(name)
    assert path.suffix == ".safetensors" and len(path.name) == 36
