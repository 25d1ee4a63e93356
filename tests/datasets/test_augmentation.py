# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.datasets.augmentation import IGNORED, augment

from ..conftest import draw


@given(st.integers(0, 2**31), st.sampled_from([(16, 16), (12, 20)]))
@settings(max_examples=15, deadline=None)
def test_images_and_masks_move_alike(seed, size):
    """Images that show their masks still do after augmentation, but for changes of light."""
    masks = torch.stack([torch.from_numpy(draw(size, i)[1]).long() for i in range(3)])
    images = F.one_hot(masks, 3).movedim(-1, 1).float()  # [N,C,H,W]
    moved, moved_masks = augment(images, masks, torch.Generator().manual_seed(seed))
    assert moved.shape == images.shape and moved_masks.shape == masks.shape
    assert 0 <= moved.min() and moved.max() <= 1
    inside = moved_masks != IGNORED
    assert set(moved_masks.unique().tolist()) <= {0, 1, 2, IGNORED} and inside.float().mean() > 0.4
    assert (moved.argmax(1) == moved_masks)[inside].float().mean() > 0.85  # but for blends at the borders
    again = augment(images, masks, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], moved) and torch.equal(again[1], moved_masks)


def test_a_turn_does_not_shear_images_that_are_not_square():
    """A disc stays as wide as it is high."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(128), indexing="ij")
    disc = (((y - 32) ** 2 + (x - 64) ** 2) < 15**2).long()[None]
    for seed in range(8):
        _, moved = augment(disc[:, None].float(), disc, torch.Generator().manual_seed(seed))
        rows, columns = (moved[0] == 1).nonzero(as_tuple=True)
        assert abs((rows.max() - rows.min()) - (columns.max() - columns.min())) <= 2


def test_each_change_has_its_own_probability_and_none_leaves_but_the_mirror_image():
    torch.manual_seed(0)
    images, masks = torch.rand(1, 1, 16, 24).expand(64, -1, -1, -1), torch.randint(3, (1, 16, 24)).expand(64, -1, -1)
    same, same_masks = augment(images, masks, torch.Generator().manual_seed(3), False, p=0.0)
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    assert torch.equal(same_masks, masks)
    moved, moved_masks = augment(images, masks, torch.Generator().manual_seed(3), False, p=0.3)
    stayed = (moved_masks == masks).flatten(1).all(1)  # four changes of geometry: 0.7⁴ of the images
    lit = (moved - images).abs().flatten(1).amax(1) > 1e-4
    assert 0.1 < stayed.float().mean() < 0.6
    assert 0 < (stayed & lit).sum() and 0 < (stayed & ~lit).sum()  # light changes, or not, where geometry does not
    moved, moved_masks = augment(images, masks, torch.Generator().manual_seed(3), False)
    assert not (moved_masks == masks).flatten(1).all(1).any()
    mirrored = [augment(images, masks, torch.Generator().manual_seed(s), True, p=0.0)[1][0] for s in range(8)]
    assert {torch.equal(m, masks[0]) for m in mirrored} == {True, False}
    assert all(torch.equal(m, masks[0]) or torch.equal(m, masks[0].flip(-1)) for m in mirrored)
