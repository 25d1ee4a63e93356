# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffuseseg_diffusers.datasets.augmentation import IGNORED
from diffuseseg_diffusers.students.batches import EpochBatches, Mix, Pairs, epoch_order
from diffuseseg_diffusers.students.targets import SoftTargets, soft_targets

from ..conftest import drawn_dataset


@given(st.integers(1, 50), st.integers(0, 10), st.floats(0, 1), st.integers(1, 200), st.integers(0, 100))
@example(main=1, real=0, share=1.0, count=1, seed=0)  # all of it from a dataset that is empty
@settings(max_examples=50, deadline=None)
def test_an_epoch_mixes_at_the_given_share_and_shows_all_before_any_again(main, real, share, count, seed):
    order = epoch_order([main, real], [1 - share, share], count, seed)
    assert len(order) == count and 0 <= order.min() and order.max() < main + real
    of_real = (order >= main).sum()
    assert of_real == (round(share * count) if real else 0)
    for part, size in ((order[order < main], main), (order[order >= main] - main, real)):
        times = np.bincount(part, minlength=size)  # also of those that were not shown at all
        assert size == 0 or times.max() - times.min() <= 1
    assert (epoch_order([main, real], [1 - share, share], count, seed) == order).all()


@given(st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any), st.integers(1, 100), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_an_epoch_of_three_datasets_has_the_shares_that_were_asked_for(sizes, count, seed):
    shares = np.random.default_rng(seed).dirichlet([1, 1, 1])
    order = epoch_order(sizes, shares, count, seed)
    bounds = np.cumsum([0, *sizes])
    found = [((order >= a) & (order < b)).sum() for a, b in zip(bounds, bounds[1:])]
    first = next(i for i, size in enumerate(sizes) if size)
    assert sum(found) == len(order) == count
    for i, size in enumerate(sizes):
        if i != first:
            assert found[i] == (round(shares[i] * count) if size else 0)


def test_pairs_are_resized_and_ignored_pixels_get_one_number():
    first, second = drawn_dataset(count=2), drawn_dataset(count=1, size=(20, 24), channels=3, ignore_index=2)
    pairs = Pairs([first, second], (8, 12))
    images, masks = zip(*pairs)
    assert len(pairs) == 3 and {tuple(x.shape) for x in images} == {(3, 8, 12)}
    assert {tuple(m.shape) for m in masks} == {(8, 12)} and masks[2].unique().tolist() == [0, 1, IGNORED]


@pytest.fixture
def soft(tmp_path):
    """Six images with soft targets."""
    images = torch.randint(0, 255, (6, 1, 16, 16), dtype=torch.uint8)
    save_file({"images": images, "targets": soft_targets(torch.rand(6, 3, 16, 16).softmax(1))}, tmp_path / "x")
    return SoftTargets([tmp_path / "x"])


def test_soft_targets_are_mixed_in_and_labels_come_last(soft):
    mix = Mix(num_epochs=4, images_per_epoch=8, unlabeled_fraction=0.75, labels_last=0.25)
    batches = EpochBatches(drawn_dataset(4), None, soft, mix, (16, 16), 1, batch_size=4, seed=0)
    for epoch in range(4):
        assert (batches.rows(epoch) >= 4).sum() == (6 if epoch < 3 else 0), epoch
    assert Mix(num_epochs=4, labels_last=0.5).shares(3, (False, False, True)) == [0.0, 0.0, 1.0]


def test_an_epoch_is_the_same_wherever_the_stream_resumes(soft):
    def epochs(position: int, number: int) -> list:
        mix = Mix(num_epochs=4, images_per_epoch=8)
        stream = EpochBatches(drawn_dataset(4), None, soft, mix, (16, 16), 1, batch_size=4, seed=0)
        stream.load_state_dict({"position": position})
        return [
            (images, masks, torch.rand(2, generator=views), torch.rand(2))
            for images, masks, views in itertools.islice(stream, 2 * number)
        ]

    whole, resumed = epochs(0, 3), epochs(16, 1)
    for one, other in zip(whole[4:], resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert not torch.equal(whole[0][0], whole[2][0])
