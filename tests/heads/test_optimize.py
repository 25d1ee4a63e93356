# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from diffuseseg_diffusers import fit_segmentation_head
from diffuseseg_diffusers.features.base import FeatureInfo
from diffuseseg_diffusers.features.pixel_unet import DecoderFeatureExtractor
from diffuseseg_diffusers.heads import optimize
from diffuseseg_diffusers.heads.extraction import extract_activations
from diffuseseg_diffusers.heads.optimize import EarlyStopping, _MemberTraining, fit_members
from diffuseseg_diffusers.heads.recipes import Recipe
from diffuseseg_diffusers.heads.table import ActivationTable

from ..conftest import QUICK, drawn_dataset, make_head, make_pipeline


def plain_training(head, features, labels, recipe, seed, member):
    """One member the published way: a module of its own on the whole feature matrix, with Adam."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, member]).generate_state(1)[0]))
    first, _, _, second, _, _, third = head.layers
    sizes = [first.weight.shape[2], first.weight.shape[1], second.weight.shape[1], third.weight.shape[1]]
    net = torch.nn.Sequential(
        torch.nn.Linear(sizes[0], sizes[1]),
        torch.nn.ReLU(),
        torch.nn.BatchNorm1d(sizes[1]),
        torch.nn.Linear(sizes[1], sizes[2]),
        torch.nn.ReLU(),
        torch.nn.BatchNorm1d(sizes[2]),
        torch.nn.Linear(sizes[2], sizes[3]),
    )
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 0.02
            layer.bias.data.zero_()
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate)
    pool = (labels != head.config.ignore_index).nonzero().view(-1)
    for _ in range(recipe.max_epochs):
        order = pool[torch.randperm(len(pool), generator=generator)]
        for batch in order.split(recipe.batch_size):
            if len(batch) < recipe.batch_size:
                continue  # the odd ones are left out
            loss = F.cross_entropy(net(features[batch]), labels[batch].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def labelled_table(pipe):
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (1, 3, 5), (50, 150))
    table = extract_activations(extractor, drawn_dataset(), show_progress=False)
    table.labels[0, :4] = 255  # pixels without a label
    return table


def test_stacked_members_train_as_they_would_alone():
    """Over a fixed number of steps, so that no rounding decides when a member stops."""
    pipe = make_pipeline()
    table, head = labelled_table(pipe), make_head(pipe)
    recipe = Recipe(64, 1e-3, max_epochs=2)
    fit_members(head, table, recipe, seed=5, show_progress=False)

    everything = torch.arange(table.labels.numel())[None]
    features = table.gather(table.locate(everything)[0], torch.empty(everything.numel(), len(table.channel_order)))
    original = torch.empty_like(features)
    original[:, table.channel_order] = features
    with torch.no_grad():
        ours = head.classify(original.T.expand(4, -1, -1)).transpose(1, 2)  # [K,P,C]
    for k in range(4):
        net = plain_training(head, original, table.labels.view(-1), recipe, 5, k)
        with torch.no_grad():
            plain = net(original)
        # Adam makes a large step of a gradient that is zero but for rounding, so roundings grow with the steps.
        assert (ours[k] - plain).abs().mean() < 0.05 * plain.abs().mean()
        assert (ours[k].argmax(1) == plain.argmax(1)).float().mean() > 0.98


def published_stop(losses, patience, from_epoch, epoch_steps):
    """The step after which the published loop ends, for the losses of one member."""
    best, stale = float("inf"), 0
    for step, loss in enumerate(losses):
        if step // epoch_steps >= from_epoch:
            if loss < best:
                best, stale = loss, 0
            else:
                stale += 1
            if stale > patience:
                return step
    return len(losses)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=40, max_size=40), min_size=1, max_size=4),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(1, 9),
)
def test_every_member_stops_on_its_own_by_the_published_rule(losses, patience, from_epoch, epoch_steps):
    rule = EarlyStopping(len(losses), patience, from_epoch)
    training, stops = list(range(len(losses))), {}
    for step in range(40):
        done = rule.update(torch.tensor([float(losses[k][step]) for k in training]), step // epoch_steps)
        if done is not None:
            assert done.any()
            stops |= {k: step for k, stopped in zip(training, done.tolist()) if stopped}
            training = [k for k, stopped in zip(training, done.tolist()) if not stopped]
            if not training:
                break
    expected = [published_stop(own, patience, from_epoch, epoch_steps) for own in losses]
    assert [stops.get(k, 40) for k in range(len(losses))] == expected


def test_members_that_stop_keep_their_weights_while_the_others_train_on(monkeypatch):
    """Members 1 and 3 are made to stop after the steps 5 and 9; each ends as one that is trained alone for as long."""
    pipe = make_pipeline()
    recipe, stops = Recipe(64, 1e-3, max_epochs=3, patience=1), {5: [1], 9: [3]}

    class Given(EarlyStopping):
        step, going = -1, [0, 1, 2, 3]

        def update(self, loss, epoch):
            Given.step += 1
            assert len(loss) == len(Given.going)
            if Given.step not in stops:
                return None
            done = torch.tensor([k in stops[Given.step] for k in Given.going])
            Given.going = [k for k in Given.going if k not in stops[Given.step]]
            return done

    together = make_head(pipe)
    with monkeypatch.context() as patch:
        patch.setattr(optimize, "EarlyStopping", Given)
        fit_members(together, labelled_table(pipe), recipe, seed=5, show_progress=False)
    for member, steps in ((0, None), (1, 6), (3, 10)):
        alone = make_head(pipe)
        own = replace(recipe, patience=None, max_steps=steps)
        fit_members(alone, labelled_table(pipe), own, seed=5, members=[member], show_progress=False)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(tensor[member], together.state_dict()[name][member], atol=1e-3, rtol=1e-2)


def test_rare_classes_weigh_more_by_the_power_of_their_share():
    """One step of plain gradient descent is told apart by the weights of its loss."""
    head = make_head(make_pipeline(), blocks=(5,), timesteps=[50])
    table = ActivationTable([FeatureInfo(5, 50, 8, 8, 8)], 1, (16, 16))
    labels = torch.zeros(16, 16, dtype=torch.uint8)
    labels[:8], labels[0], labels[1] = 1, 2, 255  # 128, 96, 16 and 16 pixels
    table.put(0, [torch.randn(1, 8, 8, 8)], labels[None])
    own = _MemberTraining(head, [0], table, Recipe(4, 1e-3, 1, balance=0.5), 1, 0, "cpu")
    share = torch.tensor([128, 96, 16]) / 240
    expected = share**-0.5 / (share**0.5).sum()
    torch.testing.assert_close(own.class_weights, expected[None])
    assert (own.class_weights * share).sum() == pytest.approx(1)
    x, y = torch.randn(1, 4, 8), torch.tensor([[0, 1, 2, 2]])
    with torch.no_grad():
        logits = own.layers(x.mT)  # [1,C,4]
    plain = F.cross_entropy(logits, y, reduction="none") * expected[y]
    torch.testing.assert_close(own.step(x, y), plain.mean(1))


def test_channels_that_never_vary_in_training_do_not_count_when_they_do_later():
    head = make_head(make_pipeline(), blocks=(5,), timesteps=[50])
    table = ActivationTable([FeatureInfo(5, 50, 8, 8, 8)], 1, (16, 16))
    activations = torch.randn(8, 8, 8)
    activations[3] = 2.0
    table.put(0, [activations[None]], torch.randint(3, (1, 16, 16), dtype=torch.uint8))
    fit_members(head, table, QUICK, show_progress=False)
    assert head.layers[0].weight[:, :, 3].eq(0).all() and head.layers[0].weight[:, :, 4].ne(0).any()
    assert head.layers[0].bias.isfinite().all()


def test_training_that_diverges_says_so():
    dataset, pipe = drawn_dataset(), make_pipeline()
    with pytest.raises(FloatingPointError, match="Training diverged"):
        fit_segmentation_head(pipe, dataset, recipe=Recipe(64, float("inf"), 1), num_members=2)
