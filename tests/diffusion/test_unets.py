# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.diffusion.unets import PRESETS, make_unet, preset_config, read_model_config
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import make_unet as make_test_unet


@settings(deadline=None, max_examples=15)
@given(size=st.sampled_from(list(PRESETS)), base_channels=st.integers(4, 160), channels=st.sampled_from([1, 3]))
def test_presets_have_groups_and_heads_that_divide(size, base_channels, channels):
    config = preset_config((size, size), channels, base_channels)
    for width in config["block_out_channels"]:
        assert width % config["norm_num_groups"] == 0 and width % config["attention_head_dim"] == 0
    assert config["norm_num_groups"] == 1 or base_channels >= 4 * config["norm_num_groups"]
    with torch.device("meta"):
        unet = make_unet(config)
    assert unet.config.in_channels == unet.config.out_channels == channels


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 128), (128, 128), (256, 256)])
def test_presets_run(size):
    with torch.device("meta"):  # shapes alone
        unet, x = make_unet(preset_config(size, 1, 8)), torch.zeros(1, 1, *size)
        assert unet(x, torch.tensor(5)).sample.shape == x.shape


def test_the_presets_for_32_and_256_pixels_are_those_of_the_paper():
    with torch.device("meta"):
        sizes = {s: sum(p.numel() for p in make_unet(preset_config((s, s), 3)).parameters()) for s in (32, 256)}
    assert sizes[32] == pytest.approx(35.7e6, rel=0.02) and sizes[256] == pytest.approx(113.7e6, rel=0.02)


def test_configs_that_make_no_unet_are_told():
    with pytest.raises(UserError, match="multiples of 8, got 60 × 64; the nearest is 64 × 64"):
        make_unet(preset_config((60, 64), 1, 8))
    with pytest.raises(UserError, match="20 channels do not divide into 8 groups.*1, 2, 4"):
        make_unet({**preset_config((16, 16), 1, 16), "block_out_channels": [20, 40, 40, 40], "norm_num_groups": 8})
    with pytest.raises(UserError, match="does not take this config"):
        make_unet({"layers": 3})
    with pytest.raises(UserError, match="does not take this config"):
        make_unet({"block_out_channels": 8})
    with pytest.raises(UserError, match="3 channels in, 6 out"):
        make_unet({**preset_config((32, 32), 3, 8), "out_channels": 6})


def test_model_configs_are_read_from_files_and_folders(tmp_path):
    (tmp_path / "a.yaml").write_text("block_out_channels: [8, 16]\nnorm_num_groups: 4\nnorm_eps: 1e-5\n")
    (tmp_path / "a.json").write_text(
        '{"block_out_channels": [8, 16], "norm_num_groups": 4, "norm_eps": 1e-05, "_class_name": "x"}'
    )
    expected = {"block_out_channels": [8, 16], "norm_num_groups": 4, "norm_eps": 1e-5}
    assert read_model_config(tmp_path / "a.yaml") == read_model_config(tmp_path / "a.json") == expected
    unet = make_test_unet()
    unet.save_pretrained(tmp_path / "unet")
    for folder in (tmp_path, tmp_path / "unet"):
        assert tuple(read_model_config(folder)["block_out_channels"]) == unet.config.block_out_channels
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(UserError, match="found list"):
        read_model_config(tmp_path / "list.json")
    for broken in (b"a: [1", b"\x89PNG\r\n\x1a\n\xff"):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(UserError, match="neither JSON nor YAML"):
            read_model_config(tmp_path / "broken")
    with pytest.raises(UserError, match="neither a folder nor a Hub repository"):
        read_model_config(tmp_path / "nothing" / "here")
