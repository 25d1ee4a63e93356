# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch

from diffuseseg_diffusers.datasets.augmentation import IGNORED
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.tuned import places_by_class, tune_unet, window_with_label
from diffuseseg_diffusers.students.unets import new_unet, unet_from_denoiser

from ..conftest import make_unet


def bright_and_dark(number: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with bright squares, and masks of them, a few rows without a label."""
    generator = torch.Generator().manual_seed(0)
    pixels, masks = torch.rand(number, 1, side, side, generator=generator) - 0.9, torch.zeros(number, side, side).long()
    for i in range(number):
        pixels[i, :, 4 * i : 4 * i + 12, 6:18] += 0.8
        masks[i, 4 * i : 4 * i + 12, 6:18] = 1
        masks[i, -4:] = IGNORED
    return pixels.clamp(-1, 1), masks


def test_a_few_steps_on_labels_tell_classes_apart():
    pixels, masks = bright_and_dark(3, 32)
    torch.manual_seed(0)
    shares: list[float] = []
    start = unet_from_denoiser(make_unet(sample_size=8), ["dark", "bright"], size=(32, 32))
    student = tune_unet(start, pixels, masks, steps=25, batch_size=4, on_step=lambda share, _: shares.append(share))
    found = student.logits(pixels / 2 + 0.5).argmax(1)
    known = masks != IGNORED
    assert (found == masks)[known].float().mean() > 0.95 and (masks[known] == 0).float().mean() < 0.85
    assert len(shares) == 25 and shares[-1] == 1 and not student.model.training


def test_the_same_seed_and_steps_give_the_same_bits_whatever_was_drawn_before():
    pixels, masks = bright_and_dark(2, 32)

    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(0)
        student = new_unet(["dark", "bright"], (16, 24), 1)
        torch.rand(seed + 1)
        tuned = tune_unet(student, pixels, masks, steps=2, seed=seed, batch_size=2)
        return torch.cat([p.detach().flatten() for p in tuned.model.parameters()])

    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


def test_crops_lie_in_the_picture_and_hold_a_labelled_pixel():
    mask = torch.full((40, 60), IGNORED)
    mask[0, 0], mask[39, 59], mask[20, 30] = 0, 0, 3
    rng, labelled = np.random.default_rng(0), places_by_class(mask)
    for _ in range(100):
        rows, columns = window_with_label(labelled, (40, 60), (16, 24), rng)
        assert 0 <= rows.start and rows.stop == rows.start + 16 <= 40
        assert 0 <= columns.start and columns.stop == columns.start + 24 <= 60
        assert any(
            rows.start <= y < rows.stop and columns.start <= x < columns.stop for y, x in torch.cat(labelled).tolist()
        )


def test_a_budget_in_seconds_ends_and_nothing_to_learn_from_is_refused():
    pixels, masks = bright_and_dark(2, 32)
    student = new_unet(["dark", "bright"], (32, 32), 1)
    shares: list[float] = []
    tune_unet(student, pixels, masks, seconds=1e-6, batch_size=2, on_step=lambda share, _: shares.append(share))
    assert shares == [1.0]
    with pytest.raises(UserError, match="give one of them"):
        tune_unet(student, pixels, masks)
    with pytest.raises(UserError, match="no labelled pixel"):
        tune_unet(student, pixels, torch.full_like(masks, IGNORED), steps=1)
    with pytest.raises(UserError, match="reads images of 32 x 32"):
        tune_unet(student, pixels[..., :24], masks[..., :24], steps=1)


def test_a_rare_one_of_two_classes_is_seen_in_a_quarter_of_the_crops():
    mask = torch.zeros(100, 100, dtype=torch.long)
    mask[90:, 90:] = 1  # one pixel of a hundred
    rng, labelled = np.random.default_rng(0), places_by_class(mask)
    windows = [window_with_label(labelled, (100, 100), (8, 8), rng) for _ in range(400)]
    assert 0.2 < np.mean([bool((mask[w] == 1).any()) for w in windows]) < 0.4
