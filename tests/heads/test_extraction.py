# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import torch

from diffuseseg_diffusers import LabeledImages
from diffuseseg_diffusers.features.pixel_unet import DecoderFeatureExtractor
from diffuseseg_diffusers.heads.extraction import extract_activations, images_per_pass, resize_mask

from ..conftest import dataset_of, draw, drawn_dataset, make_pipeline


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


def test_resizing_masks_takes_the_nearest_pixel():
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(resize_mask(mask, (4, 6)), mask.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(resize_mask(mask, (2, 1)), mask[:, 1:2])
    assert resize_mask(mask, (5, 7)).shape == (5, 7)


def test_augmented_views_follow_their_image_and_do_not_depend_on_who_comes_with_it():
    pipe, dataset = make_pipeline(), drawn_dataset(count=3)
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (3,), (50,))
    views = dict(augmented_views=2, flip=True, show_progress=False)
    many = extract_activations(extractor, dataset, batch_size=4, **views)
    alone = extract_activations(extractor, dataset.select([0]), batch_size=1, **views)
    plain = extract_activations(extractor, dataset, show_progress=False)
    assert len(many.labels) == 9
    assert torch.equal(many.labels[::3], plain.labels) and torch.equal(many.labels[:3], alone.labels)
    for i in range(3):
        torch.testing.assert_close(many.image(3 * i, [0])[0], plain.image(i, [0])[0], atol=2e-3, rtol=1e-2)
        torch.testing.assert_close(many.image(i, [0])[0], alone.image(i, [0])[0], atol=2e-3, rtol=1e-2)
    assert not torch.equal(many.labels[1], many.labels[2]) and 255 in many.labels


def test_small_images_go_through_the_model_together_unless_a_number_is_given():
    pipe, dataset, seen = make_pipeline(), drawn_dataset(count=6), []
    for size, timesteps, number in (
        ((64, 64), [50], 16),
        ((64, 64), [50, 90], 8),
        ((96, 128), [50], 5),
        ((512, 512), [50], 4),
    ):
        assert images_per_pass(pipe.features([1], timesteps, size=size)) == number
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (1,), (50,))
    together = extract_activations(extractor, dataset, show_progress=False)
    given = extract_activations(extractor, dataset, batch_size=4, show_progress=False)
    assert seen == [6, 4, 2]
    for resolution, table in together.tables.items():
        torch.testing.assert_close(table, given.tables[resolution], atol=2e-3, rtol=2e-3)
