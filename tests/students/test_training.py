# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffuseseg_diffusers.datasets.augmentation import IGNORED
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.student import StudentSegmenter
from diffuseseg_diffusers.students.targets import SoftTargets, soft_targets
from diffuseseg_diffusers.students.training import (
    BEST,
    Pairs,
    StudentTraining,
    TrainingOptions,
    checkpoints,
    epoch_order,
    segmentation_loss,
)
from diffuseseg_diffusers.students.unets import new_unet

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
    kept = StudentSegmenter.from_pretrained(folder / BEST).model.state_dict()
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


def with_soft_targets(folder, labeled: int, **options) -> StudentTraining:
    path = folder / "targets.safetensors"
    if not path.exists():
        images = torch.randint(0, 255, (6, 1, 16, 16), dtype=torch.uint8)
        targets = soft_targets(torch.rand(6, 3, 16, 16).softmax(1))
        save_file({"images": images, "targets": targets}, path)
    train = drawn_dataset(labeled) if labeled else None
    given = dict(num_epochs=4, images_per_epoch=8, batch_size=4, num_workers=0) | options
    torch.manual_seed(0)
    student = new_unet(NAMES, (16, 16), 1)
    return StudentTraining(Accelerator(cpu=True), student, train, None, TrainingOptions(**given), SoftTargets([path]))


def test_soft_targets_are_mixed_in_and_labels_come_last(tmp_path):
    run = with_soft_targets(tmp_path, 4, unlabeled_fraction=0.75, labels_last=0.25)
    for epoch in range(4):
        order = np.array(run._batches(epoch).dataset.indices)
        assert (order >= 4).sum() == (6 if epoch < 3 else 0), epoch
    assert run.run_epoch(0) > 0 and run.run_epoch(3) > 0
    alone = with_soft_targets(tmp_path, 0, labels_last=0.5)
    assert alone._shares(3) == [0.0, 0.0, 1.0] and alone.run_epoch(3) > 0


def test_a_run_with_soft_targets_resumes_bit_for_bit(tmp_path):
    whole = with_soft_targets(tmp_path, 4)
    for epoch in range(3):
        whole.run_epoch(epoch)
        if epoch == 0:
            whole.save_checkpoint(tmp_path, {"epoch": 1}, is_best=True)
    resumed = with_soft_targets(tmp_path, 4)
    assert resumed.load_checkpoint(tmp_path) == {"epoch": 1}
    for epoch in (1, 2):
        resumed.run_epoch(epoch)
    ours, theirs = (x.segmenter.model.state_dict() for x in (whole, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_options_out_of_range_are_told():
    with pytest.raises(UserError, match="`batch_size` must be at least 1, got 0"):
        TrainingOptions(batch_size=0)
    with pytest.raises(UserError, match="`real_fraction` lies in 0 to 1"):
        TrainingOptions(real_fraction=2)
    with pytest.raises(UserError, match="`labels_last` lies in 0 to 1"):
        TrainingOptions(labels_last=-0.5)
    with pytest.raises(UserError, match="`layer_decay` lies above 0"):
        TrainingOptions(layer_decay=0)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "run.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    run = training(tmp_path)
    run.save_checkpoint(tmp_path, {"epoch": 1}, is_best=True)
    path = tmp_path / "checkpoint-000001" / name
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(UserError, match="checkpoint-000001"):
        training(tmp_path).load_checkpoint(tmp_path)


def test_what_somebody_put_into_a_checkpoint_stays(tmp_path):
    run = training(tmp_path)
    run.save_checkpoint(tmp_path, {"epoch": 1}, is_best=True)
    (tmp_path / "checkpoint-000001" / "notes.txt").write_text("mine")
    run.save_checkpoint(tmp_path, {"epoch": 2}, is_best=True)
    assert [p.name for p in (tmp_path / "checkpoint-000001").rglob("*")] == ["notes.txt"]
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-000002"]
