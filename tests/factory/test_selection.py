# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.factory.selection import (
    distances,
    keep_balanced,
    keep_certain,
    keep_distinct,
    nearest_neighbours,
    reference_thumbnails,
    select,
    thumbnail,
)
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import draw
from .test_shards import png, write_parts


def draw_cell(seed: int) -> dict:
    return png(draw((16, 16), seed)[0])


def test_the_most_uncertain_are_left_out(tmp_path):
    samples = write_parts(tmp_path, 10, 4)
    kept = keep_certain(samples, np.arange(10), 0.3)
    assert len(kept) == 7 and (np.diff(kept) > 0).all()
    left_out = np.setdiff1d(np.arange(10), kept)
    assert samples.uncertainty[left_out].min() >= samples.uncertainty[kept].max()
    assert keep_certain(samples, np.arange(10), 0).tolist() == list(range(10))


def test_those_with_the_least_of_rare_classes_are_left_out(tmp_path):
    samples = write_parts(tmp_path, 12, 4)
    before = samples.pixels.sum(0) / samples.pixels.sum()
    kept = keep_balanced(samples, np.arange(12), 0.5)
    after = samples.pixels[kept].sum(0) / samples.pixels[kept].sum()
    assert len(kept) == 6 and after.min() > before.min()


def test_duplicates_of_each_other_mirrored_ones_and_those_of_training_images_are_left_out(tmp_path):
    images = [Image.fromarray(draw((16, 16), i)[0]) for i in range(4)]
    images += [images[1], images[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    small = np.stack([thumbnail(image, "L") for image in images])
    assert keep_distinct(small, np.arange(6), 0.01).tolist() == [0, 1, 2, 3]
    assert keep_distinct(small, np.arange(6), 0.01, small[:1]).tolist() == [1, 2, 3]


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_distances_are_the_plain_formula(n, m, seed):
    rng = np.random.default_rng(seed)
    queries, references = rng.random((n, 256), np.float32), rng.random((m, 256), np.float32)

    def plain(q, r):
        mirrored = r.reshape(16, 16)[:, ::-1].ravel()
        return min(np.sqrt(((q - x) ** 2).mean()) for x in (r, mirrored))

    expected = [min(plain(q, r) for r in references) for q in queries]
    np.testing.assert_allclose(distances(queries, references), expected, atol=1e-3)
    if n > 1:
        others = [min(plain(q, r) for j, r in enumerate(queries) if j != i) for i, q in enumerate(queries)]
        np.testing.assert_allclose(distances(queries, queries, skip_self=True), others, atol=1e-3)


def test_a_selection_goes_through_all_criteria_and_says_when_nothing_is_left(tmp_path):
    samples = write_parts(tmp_path, 10, 4)
    kept = select(samples, drop_uncertain=0.2, drop_common=0.25, min_distance=1e-6)
    assert len(kept) == 6 and (np.diff(kept) > 0).all()
    rows = Dataset.from_dict({"image": [draw_cell(i) for i in range(2)]})
    references = reference_thumbnails(rows, "image", samples.image_mode)
    nearest = nearest_neighbours(samples, kept, references)
    assert set(nearest) == {"generated to generated", "generated to training", "training to training"}
    duplicates = [i for i in kept if i < 2]
    assert (nearest["generated to training"]["least"] < 1e-3) == bool(duplicates)
    with pytest.raises(UserError, match="Nothing of 10 images would be left"):
        select(samples, min_distance=0.5, references=references)
