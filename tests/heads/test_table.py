# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import os

import pytest
import torch
import torch.nn.functional as F

from diffuseseg_diffusers.features.base import FeatureInfo
from diffuseseg_diffusers.heads.table import ActivationTable


def full_features(activations, size):
    full = [F.interpolate(a.float(), size=size, mode="bilinear", align_corners=False) for a in activations]
    return torch.cat(full, 1).flatten(2).movedim(1, 2).flatten(0, 1)  # [N*H*W,D]


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (13, 7)])
def test_gathered_features_are_the_upsampled_and_concatenated_ones(size, dtype, folder, tmp_path):
    resolutions = [(4, 5), (8, 9), size, (4, 5)]
    info = [FeatureInfo(b, 50, 3 + b, h, w) for b, (h, w) in enumerate(resolutions)]
    activations = [torch.randn(3, i.channels, i.height, i.width) for i in info]
    table = ActivationTable(info, 3, size, dtype, tmp_path if folder else None)
    for n in (slice(0, 2), slice(2, 3)):
        table.put(n.start, [a[n] for a in activations], torch.zeros(n.stop - n.start, *size, dtype=torch.uint8))
    pixels = torch.randperm(3 * size[0] * size[1]).view(3, -1)
    expected = full_features(activations, size)[:, table.channel_order]
    for step, located in zip(pixels, table.locate(pixels)):
        got = table.gather(located, torch.empty(pixels.shape[1], expected.shape[1]))
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(got, expected[step], atol=tolerance * 4, rtol=tolerance)


def test_a_table_lies_on_the_device_it_is_made_for_unless_it_is_in_a_file(tmp_path):
    info, device = [FeatureInfo(0, 50, 8, 4, 4), FeatureInfo(1, 50, 2, 8, 8)], torch.device("meta")
    table = ActivationTable(info, 3, (8, 8), device=device)
    axes = [tensor for pairs in table.axes.values() for pair in pairs for tensor in pair]
    assert {tensor.device for tensor in (*table.tables.values(), *axes, table.labels)} == {device} == {table.device}
    assert ActivationTable(info, 3, (8, 8), folder=tmp_path, device=device).device.type == "cpu"


def test_a_table_on_disk_leaves_no_file_behind(tmp_path):
    table = ActivationTable([FeatureInfo(0, 50, 8, 4, 4)], 3, (8, 8), folder=tmp_path / "new")
    table.put(2, [torch.ones(1, 8, 4, 4)], torch.zeros(1, 8, 8, dtype=torch.uint8))
    assert os.listdir(tmp_path / "new") == []
    assert table.tables[4, 4][32:].eq(1).all()


def test_standardised_channels_have_zero_mean_unit_variance_and_say_how_they_got_it():
    info = [FeatureInfo(0, 50, 5, 8, 8), FeatureInfo(1, 50, 2, 16, 16)]
    activations = [torch.randn(5, 8, 8) * 3 + 7, torch.stack([torch.full((16, 16), 2.0), torch.rand(16, 16)])]
    table = ActivationTable(info, 1, (16, 16))
    table.put(0, [a[None] for a in activations], torch.zeros(1, 16, 16, dtype=torch.uint8))
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
        table.put(0, [torch.full((1, 1, 4, 4), 1e5)], torch.zeros(1, 4, 4, dtype=torch.uint8))
