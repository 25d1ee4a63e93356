# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from diffuseseg_diffusers import LabeledImages, fit_segmentation_head
from diffuseseg_diffusers.features import DecoderFeatureExtractor, FeatureInfo
from diffuseseg_diffusers.head_training import (
    RECIPES,
    ActivationTable,
    Recipe,
    _MemberTraining,
    default_blocks,
    extract_activations,
    fit_members,
    resize_mask,
)

from .conftest import QUICK, dataset_of, draw, drawn_dataset, make_head, make_pipeline, make_unet


def full_features(activations, size):
    full = [F.interpolate(a.float(), size=size, mode="bilinear", align_corners=False) for a in activations]
    return torch.cat(full, 1).flatten(2).movedim(1, 2).flatten(0, 1)  # [N*H*W,D]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 7)])
def test_gathered_features_are_the_upsampled_and_concatenated_ones(size, dtype, folder, tmp_path):
    resolutions = [(4, 5), (8, 9), size, (4, 5)]
    info = [FeatureInfo(b, 50, 3 + b, h, w) for b, (h, w) in enumerate(resolutions)]
    activations = [torch.randn(2, i.channels, i.height, i.width) for i in info]
    table = ActivationTable(info, 2, size, dtype, tmp_path if folder else None)
    for n in range(2):
        table.put(n, [a[n] for a in activations], torch.zeros(size, dtype=torch.uint8))
    pixels = torch.randperm(2 * size[0] * size[1]).view(2, -1)
    expected = full_features(activations, size)[:, table.channel_order]
    for step, located in zip(pixels, table.locate(pixels)):
        got = table.gather(located, torch.empty(pixels.shape[1], expected.shape[1]))
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(got, expected[step], atol=tolerance * 4, rtol=tolerance)


def test_a_table_on_disk_leaves_no_file_behind(tmp_path):
    table = ActivationTable([FeatureInfo(0, 50, 8, 4, 4)], 3, (8, 8), folder=tmp_path / "new")
    table.put(2, [torch.ones(8, 4, 4)], torch.zeros(8, 8, dtype=torch.uint8))
    assert os.listdir(tmp_path / "new") == []
    assert table.tables[4, 4][32:].eq(1).all()


def test_standardised_channels_have_zero_mean_unit_variance_and_say_how_they_got_it():
    info = [FeatureInfo(0, 50, 5, 8, 8), FeatureInfo(1, 50, 2, 16, 16)]
    activations = [torch.randn(5, 8, 8) * 3 + 7, torch.stack([torch.full((16, 16), 2.0), torch.rand(16, 16)])]
    table = ActivationTable(info, 1, (16, 16))
    table.put(0, activations, torch.zeros(16, 16, dtype=torch.uint8))
    table.standardize()
    for (h, w), a in zip(((8, 8), (16, 16)), activations):
        values = table.tables[h, w].float()
        alive = a.flatten(1).std(1) > 0
        assert values.mean(0).abs().max() < 1e-2
        torch.testing.assert_close(values.std(0, correction=0)[alive], torch.ones(int(alive.sum())), atol=1e-2, rtol=0)
        assert (values[:, ~alive] == 0).all()
    assert table.scale.isinf().tolist() == [False] * 5 + [True, False]  # the constant channel
    torch.testing.assert_close(table.mean[:5], activations[0].mean((1, 2)), atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(table.scale[:5], activations[0].flatten(1).std(1, correction=0), atol=1e-2, rtol=1e-2)


def test_activations_beyond_half_precision_are_refused_with_their_block_and_timestep():
    table = ActivationTable([FeatureInfo(3, 150, 1, 4, 4)], 1, (4, 4))
    with pytest.raises(FloatingPointError, match="block 3 at timestep 150 are too large for half precision"):
        table.put(0, [torch.full((1, 4, 4), 1e5)], torch.zeros(4, 4, dtype=torch.uint8))


def plain_training(head, features, labels, recipe, seed, member):
    """One member the published way: a module of its own on the whole feature matrix, Adam, early stopping."""
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
    steps, best, stale = 0, float("inf"), 0
    for epoch in range(recipe.max_epochs):
        order = pool[torch.randperm(len(pool), generator=generator)]
        for batch in order.split(recipe.batch_size):
            if len(batch) < recipe.batch_size:
                continue  # the odd ones are left out
            loss = F.cross_entropy(net(features[batch]), labels[batch].long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
            if epoch >= recipe.patience_from_epoch:
                stale = 0 if loss.item() < best else stale + 1
                best = min(best, loss.item())
                if stale > recipe.patience:
                    return net.eval(), steps
    return net.eval(), steps


def test_stacked_members_train_as_they_would_alone_each_stopping_on_its_own():
    pipe = make_pipeline()
    dataset = drawn_dataset()
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (1, 3, 5), (50, 150))
    table = extract_activations(extractor, dataset, show_progress=False)
    table.labels[0, :4] = 255  # pixels without a label
    head = make_head(pipe)
    recipe = Recipe(16, 1e-3, max_epochs=8, patience=2, patience_from_epoch=0)
    fit_members(head, table, recipe, seed=5, show_progress=False)

    everything = torch.arange(table.labels.numel())[None]
    features = table.gather(table.locate(everything)[0], torch.empty(everything.numel(), len(table.channel_order)))
    original = torch.empty_like(features)
    original[:, table.channel_order] = features
    stops = set()
    with torch.no_grad():
        ours = head.classify(original.T.expand(4, -1, -1)).transpose(1, 2)  # [K,P,C]
    for k in range(4):
        net, steps = plain_training(head, original, table.labels.view(-1), recipe, 5, k)
        stops.add(steps)
        with torch.no_grad():
            plain = net(original)
        # Adam makes a large step of a gradient that is zero but for rounding, so roundings grow with the steps.
        assert (ours[k] - plain).abs().mean() < 0.02 * plain.abs().mean()
        assert (ours[k].argmax(1) == plain.argmax(1)).float().mean() > 0.995
    assert len(stops) > 1, "the members stopped at different steps"


def test_the_fast_recipe_folds_its_standardisation_into_the_first_layer():
    pipe = make_pipeline()
    dataset = drawn_dataset()
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3)
    masks = pipe.segment([dataset[i].image for i in range(4)], output_type="np").masks
    right = np.mean([(m == dataset[i].mask).mean() for i, m in enumerate(masks)])
    assert right > 0.9  # raw activations go in, so the means and scales must be in the weights


def test_a_member_depends_on_the_seed_and_its_number_alone():
    pipe, dataset = make_pipeline(), drawn_dataset()
    five = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=5)
    three = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3)
    again = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3)
    other = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3, seed=1)
    for name, tensor in three.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
        torch.testing.assert_close(tensor, five.state_dict()[name][:3], atol=1e-4, rtol=1e-3)
    assert not torch.equal(three.layers[0].weight, other.layers[0].weight)
    assert other.config.noise_seed == 1


def test_one_pass_over_the_unet_only_and_none_of_its_weights_change():
    pipe, dataset = make_pipeline(), drawn_dataset()
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    passes = []
    hook = pipe.unet.conv_in.register_forward_hook(lambda m, a, o: passes.append(len(o)))
    fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2, batch_size=3)
    hook.remove()
    assert passes == [9, 3]  # 3 images at 3 timesteps, then the last one
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())


def test_the_config_holds_all_that_is_needed_to_use_the_head():
    pipe, dataset = make_pipeline(), drawn_dataset()
    head = fit_segmentation_head(pipe, dataset, blocks=(3, 1), timesteps=(10, 20), recipe=QUICK, num_members=2)
    config = head.config
    assert list(config.blocks) == [1, 3] and list(config.timesteps) == [10, 20]
    assert list(config.block_channels) == [24, 16] and list(config.image_size) == [16, 16]
    assert (config.num_classes, config.in_channels, config.ignore_index) == (3, 1, 255)
    assert config.label_names == ["sky", "disc", "bar"] and len(config.palette) == 3
    up = fit_segmentation_head(pipe, dataset, up_blocks=(0, 2), recipe=QUICK, num_members=2)
    assert list(up.config.blocks) == [1, 5]
    assert list(fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2).config.blocks) == [1, 3, 5]


def test_labels_of_a_few_pixels_are_ignored_in_proportion_to_the_area():
    pipe = make_pipeline()
    image, mask = draw((16, 16), 0)
    mask[:] = 0
    mask[0, :3] = 1  # 3 of 256 pixels
    mask[8:] = 2
    dataset = LabeledImages(dataset_of([image], [mask]), num_classes=3)
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (1,))
    for fraction, kept in ((0, [0, 1, 2]), (3 / 256, [0, 1, 2]), (3.1 / 256, [0, 2, 255])):
        table = extract_activations(extractor, dataset, fraction, show_progress=False)
        assert table.labels.unique().tolist() == kept


def test_a_class_without_pixels_is_named_in_a_warning(caplog):
    pipe = make_pipeline()
    dataset = drawn_dataset(label_names=["sky", "disc", "bar", "unicorn"])
    logger = logging.getLogger("diffusers")
    logger.propagate, before = True, logger.propagate
    logging.getLogger("diffuseseg_diffusers.head_training").propagate = True
    try:
        with caplog.at_level(logging.WARNING):
            fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2)
    finally:
        logger.propagate = before
    assert 'No labelled pixel was found for class 3 ("unicorn")' in caplog.text


def test_masks_without_any_label_are_refused():
    pipe = make_pipeline()
    image, mask = draw((16, 16), 0)
    dataset = LabeledImages(dataset_of([image], [mask * 0 + 255]), num_classes=2)
    with pytest.raises(ValueError, match="no labelled pixels"):
        fit_segmentation_head(pipe, dataset, recipe=QUICK)


def test_resizing_masks_takes_the_nearest_pixel():
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(resize_mask(mask, (4, 6)), mask.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(resize_mask(mask, (2, 1)), mask[:, 1:2])
    assert resize_mask(mask, (5, 7)).shape == (5, 7)


def test_recipes_are_the_published_one_a_fast_one_and_the_default():
    paper = RECIPES["paper"]
    assert (paper.batch_size, paper.learning_rate, paper.max_epochs, paper.patience) == (64, 1e-3, 100, 50)
    assert paper.patience_from_epoch == 4 and not paper.standardize and not paper.one_cycle
    for recipe in (paper, RECIPES["fast"]):
        assert (recipe.augmented_images, recipe.balance, recipe.flip, recipe.voting) == (0, 0, False, "hard")
        assert recipe.timesteps == (50, 150, 250) and recipe.blocks is None
    assert list(RECIPES) == ["default", "paper", "fast"]


def test_the_recipe_says_which_features_are_read_and_how_the_members_vote():
    pipe, dataset = make_pipeline(layers_per_block=3), drawn_dataset()  # 12 decoder blocks
    quick = replace(RECIPES["default"], max_steps=2, augmented_images=8)
    config = fit_segmentation_head(pipe, dataset, recipe=quick, num_members=2).config
    assert list(config.blocks) == [4, 5, 8, 10] and list(config.timesteps) == [10, 600]
    assert config.flip and config.voting == "soft"
    pipe.scheduler = DDPMScheduler(num_train_timesteps=4000)
    paper = fit_segmentation_head(pipe, dataset, recipe=replace(RECIPES["paper"], max_steps=2), num_members=2).config
    assert list(paper.blocks) == [3, 7, 11] and list(paper.timesteps) == [200, 600, 1000]
    assert not paper.flip and paper.voting == "hard"
    large = make_unet(layers_per_block=5)  # 18 decoder blocks
    assert default_blocks(large, RECIPES["paper"]) == (5, 6, 7, 8, 12)
    assert default_blocks(large, RECIPES["default"]) == (6, 7, 12, 15)


@pytest.mark.parametrize(
    "name, flips", [("upright", True), ("left eye", False), ("Right_lung", False), ("l_ear", False)]
)
def test_nothing_is_mirrored_where_a_class_is_named_after_its_side(name, flips):
    pipe, dataset = make_pipeline(), drawn_dataset(label_names=["sky", name, "bar"])
    recipe = replace(QUICK, max_steps=2, flip=True)
    assert fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=1).config.flip == flips
    assert not fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=1, flip=False).config.flip
    assert fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=1, flip=True).config.flip


def test_copies_follow_their_image_and_do_not_depend_on_who_comes_with_it():
    pipe, dataset = make_pipeline(), drawn_dataset(count=3)
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (3,), (50,))
    many = extract_activations(extractor, dataset, batch_size=4, copies=2, flip=True, show_progress=False)
    alone = extract_activations(extractor, dataset.select([0]), batch_size=1, copies=2, flip=True, show_progress=False)
    plain = extract_activations(extractor, dataset, show_progress=False)
    assert len(many.labels) == 9
    assert torch.equal(many.labels[::3], plain.labels) and torch.equal(many.labels[:3], alone.labels)
    for i in range(3):
        torch.testing.assert_close(many.image(3 * i, [0])[0], plain.image(i, [0])[0], atol=2e-3, rtol=1e-2)
        torch.testing.assert_close(many.image(i, [0])[0], alone.image(i, [0])[0], atol=2e-3, rtol=1e-2)
    assert not torch.equal(many.labels[1], many.labels[2]) and 255 in many.labels


@pytest.mark.parametrize("augmented, count, images", [(0, 4, 4), (8, 4, 8), (20, 4, 20), (8, 5, 10), (4, 4, 8)])
def test_copies_make_up_the_number_that_the_recipe_asks_for(augmented, count, images):
    pipe, seen = make_pipeline(), []
    hook = pipe.unet.conv_in.register_forward_hook(lambda m, a, o: seen.append(len(o)))
    recipe = replace(QUICK, max_steps=2, augmented_images=augmented, timesteps=(50,))
    fit_segmentation_head(pipe, drawn_dataset(count=count), recipe=recipe, num_members=1)
    hook.remove()
    assert sum(seen) == images


def test_rare_classes_weigh_more_by_the_power_of_their_share():
    """One step of plain gradient descent is told apart by the weights of its loss."""
    head = make_head(make_pipeline(), blocks=(5,), timesteps=[50])
    table = ActivationTable([FeatureInfo(5, 50, 8, 8, 8)], 1, (16, 16))
    labels = torch.zeros(16, 16, dtype=torch.uint8)
    labels[:8], labels[0], labels[1] = 1, 2, 255  # 128, 96, 16 and 16 pixels
    table.put(0, [torch.randn(8, 8, 8)], labels)
    training = _MemberTraining(head, [0], table, Recipe(4, 1e-3, 1, balance=0.5), 1, 0, "cpu")
    share = torch.tensor([128, 96, 16]) / 240
    expected = share**-0.5 / (share**0.5).sum()
    torch.testing.assert_close(training.class_weights, expected)
    assert (training.class_weights * share).sum() == pytest.approx(1)
    x, y = torch.randn(1, 4, 8), torch.tensor([[0, 1, 2, 2]])
    with torch.no_grad():
        logits = training.layers(x.mT)  # [1,C,4]
    plain = F.cross_entropy(logits, y, reduction="none") * expected[y]
    torch.testing.assert_close(training.step(x, y), plain.mean(1))


def test_options_that_contradict_each_other_or_do_not_exist_are_refused():
    pipe, dataset = make_pipeline(), drawn_dataset()
    with pytest.raises(ValueError, match="`blocks` or `up_blocks`, not both"):
        fit_segmentation_head(pipe, dataset, blocks=(1,), up_blocks=(1,))
    with pytest.raises(ValueError, match="no recipe 'slow'; there are 'default', 'paper', 'fast'"):
        fit_segmentation_head(pipe, dataset, recipe="slow")
    with pytest.raises(ValueError, match="one member at least, got 0"):
        fit_segmentation_head(pipe, dataset, num_members=0)
    with pytest.raises(ValueError, match="`label_names` has 2 entries for 3 classes"):
        fit_segmentation_head(pipe, dataset, label_names=["a", "b"], recipe=QUICK)
    renamed = fit_segmentation_head(pipe, dataset, label_names=["a", "b", "c"], recipe=QUICK, num_members=2)
    assert renamed.config.label_names == ["a", "b", "c"]


def test_channels_that_never_vary_in_training_do_not_count_when_they_do_later():
    head = make_head(make_pipeline(), blocks=(5,), timesteps=[50])
    table = ActivationTable([FeatureInfo(5, 50, 8, 8, 8)], 1, (16, 16))
    activations = torch.randn(8, 8, 8)
    activations[3] = 2.0
    table.put(0, [activations], torch.randint(3, (16, 16), dtype=torch.uint8))
    fit_members(head, table, QUICK, show_progress=False)
    assert head.layers[0].weight[:, :, 3].eq(0).all() and head.layers[0].weight[:, :, 4].ne(0).any()
    assert head.layers[0].bias.isfinite().all()


def test_training_that_diverges_says_so():
    dataset, pipe = drawn_dataset(), make_pipeline()
    with pytest.raises(FloatingPointError, match="Training diverged"):
        fit_segmentation_head(pipe, dataset, recipe=Recipe(64, float("inf"), 1), num_members=2)
