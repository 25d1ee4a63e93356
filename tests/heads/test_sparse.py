# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import numpy as np
import pytest
import torch

from diffuseseg_diffusers import LabeledImages, UserError, evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.heads.sparse import correct_shares, estimate_shares, resize_strokes, with_strokes

from ..conftest import QUICK, dataset_of, drawn_dataset, make_pipeline
from ..conftest import draw as draw_picture


def strokes_dataset(each: int = 2, count: int = 6) -> LabeledImages:
    """Drawings with so many random labelled pixels of each class."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for seed in range(count):
        image, mask = draw_picture((16, 16), seed)
        kept = np.full_like(mask, 255)
        for label in np.unique(mask):
            where = np.flatnonzero(mask == label)
            kept.flat[rng.permutation(where)[:each]] = label
        images.append(image)
        masks.append(kept)
    return LabeledImages(dataset_of(images, masks), label_names=["sky", "disc", "bar"])


def test_unlabelled_pixels_teach():
    """Two pixels of each class, an eighth of the picture is the rarest: better with the rest of the pixels."""
    pipe, test = make_pipeline(), drawn_dataset(8, seed=50)
    found = {}
    for sparse in (False, True):
        pipe.segmentation_head = fit_segmentation_head(
            pipe, strokes_dataset(), recipe=QUICK, num_members=4, min_label_fraction=0, sparse_labels=sparse
        )
        found[sparse] = evaluate_segmentation(pipe, test)[0]["mean_iou"]
    assert found[True] > found[False] + 0.01 and found[True] > 0.6


def test_a_class_that_no_stroke_has_gets_no_pixel():
    """Added on the page and not drawn yet, it must not explain what the other classes leave open."""
    pipe, own = make_pipeline(), strokes_dataset()
    dataset = LabeledImages(own.dataset, label_names=["sky", "disc", "bar", "moon"])
    pipe.segmentation_head = fit_segmentation_head(
        pipe, dataset, recipe=QUICK, num_members=4, min_label_fraction=0, sparse_labels=True
    )
    test = drawn_dataset(6, seed=50)
    found = pipe.segment([e.image for e in test], output_type="np").masks
    assert max(mask.max() for mask in found) < 3
    assert np.mean([mask == e.mask for mask, e in zip(found, test)]) > 0.6


def test_few_labels_without_sparse_labels_get_a_line(caplog):
    fit_segmentation_head(make_pipeline(), strokes_dataset(), recipe=QUICK, num_members=1, min_label_fraction=0)
    assert "of the pixels have a label; `sparse_labels` learns from the others too." in caplog.text


def test_one_class_is_not_enough():
    image, mask = draw_picture((16, 16), 0)
    dataset = LabeledImages(dataset_of([image], [np.where(mask == 1, 1, 255).astype(np.uint8)]))
    with pytest.raises(UserError, match=r"two classes have to be labelled at least, found \[1\]"):
        fit_segmentation_head(make_pipeline(), dataset, recipe=QUICK, sparse_labels=True)


def test_thin_strokes_survive_a_smaller_size():
    mask = np.full((64, 64), 255, np.uint8)
    mask[17, 5:50] = 2
    mask[:, 33] = 1
    small = resize_strokes(mask, (8, 8), 255)
    assert set(np.unique(small)) == {1, 2, 255}
    assert (small[2, [0, 1, 2, 3, 5, 6]] == 2).all() and (small[[0, 1, 3, 4, 5, 6, 7], 4] == 1).all()
    assert (small[[0, 1, 3, 4, 5, 6, 7]][:, :4] == 255).all()


def test_the_size_of_the_model_and_larger_ones_are_nearest_neighbours():
    mask = np.array([[0, 255], [1, 2]], np.uint8)
    assert (resize_strokes(mask, (2, 2), 255) == mask).all()
    assert (resize_strokes(mask, (4, 4), 255) == mask.repeat(2, 0).repeat(2, 1)).all()


def test_labels_of_the_hand_stay():
    dataset = strokes_dataset()
    strokes = with_strokes(dataset, (16, 16))
    assert all((strokes[i].mask == dataset[i].mask).all() for i in range(len(dataset)))
    assert strokes[0].image is not None and len(list(strokes)) == 6


def test_shares_are_those_of_the_pixels_and_none_is_zero():
    """A classifier that takes both classes to be as frequent, on pixels of which one in ten is of the second."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(5000) % 10 == 0
    x = torch.randn(5000, generator=generator) + 2 * truth
    second = torch.sigmoid(2 * x - 2)  # the posterior under equal shares
    probabilities = torch.stack([1 - second, second], 1)
    even = torch.tensor([0.5, 0.5])
    shares = estimate_shares(probabilities, even)
    assert float(shares[1]) == pytest.approx(0.1, abs=0.025) and float(shares.sum()) == pytest.approx(1)
    corrected = correct_shares(probabilities.T[None, :, :, None], even)[0, :, :, 0]
    assert torch.allclose(corrected.sum(0), torch.ones(5000), atol=1e-5)
    exact = torch.sigmoid(2 * x - 2 + (shares[1] / shares[0]).log())
    assert torch.allclose(corrected[1], exact, atol=1e-4)
    assert ((corrected[1] > 0.5) == truth).float().mean() > ((second > 0.5) == truth).float().mean() + 0.02
    never = estimate_shares(torch.tensor([[1.0, 0.0]]).expand(100, 2), even)
    assert 0 < float(never[1]) < 0.03
