# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffuseseg_diffusers import DecoderFeatureExtractor, DiffuseSegPipeline
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.paper.guided_diffusion import (
    PRESETS,
    Flags,
    convert_checkpoint,
    inspect_checkpoint,
    make_scheduler,
    read_checkpoint,
    unet_config,
)

from ..conftest import run, shared
from .guided_unet import forward, random_state


TINY = Flags(
    image_size=16,
    num_channels=32,
    num_res_blocks=1,
    num_head_channels=16,
    attention_resolutions="8",
    channel_mult="1,2",
    resblock_updown=True,
    learn_sigma=True,
)
TINY_LINE = " ".join(f"--{name} {value}" for name, value in vars(TINY).items())


class GivenNoise(DecoderFeatureExtractor):
    noise: torch.Tensor

    def draw_noise(self, images, generator):
        return self.noise


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


# What the weights become


@pytest.mark.parametrize("name", ["adm_lsun_like", "adm_classcond_cosine", "adm_plain"])
def test_published_activations_are_reproduced_block_by_block(name):
    path = shared(f"reference/{name}.safetensors")
    reference = load_file(path)
    with safe_open(path, "pt") as file:
        given = json.loads(file.metadata()["flags"])
    flags = Flags.parse(" ".join(f"--{k} '{v}'" for k, v in given.items()))
    state = {k.removeprefix("weights."): v for k, v in reference.items() if k.startswith("weights.")}
    unet, scheduler = convert_checkpoint(state, flags)
    assert sum(p.numel() for p in unet.parameters()) == sum(v.numel() for v in state.values())
    t, y = reference["t"], reference.get("y")
    noisy = scheduler.add_noise(reference["x0"], reference["noise"], t)
    assert relative(noisy, reference["x_t"]) < 1e-4
    assert relative(unet(noisy, t, class_labels=y).sample, reference["model_output"]) < 1e-4
    for i in range(len(t)):
        extractor = GivenNoise(unet, scheduler, range(9), [int(t[i])])
        extractor.noise = reference["noise"][i : i + 1]
        features = extractor(reference["x0"][i : i + 1], class_labels=None if y is None else y[i : i + 1])
        for block, activation in enumerate(features.activations):
            assert relative(activation, reference[f"output_blocks.{block}"][i : i + 1]) < 1e-4


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=0, max_size=2),
    st.integers(1, 2),
    st.sampled_from(["16", "8", "16,8", "4"]),
    st.tuples(*[st.booleans()] * 5),
    st.sampled_from([1, 3]),
)
def test_any_model_is_what_the_plain_formulas_say(mult, layers, attention, switches, in_channels):
    class_cond, scale_shift, updown, new_order, learn_sigma = switches
    flags = Flags(
        image_size=16,
        num_channels=32,
        num_res_blocks=layers,
        num_head_channels=16,
        attention_resolutions=attention,
        channel_mult=",".join(map(str, [1, *mult])),
        class_cond=class_cond,
        use_scale_shift_norm=scale_shift,
        resblock_updown=updown,
        use_new_attention_order=new_order,
        learn_sigma=learn_sigma,
    )
    state = random_state(flags, in_channels=in_channels)
    found = inspect_checkpoint(state, 16)
    known = ("num_channels", "class_cond", "learn_sigma", "use_scale_shift_norm", "num_res_blocks", "channel_mult")
    assert [found[k] for k in known] == [getattr(flags, k) for k in known]
    x = torch.randn(2, in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([3, 700]), torch.tensor([1, 4]) if class_cond else None
    output, blocks = forward(state, flags, x, t, y)
    unet, scheduler = convert_checkpoint(state, flags)
    extractor = DecoderFeatureExtractor(unet, scheduler, range(len(blocks)))
    with torch.no_grad(), extractor.reading() as tapped:
        got = unet(x, t, class_labels=y).sample
    assert relative(got, output) < 1e-4
    for block, wanted in enumerate(blocks):
        assert relative(tapped[block], wanted) < 1e-4


def test_head_counts_do_where_they_give_one_width_and_are_refused_where_not():
    even = replace(TINY, num_head_channels=-1, num_heads=2, attention_resolutions="8")
    state = random_state(even)
    output, _ = forward(state, even, torch.ones(1, 3, 16, 16), torch.tensor([9]))
    got = convert_checkpoint(state, even)[0](torch.ones(1, 3, 16, 16), 9).sample
    assert relative(got, output) < 1e-4
    published = "--image_size 128 --num_channels 256 --num_heads 4 --attention_resolutions 32,16,8 --class_cond True"
    with pytest.raises(ValueError, match="heads have 128, 192, 256 channels from layer to layer, but UNet2DModel"):
        unet_config(Flags.parse(published))
    with pytest.raises(ValueError, match="begins with 0.5: the first level has 128 channels"):
        unet_config(replace(PRESETS["imagenet_256"], image_size=512))


def test_presets_are_the_published_models():
    with torch.device("meta"):
        sizes = {name: sum(p.numel() for p in unet_from(flags).parameters()) / 1e6 for name, flags in PRESETS.items()}
    assert sizes["lsun_256"] == pytest.approx(552.8, abs=0.05) and sizes["ffhq_256"] == sizes["lsun_256"]
    assert sizes["imagenet_64"] == pytest.approx(295.9, abs=0.1)
    assert sizes["imagenet_256"] == pytest.approx(sizes["imagenet_256_uncond"] + 1.024, abs=0.01)


def unet_from(flags):
    from diffusers import UNet2DModel

    return UNet2DModel(**unet_config(flags))


def test_the_diffusion_process_is_that_of_the_flags():
    linear, cosine = make_scheduler(TINY), make_scheduler(replace(TINY, noise_schedule="cosine", learn_sigma=False))
    np.testing.assert_allclose(linear.betas.numpy(), np.linspace(1e-4, 0.02, 1000), rtol=1e-5)
    at = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    betas = np.minimum(1 - np.cos(at[1:]) ** 2 / np.cos(at[:-1]) ** 2, 0.999)
    np.testing.assert_allclose(cosine.betas.numpy(), betas, rtol=1e-3, atol=1e-6)
    assert (linear.config.variance_type, cosine.config.variance_type) == ("learned_range", "fixed_large")
    few = make_scheduler(replace(TINY, diffusion_steps=250, predict_xstart=True))
    np.testing.assert_allclose(few.betas.numpy(), np.linspace(4e-4, 0.08, 250), rtol=1e-5)
    assert few.config.prediction_type == "sample"
    with pytest.raises(ValueError, match="linear or cosine, got sqrt"):
        make_scheduler(replace(TINY, noise_schedule="sqrt"))


def test_a_converted_model_generates_with_its_variance_and_without():
    unet, scheduler = convert_checkpoint(random_state(TINY), TINY)
    pipe = DiffuseSegPipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def drawn(steps):
        return pipe(1, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt").images

    learned = drawn(4)
    scheduler.register_to_config(variance_type="fixed_large")
    fixed = drawn(4)
    assert learned.isfinite().all() and not torch.equal(learned, fixed)
    for other in (DDIMScheduler, DPMSolverMultistepScheduler):
        pipe.scheduler = other.from_config(make_scheduler(TINY).config)
        assert drawn(4).shape == (1, 3, 16, 16) and drawn(4).isfinite().all()


def test_a_step_takes_the_learned_variance_between_its_two_bounds():
    scheduler, t = make_scheduler(TINY), 300
    generator = torch.Generator().manual_seed(0)
    x, prediction = 0.5 * torch.randn(1, 3, 4, 4, generator=generator), torch.randn(1, 6, 4, 4, generator=generator)
    got = scheduler.step(prediction, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)
    eps, v = prediction.double().chunk(2, 1)
    start = ((x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()).clamp(-1, 1)
    mean = (bar[t - 1].sqrt() * betas[t] * start + (1 - betas[t]).sqrt() * (1 - bar[t - 1]) * x) / (1 - bar[t])
    least = betas[t] * (1 - bar[t - 1]) / (1 - bar[t])
    variance = ((v + 1) / 2 * betas[t].log() + (1 - v) / 2 * least.log()).exp()  # Dhariwal and Nichol, section 2
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(got.double(), mean + variance.sqrt() * noise, atol=1e-4, rtol=1e-4)


def test_half_precision_stays_bit_for_bit_and_what_it_cannot_hold_is_said():
    state = {name: tensor.half() for name, tensor in random_state(TINY).items()}
    unet, _ = convert_checkpoint(state, TINY, torch.float16)
    assert torch.equal(unet.conv_in.weight, state["input_blocks.0.0.weight"]) and unet.dtype == torch.float16
    assert convert_checkpoint(state, TINY)[0].dtype == torch.float32
    state = random_state(TINY)
    state["time_embed.0.bias"][0] = 1e6
    with pytest.raises(ValueError, match="time_embed.0.bias holds 1e[+]06, which is too large for torch.float16"):
        convert_checkpoint(state, TINY, torch.float16)


# What does not fit


@pytest.mark.parametrize(
    "change, flag",
    [
        ({"num_channels": 64}, r"--num_channels \(64, but 32 in the checkpoint\)"),
        ({"class_cond": True}, r"--class_cond \(True, but False in the checkpoint\)"),
        ({"learn_sigma": False}, r"out\.2\.weight has the shape \[6, 32, 3, 3\] .* \[3, 32, 3, 3\].*--learn_sigma"),
        ({"use_scale_shift_norm": False}, r"\[64, 128\] in the checkpoint and \[32, 128\].*--use_scale_shift_norm"),
        ({"resblock_updown": False}, r"is not in the checkpoint.*--resblock_updown \(False"),
        ({"num_res_blocks": 2}, r"--num_res_blocks \(2, but 1 in the checkpoint\)"),
        ({"channel_mult": "1,3"}, r"\[64\] in the checkpoint and \[96\].*--channel_mult \(1,3, but 1,2 in"),
        ({"channel_mult": "1,2,2"}, r"--channel_mult \(1,2,2, but 1,2 in the checkpoint\)"),
        ({"attention_resolutions": "16"}, r"--attention_resolutions \(16, but 8 in the checkpoint\)"),
    ],
)
def test_flags_that_contradict_the_checkpoint_are_named_with_both_shapes(change, flag):
    state = random_state(TINY)
    with pytest.raises(ValueError, match=f"contradicts the flags: .*{flag}") as error:
        convert_checkpoint(state, replace(TINY, **change))
    assert str(error.value).count("but") == len(change)  # no other flag is suspected


def test_tensors_left_over_or_missing_are_named():
    state = random_state(TINY)
    with pytest.raises(ValueError, match="extra.weight has the shape .* is no part of a model with these flags"):
        convert_checkpoint({**state, "extra.weight": torch.zeros(2)}, TINY)
    state.pop("middle_block.1.qkv.bias")
    with pytest.raises(ValueError, match="middle_block.1.qkv.bias is not in the checkpoint"):
        convert_checkpoint(state, TINY)


def test_models_of_another_kind_are_named():
    state = random_state(TINY)
    with pytest.raises(ValueError, match="is a super-resolution model: it takes 6 channels"):
        convert_checkpoint({**state, "input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}, TINY)
    with pytest.raises(ValueError, match="is a classifier"):
        convert_checkpoint({k: v for k, v in state.items() if not k.startswith("output_blocks")}, TINY)
    with pytest.raises(ValueError, match="is no U-Net of guided-diffusion"):
        convert_checkpoint({"weight": torch.zeros(1)}, TINY)


@pytest.mark.parametrize(
    "text, said",
    [
        ("--image_sise 64", "--image_sise is no flag of guided-diffusion"),
        ("--image_size", "--image_size has no value"),
        ("--image_size big", "--image_size is a number, got big"),
        ("--class_cond maybe", "--class_cond is True or False, got maybe"),
        ("--image_size '64", "The flags cannot be read: No closing quotation"),
        ("--channel_mult 1,two", "--channel_mult is positive numbers with commas between them, got 1,two"),
        ("--attention_resolutions 0", "--attention_resolutions is positive numbers"),
    ],
)
def test_flags_that_cannot_be_read_are_named(text, said):
    with pytest.raises(UserError, match=said):
        _ = Flags.parse(text).attention_levels


def test_flags_are_read_as_the_scripts_read_them():
    flags = Flags.parse("--image_size=64 --channel_mult 1,2 --class_cond True --use_fp16 True --num_heads_upsample -1")
    assert flags == Flags(image_size=64, channel_mult="1,2", class_cond=True)
    with pytest.raises(ValueError, match="For images of 48 pixels, --channel_mult has no default"):
        unet_config(Flags(image_size=48))


# Files


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/this-must-not-run",)


def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(tmp_path):
    path = tmp_path / "evil.pt"
    torch.save({"weight": Payload()}, path)
    with pytest.raises(ValueError, match="would run code from the file; it is refused"):
        read_checkpoint(path)
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ValueError, match="nothing of it was run"):
        read_checkpoint(path)
    assert not os.path.exists("/tmp/this-must-not-run")


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        read_checkpoint(tmp_path / "none.pt")
    for name, content in (("empty.pt", b""), ("text.pt", b"<html>404</html>"), ("cut.safetensors", b"\x10")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="checkpoint"):
            read_checkpoint(tmp_path / name)
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(ValueError, match="is no state dict of tensors .* it holds state, param_groups"):
        read_checkpoint(tmp_path / "optimizer.pt")
    torch.save({"a": torch.ones(9999)}, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:20000])
    with pytest.raises(ValueError, match="checkpoint"):
        read_checkpoint(tmp_path / "cut.pt")


def test_files_of_every_kind_are_read_alike(tmp_path):
    state = random_state(TINY)
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "new.safetensors")
    for name in ("new.pt", "old.pt", "new.safetensors"):
        read = read_checkpoint(tmp_path / name)
        assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)


def test_the_command_leaves_a_plain_pipeline_or_one_sentence(tmp_path):
    torch.save(random_state(TINY), tmp_path / "tiny.pt")
    convert = ("diffuseseg", "convert", tmp_path / "tiny.pt", "--flags", TINY_LINE)
    said = run(*convert, "--dtype", "float16", "--output_dir", tmp_path / "out")
    assert "million parameters, float16" in said.stdout
    pipe = DDPMPipeline.from_pretrained(tmp_path / "out")
    assert pipe.unet.config.attention_head_dim == 16 and pipe.scheduler.config.variance_type == "learned_range"
    assert DiffuseSegPipeline.from_pretrained(tmp_path / "out").segmentation_head is None
    said = run(*convert, "--output_dir", tmp_path / "out", expect=1)
    assert "exists and is kept" in said.stderr
    said = run(
        "diffuseseg", "convert", tmp_path / "tiny.pt", "--preset", "lsun_256", "--output_dir", tmp_path / "b", expect=1
    )
    assert "--num_channels (256, but 32 in the checkpoint)" in said.stderr and said.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()
