# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from diffuseseg_diffusers import load_pipeline
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.choosing import check_reads, new_student, student_size
from diffuseseg_diffusers.students.networks import DEFAULT_STUDENT
from diffuseseg_diffusers.students.objective import parameter_groups
from diffuseseg_diffusers.students.student import StudentSegmenter
from diffuseseg_diffusers.students.unets import UNetStudent, new_unet, unet_from_denoiser

from ..conftest import draw, make_unet
from .test_networks import NAMES, write_config


def test_the_small_u_net_has_about_two_million_weights_and_an_output_for_each_class():
    student = new_unet(NAMES, (32, 40), 1)
    assert 1.8e6 < sum(p.numel() for p in student.model.parameters()) < 2.6e6
    pixels = torch.rand(2, 1, 32, 40)
    logits = student.logits(pixels)
    assert logits.shape == (2, 3, 32, 40) and student.image_size == (32, 40) and student.in_channels == 1
    # The plain formula: a U-Net of diffusers on pixels in [-1, 1].
    torch.testing.assert_close(logits, student.model(pixels * 2 - 1, 0).sample)


def test_uncertainty_is_the_entropy_of_the_probabilities():
    torch.manual_seed(0)
    student = new_unet(NAMES, (16, 16), 3)
    found = student.segment(draw((20, 30), 1)[0], output_type="pt", return_probabilities=True)
    p = found.probabilities[0]
    torch.testing.assert_close(found.uncertainty[0], -torch.xlogy(p, p).sum(0), atol=1e-5, rtol=1e-4)
    assert 0 <= found.uncertainty[0].min() and found.uncertainty[0].max() <= np.log(3) + 1e-6


def test_a_denoiser_keeps_all_weights_but_those_of_the_output():
    unet = make_unet(sample_size=16)
    student = unet_from_denoiser(unet, NAMES, timestep=10)
    ours, theirs = student.model.state_dict(), unet.state_dict()
    changed = {name for name in theirs if ours[name].shape != theirs[name].shape or (ours[name] != theirs[name]).any()}
    assert changed == {"conv_out.weight", "conv_out.bias"} and unet.config.out_channels == 1
    assert student.model.config.out_channels == 3 and student.timestep == 10
    with pytest.raises(UserError, match="no `sample_size`"):
        unet_from_denoiser(make_unet(sample_size=None), NAMES)


def test_a_saved_u_net_is_one_of_diffusers_and_loads_as_a_student(tmp_path):
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    student = unet_from_denoiser(make_unet(sample_size=16), NAMES, 7, palette)
    student.save_pretrained(tmp_path / "student")
    assert UNet2DModel.from_pretrained(tmp_path / "student").config.out_channels == 3
    image = draw((20, 30), 1)[0]
    expected = student.segment(image, output_type="np")
    for load in (UNetStudent.from_pretrained, lambda name: load_pipeline(name, device="cpu", dtype="float32")):
        loaded = load(tmp_path / "student")
        found = loaded.segment(image, output_type="np")
        assert type(loaded) is UNetStudent and loaded.label_names == NAMES and loaded.palette == palette
        assert loaded.timestep == 7 and np.array_equal(found.masks[0], expected.masks[0])
    assert UNetStudent.from_pretrained(tmp_path / "student", dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_u_net_that_is_no_student_or_a_broken_one_is_a_sentence(tmp_path):
    make_unet().save_pretrained(tmp_path / "unet")
    with pytest.raises(UserError, match="holds a U-Net but no student.json"):
        load_pipeline(tmp_path / "unet", device="cpu")
    record = tmp_path / "unet" / "student.json"
    record.write_text(json.dumps({"label_names": NAMES}))
    with pytest.raises(UserError, match="is no record of a student: it lacks timestep"):
        load_pipeline(tmp_path / "unet", device="cpu")
    record.write_text(json.dumps({"label_names": NAMES, "timestep": 0, "palette": None}))
    with pytest.raises(UserError, match="1 outputs for 3 classes"):
        load_pipeline(tmp_path / "unet", device="cpu")
    with pytest.raises(UserError, match="multiples of 8, got 30 x 32; use --resolution 32 32"):
        new_unet(NAMES, (30, 32), 1)


def test_the_network_is_chosen_by_the_size_of_the_images(tmp_path, monkeypatch):
    student, kind = new_student(None, NAMES, (64, 128))
    assert kind == "unet" and isinstance(student, UNetStudent)
    asked = []

    def made(name, *args):
        asked.append(name)
        raise UserError("stop")

    monkeypatch.setattr("diffuseseg_diffusers.students.choosing.make_student", made)
    with pytest.raises(UserError, match="stop"):
        new_student(None, NAMES, (64, 136))
    assert asked == [DEFAULT_STUDENT]


def test_a_pipelines_denoiser_and_a_student_are_trained_on_at_their_own_size(tmp_path):
    DDPMPipeline(make_unet(sample_size=16), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    name = str(tmp_path / "ddpm")
    assert student_size(name, (64, 64)) == (16, 16) and student_size("unet", (64, 45)) == (64, 48)
    student, kind = new_student(name, NAMES, (16, 16), 1)
    assert kind == "denoiser" and torch.equal(student.model.conv_in.weight, make_unet().conv_in.weight)
    assert student_size(None, (30, 30)) == (32, 32) and student_size(None, (300, 30)) == (300, 30)
    scratch, _ = new_student(name, NAMES, (16, 16), 1, from_scratch=True)
    assert not torch.equal(scratch.model.conv_in.weight, student.model.conv_in.weight)
    with pytest.raises(UserError, match="reads images of 16 x 16, not of 32 x 32; leave --resolution"):
        new_student(name, NAMES, (32, 32), 1)
    student.save_pretrained(tmp_path / "student")
    assert student_size(str(tmp_path / "student"), (64, 64)) == (16, 16)
    again, kind = new_student(str(tmp_path / "student"), NAMES, (16, 16), 1)
    assert kind == "denoiser" and torch.equal(again.model.conv_out.weight, student.model.conv_out.weight)
    with pytest.raises(UserError, match="has the classes sky, disc, bar, but the dataset has sky, bar"):
        new_student(str(tmp_path / "student"), ["sky", "bar"], (16, 16), 1)
    transformer, kind = new_student(write_config(tmp_path), NAMES, (16, 16), 1)
    assert kind == "transformers" and isinstance(transformer, StudentSegmenter) and transformer.in_channels == 3


def test_rates_fall_from_the_output_of_a_u_net_to_its_input():
    unet = make_unet()
    groups = parameter_groups(unet, 0.5)
    assert sum(len(g["params"]) for g in groups) == len(list(unet.parameters()))
    shares = {id(p): g["share"] for g in groups for p in g["params"]}
    path = ["conv_out", "up_blocks.2", "up_blocks.1", "up_blocks.0", "mid_block", "down_blocks.2", "down_blocks.1"]
    path += ["down_blocks.0", "conv_in"]
    for depth, prefix in enumerate(path):
        own = {shares[id(p)] for n, p in unet.named_parameters() if n.startswith(prefix)}
        assert own == {0.5**depth}, prefix
    assert [g["share"] for g in parameter_groups(unet, 1.0)] == [1.0]
    with pytest.raises(UserError, match="is for U-Nets of diffusers"):
        parameter_groups(torch.nn.Linear(1, 1), 0.5)


@pytest.mark.parametrize(
    "changed",
    [
        *({"label_names": x} for x in (None, "abc", [1, 2, 3], ["a", "a", "b"])),
        *({"timestep": x} for x in (None, "x", -5)),
        *({"palette": x} for x in (7, "x", [[0, 0, 999]] * 3, [[0, 0, 0]])),
        [],
    ],
)
def test_a_record_that_says_something_else_is_a_sentence(tmp_path, changed):
    new_unet(["a", "b", "c"], (16, 16), 1).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(changed and record | changed))
    with pytest.raises(UserError, match="is no record of a student: it lacks"):
        UNetStudent.from_pretrained(tmp_path)


def test_guided_masks_are_saved_with_it(tmp_path):
    student = new_unet(["a", "b", "c"], (16, 16), 1)
    plain = student.identity()
    student.guided = (1.0, 0.1)
    student.save_pretrained(tmp_path)
    again = UNetStudent.from_pretrained(tmp_path)
    assert again.guided == student.guided
    assert again.identity() == student.identity() != plain
    record = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(record | {"guided": [1e9, 1]}))
    with pytest.raises(UserError, match="cannot be loaded: The widths"):
        UNetStudent.from_pretrained(tmp_path)


@pytest.mark.parametrize("tiling", [5, "tiles", {"tiles": 1}, {"scale": -1}, {"tiles": True, "scale": "1"}])
def test_tiles_that_are_none_are_a_sentence(tmp_path, tiling):
    new_unet(["a", "b", "c"], (16, 16), 1).save_pretrained(tmp_path)
    record = json.loads((tmp_path / "student.json").read_text())
    (tmp_path / "student.json").write_text(json.dumps(record | {"tiling": tiling}))
    with pytest.raises(UserError, match="`tiling` is"):
        UNetStudent.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changed", [{"sample_size": None}, {"sample_size": "x"}, {"block_out_channels": 5}, {"add_attention": True}]
)
def test_a_config_that_does_not_fit_is_a_sentence(tmp_path, changed):
    new_unet(["a", "b", "c"], (16, 16), 1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(UserError, match="cannot be loaded|is no whole student"):
        UNetStudent.from_pretrained(tmp_path)


def test_a_student_that_is_trained_on_keeps_its_colours(tmp_path):
    colors = [[1, 2, 3], [4, 5, 6]]
    new_unet(["a", "b"], (16, 16), 1, colors).save_pretrained(tmp_path)
    assert new_student(str(tmp_path), ["a", "b"], (16, 16), 1)[0].palette == colors


def test_a_student_that_cannot_read_its_size_is_refused_before_its_training():
    check_reads(new_unet(["a", "b"], (16, 24), 1))
    odd = UNet2DModel(
        sample_size=(10, 18),
        in_channels=1,
        out_channels=2,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        add_attention=False,
        norm_num_groups=4,
    )
    with pytest.raises(UserError, match="cannot read images of 10 x 18"):
        check_reads(UNetStudent(odd, ["a", "b"]))
