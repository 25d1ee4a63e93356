# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffuseseg_diffusers import (
    Classes,
    DiffuseSegPipeline,
    LabeledImages,
    PixelClassifierEnsemble,
    fit_head,
    fit_segmentation_head,
    recipe_extractor,
)
from diffuseseg_diffusers.features import base
from diffuseseg_diffusers.features.filters import SIGMAS, filter_bank
from diffuseseg_diffusers.heads.ensemble import CLEAN_FORMAT
from diffuseseg_diffusers.heads.extraction import extract_activations, labeled_examples
from diffuseseg_diffusers.heads.recipes import RECIPES
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import QUICK, dataset_of, draw, drawn_dataset, make_pipeline


def test_the_fast_recipe_folds_its_standardisation_into_the_first_layer():
    pipe = make_pipeline()
    dataset = drawn_dataset()
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=3)
    masks = pipe.segment([dataset[i].image for i in range(4)], output_type="np").masks
    right = np.mean([(m == dataset[i].mask).mean() for i, m in enumerate(masks)])
    assert right > 0.9  # raw activations go in, so the means and scales must be in the weights


def test_members_are_as_many_as_the_recipe_says_unless_a_number_is_given():
    recipe, data = replace(QUICK, max_steps=2, num_members=3), drawn_dataset(2)
    for given, expected in (({}, 3), ({"num_members": 2}, 2)):
        head = fit_segmentation_head(make_pipeline(), data, recipe=recipe, **given)
        assert head.config.num_members == len(head.layers[0].weight) == expected
    assert {name: recipe.num_members for name, recipe in RECIPES.items()} == {"default": 4, "paper": 10, "fast": 10}


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


def test_a_class_without_pixels_is_named_in_a_warning(caplog):
    pipe = make_pipeline()
    dataset = drawn_dataset(label_names=["sky", "disc", "bar", "unicorn"])
    logger = logging.getLogger("diffusers")
    logger.propagate, before = True, logger.propagate
    logging.getLogger("diffuseseg_diffusers.heads.fit").propagate = True
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


@pytest.mark.parametrize(
    "name, flips", [("upright", True), ("left eye", False), ("Right_lung", False), ("l_ear", False)]
)
def test_nothing_is_mirrored_where_a_class_is_named_after_its_side(name, flips):
    pipe, dataset = make_pipeline(), drawn_dataset(label_names=["sky", name, "bar"])
    recipe = replace(QUICK, max_steps=2, flip=True, mirror=True)
    assert fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=1).config.flip == flips
    assert not fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=1, flip=False).config.flip
    assert fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=1, flip=True).config.flip


@pytest.mark.parametrize("augmented, count, images", [(0, 4, 4), (8, 4, 8), (20, 4, 20), (8, 5, 10), (4, 4, 8)])
def test_copies_make_up_the_number_that_the_recipe_asks_for(augmented, count, images):
    pipe, seen = make_pipeline(), []
    hook = pipe.unet.conv_in.register_forward_hook(lambda m, a, o: seen.append(len(o)))
    recipe = replace(QUICK, max_steps=2, augmented_images=augmented, timesteps=(50,))
    fit_segmentation_head(pipe, drawn_dataset(count=count), recipe=recipe, num_members=1)
    hook.remove()
    assert sum(seen) == images


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


# Filters of the image, beside activations or alone


FILTERING = replace(QUICK, inputs=("activations", "filters"), flip=True, mirror=True, voting="soft", timesteps=(50,))


def test_members_that_read_different_inputs_are_those_of_heads_that_read_one_and_weigh_the_others_zero(tmp_path):
    pipe, dataset = make_pipeline(), drawn_dataset()
    head = fit_segmentation_head(pipe, dataset, recipe=FILTERING, num_members=4)
    filters = head.channels[-1]
    assert (head.config.filters, filters, head.config.format_version) == (list(SIGMAS), 1 + 8 * len(SIGMAS), 6)
    weight = head.layers[0].weight
    for kind, start, unread in (
        ("activations", 0, weight[::2, :, -filters:]),
        ("filters", 1, weight[1::2, :, :-filters]),
    ):
        assert not unread.any()
        alone = fit_segmentation_head(pipe, dataset, recipe=replace(FILTERING, inputs=(kind,)), num_members=4)
        own = slice(None, -filters) if kind == "activations" else slice(-filters, None)
        same = {"atol": 1e-4, "rtol": 1e-3}
        torch.testing.assert_close(weight[start::2, :, own], alone.layers[0].weight[start::2], **same)
        torch.testing.assert_close(head.layers[6].weight[start::2], alone.layers[6].weight[start::2], **same)
    pipe.segmentation_head = head
    pipe.save_pretrained(tmp_path)
    again = DiffuseSegPipeline.from_pretrained(tmp_path)
    images = [dataset[i].image for i in range(4)]
    masks = pipe.segment(images, output_type="np").masks
    assert all(np.array_equal(a, b) for a, b in zip(masks, again.segment(images, output_type="np").masks))
    assert np.mean([(m == dataset[i].mask).mean() for i, m in enumerate(masks)]) > 0.9


def test_a_head_on_filters_alone_does_not_run_the_model_and_sees_no_image_twice(monkeypatch):
    pipe, dataset, passes = make_pipeline(), drawn_dataset(), []
    hook = pipe.unet.conv_in.register_forward_hook(lambda m, a, o: passes.append(len(o)))
    head = fit_segmentation_head(pipe, dataset, recipe=replace(FILTERING, inputs=("filters",)), num_members=2)
    assert (list(head.config.blocks), list(head.config.timesteps), head.config.member_inputs) == ([], [], None)
    pipe.segmentation_head = head
    seen = []
    monkeypatch.setattr(base, "filter_bank", lambda images, s: seen.append(len(images)) or filter_bank(images, s))
    masks = pipe.segment([dataset[i].image for i in range(4)], output_type="np").masks
    hook.remove()
    assert passes == [] and seen == [4]
    assert np.mean([(m == dataset[i].mask).mean() for i, m in enumerate(masks)]) > 0.9


def test_heads_on_clean_images_say_so_and_are_saved_and_used_so(tmp_path):
    pipe, dataset, recipe = make_pipeline(), drawn_dataset(3), replace(QUICK, clean=True, flip=True)
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=2)
    config = pipe.segmentation_head.config
    assert (config.clean, config.flip, config.format_version) == (True, False, CLEAN_FORMAT)
    pipe.save_pretrained(tmp_path)
    again = DiffuseSegPipeline.from_pretrained(tmp_path)
    assert again.head_extractor().clean
    with pytest.raises(ValueError, match="`clean` is true or false, got 'no'"):
        PixelClassifierEnsemble(**{**config, "clean": "no"})
    one, other = (p.segment(dataset[0].image, output_type="np").masks for p in (pipe, again))
    assert np.array_equal(one, other)
    with pytest.raises(ValueError, match="Masks while sampling are read off noisy images"):
        pipe(1, num_inference_steps=2, masks_while_sampling=True)
    given = dict(recipe=recipe, num_members=2)
    assert fit_segmentation_head(pipe, dataset, **given, share_noise=False).config.clean is False
    assert fit_segmentation_head(pipe, dataset, **given, clean=False).config.clean is False
    assert fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2, clean=True).config.clean is True


def test_masks_while_sampling_read_filters_of_the_sample():
    pipe = make_pipeline()
    pipe.segmentation_head = fit_segmentation_head(pipe, drawn_dataset(), recipe=FILTERING, num_members=2)
    output = pipe(2, num_inference_steps=5, output_type="np", masks_while_sampling=True)
    assert output.masks.shape == (2, 16, 16)


def test_a_table_without_filters_is_refused_by_members_that_read_them():
    extractor, dataset = make_pipeline().features([1], [50]), drawn_dataset(2)
    table = extract_activations(extractor, dataset, show_progress=False)
    with pytest.raises(UserError, match="to read filters, but none were extracted"):
        fit_head(table, extractor, Classes.of(dataset), FILTERING)


# On a table of activations


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def counted_passes(pipe, passes):
    return pipe.unet.conv_in.register_forward_hook(lambda m, a, o: passes.append(len(o)))


def test_a_head_is_fitted_on_a_table_as_on_the_images_and_the_table_stays_as_it_was():
    pipe, dataset = make_pipeline(), drawn_dataset()
    recipe = replace(QUICK, max_steps=10)
    extractor = recipe_extractor(pipe, recipe)
    table = extract_activations(extractor, dataset, 20 / 256**2, show_progress=False)
    before = {resolution: rows.clone() for resolution, rows in table.tables.items()}
    heads = [fit_head(table, extractor, Classes.of(dataset), recipe, num_members=2) for _ in range(2)]
    assert same(*heads) and same(heads[0], fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=2))
    assert all(torch.equal(rows, before[resolution]) for resolution, rows in table.tables.items())
    assert not table.standardized


def test_images_are_appended_and_labels_replaced_without_extracting_anew():
    pipe, dataset = make_pipeline(), drawn_dataset(5)
    recipe = replace(QUICK, max_steps=10, augmented_images=10)
    extractor = recipe_extractor(pipe, recipe)
    views = dict(augmented_views=1, flip=True, show_progress=False)
    whole = extract_activations(extractor, dataset, **views)
    passes = []
    hook = counted_passes(pipe, passes)
    table = extract_activations(extractor, dataset.select(range(3)), **views)
    first = fit_head(table, extractor, Classes.of(dataset), recipe, num_members=2)
    table.append(extract_activations(extractor, dataset.select(range(3, 5)), **views))
    steps = len(extractor.timesteps)
    assert len(table.labels) == 10 and sum(passes) == 10 * steps
    assert torch.equal(table.labels[:6], whole.labels[:6])
    more = fit_head(table, extractor, Classes.of(dataset), recipe, num_members=2)
    assert not same(first, more)

    # Other labels of the same images, augmented as the activations were.
    coarser = Classes(2, ["sky", "thing"])
    masks = [np.minimum(dataset[i].mask, 1) for i in range(5)]
    renamed = LabeledImages(
        dataset_of([np.asarray(dataset[i].image) for i in range(5)], masks), label_names=coarser.label_names
    )
    examples = labeled_examples(renamed, extractor, augmented_views=1, flip=True)
    whole.labels = torch.stack([labels for _, labels in examples])
    again = fit_head(whole, extractor, coarser, recipe, num_members=2)
    hook.remove()
    assert again.config.num_classes == 2 and sum(passes) == 10 * steps, "no image went through the U-Net again"
    fresh = extract_activations(extractor, renamed, **views)
    assert torch.equal(fresh.labels, whole.labels)
    assert same(again, fit_head(fresh, extractor, coarser, recipe, num_members=2))


def test_tables_that_do_not_fit_and_labels_that_are_no_classes_are_refused():
    pipe, dataset = make_pipeline(), drawn_dataset(2)
    extractor = recipe_extractor(pipe, QUICK)
    table = extract_activations(extractor, dataset, show_progress=False)
    with pytest.raises(UserError, match="not of the same blocks"):
        table.append(extract_activations(extractor.choose([1]), dataset, show_progress=False))
    with pytest.raises(UserError, match=r"The table has labels \[2\], but the classes are 0 to 1"):
        fit_head(table, extractor, Classes(2), QUICK)
    table.standardize()
    with pytest.raises(UserError, match="standardised takes no more images"):
        table.append(extract_activations(extractor, dataset, show_progress=False))
