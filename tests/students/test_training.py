# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.data.augmentation import IGNORED
from diffuseseg_diffusers.runs.errors import UserError
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.segmenter import StudentSegmenter, load_student
from diffuseseg_diffusers.students.training import (
    BEST,
    Pairs,
    StudentTraining,
    TrainingOptions,
    checkpoints,
    epoch_order,
    segmentation_loss,
)

from ..conftest import drawn_dataset
from .test_networks import NAMES, write_config


def test_the_loss_is_cross_entropy_and_ignored_pixels_do_not_count():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    upsampled = F.interpolate(logits, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(upsampled, masks))
    masks[0] = IGNORED
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(upsampled[1:], masks[1:]))
    assert segmentation_loss(logits, torch.full_like(masks, IGNORED)) == 0


@given(st.integers(1, 50), st.integers(0, 10), st.floats(0, 1), st.integers(1, 200), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_an_epoch_mixes_at_the_given_share_and_shows_all_before_any_again(main, real, share, count, seed):
    order = epoch_order(main, real, share, count, seed)
    assert len(order) == count and 0 <= order.min() and order.max() < main + real
    of_real = (order >= main).sum()
    assert of_real == (round(share * count) if real else 0)
    for part, size in ((order[order < main], main), (order[order >= main] - main, real)):
        times = np.bincount(part, minlength=size)  # also of those that were not shown at all
        assert size == 0 or times.max() - times.min() <= 1
    assert (epoch_order(main, real, share, count, seed) == order).all()


def test_pairs_are_resized_and_ignored_pixels_get_one_number():
    first, second = drawn_dataset(count=2), drawn_dataset(count=1, size=(20, 24), channels=3, ignore_index=2)
    pairs = Pairs([first, second], (8, 12))
    images, masks = zip(*pairs)
    assert len(pairs) == 3 and {tuple(x.shape) for x in images} == {(3, 8, 12)}
    assert {tuple(m.shape) for m in masks} == {(8, 12)} and masks[2].unique().tolist() == [0, 1, IGNORED]


def training(folder) -> StudentTraining:
    torch.manual_seed(0)
    model = make_student(write_config(folder), NAMES)
    segmenter = StudentSegmenter(model, make_processor("nvidia/mit-b0", (32, 32)))
    options = TrainingOptions(num_epochs=3, images_per_epoch=8, batch_size=4, num_workers=0)
    return StudentTraining(Accelerator(cpu=True), segmenter, drawn_dataset(6), drawn_dataset(2), options)


def test_checkpoints_bring_weights_and_the_best_student_back_and_a_full_disk_costs_neither(tmp_path, monkeypatch):
    run = training(tmp_path)
    run.run_epoch(0)
    run.save_checkpoint(tmp_path, {"epoch": 1}, is_best=True)
    best = {name: x.clone() for name, x in run.segmenter.model.state_dict().items()}
    run.run_epoch(1)
    run.save_checkpoint(tmp_path, {"epoch": 2}, is_best=False)
    (folder,) = checkpoints(tmp_path)
    assert folder.name == "checkpoint-000002"
    kept = load_student(folder / BEST).model.state_dict()
    assert all(torch.equal(kept[name], x) for name, x in best.items())
    run.run_epoch(2)
    monkeypatch.setattr(shutil, "copytree", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(UserError, match="epoch 3 cannot be saved .No space left.*checkpoint-000002 is kept"):
        run.save_checkpoint(tmp_path, {"epoch": 3}, is_best=False)
    other = training(tmp_path)
    assert other.load_checkpoint(tmp_path) == {"epoch": 2}
    other.run_epoch(2)
    ours, theirs = (x.segmenter.model.state_dict() for x in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert training(tmp_path / "..").load_checkpoint(tmp_path / "nothing") is None


def test_options_out_of_range_are_told():
    with pytest.raises(UserError, match="`batch_size` must be at least 1, got 0"):
        TrainingOptions(batch_size=0)
    with pytest.raises(UserError, match="`real_fraction` lies in 0 to 1"):
        TrainingOptions(real_fraction=2)
