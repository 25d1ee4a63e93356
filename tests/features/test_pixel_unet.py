# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from safetensors import safe_open

from diffuseseg_diffusers import DecoderFeatureExtractor, DiffuseSegPipeline
from diffuseseg_diffusers.features.pixel_unet import decoder_taps

from ..conftest import make_unet, shared


UNETS = {
    "grey": dict(),
    "colour, not square": dict(in_channels=3, out_channels=3, sample_size=(16, 24)),
    "no attention": dict(down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3, add_attention=False),
    "attention everywhere, three layers": dict(
        layers_per_block=3, down_block_types=("AttnDownBlock2D",) * 3, up_block_types=("AttnUpBlock2D",) * 3
    ),
    "residual up and down sampling": dict(
        down_block_types=("ResnetDownsampleBlock2D",) * 3,
        up_block_types=("ResnetUpsampleBlock2D",) * 3,
        resnet_time_scale_shift="scale_shift",
    ),
    "skip blocks": dict(
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 32, 32),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
    ),
    "predicts variance": dict(out_channels=2),
    "class labels": dict(num_class_embeds=5),
    "class embedding": dict(class_embed_type="identity"),
    "timestep embedding": dict(class_embed_type="timestep"),
}


def plain_activations(unet, x, timesteps, noise, scheduler, **kwargs):
    """What the published code does: a full pass for each timestep, recording residual layers, attention, upsamplers."""
    layers = unet.config.layers_per_block
    result = {}
    for t in timesteps:
        outputs = {}
        hooks = []
        for level, up in enumerate(unet.up_blocks):
            attentions = list(getattr(up, "attentions", []))
            for layer, resnet in enumerate(up.resnets):
                key = level * (layers + 1) + layer
                modules = [resnet]
                if len(attentions) == len(up.resnets):
                    modules.append(attentions[layer])
                elif attentions and layer == layers:
                    modules.append(attentions[0])
                if layer == layers:
                    modules += list(getattr(up, "upsamplers", None) or [])
                    modules += [m for m in [getattr(up, "resnet_up", None)] if m is not None]
                for module in modules:  # the last one to run wins
                    hooks.append(
                        module.register_forward_hook(
                            lambda m, i, o, to=outputs, key=key: to.__setitem__(key, o.detach())
                        )
                    )
        with torch.no_grad():
            steps = torch.full((len(x),), t)
            unet(scheduler.add_noise(x, noise.expand_as(x), steps), steps, **kwargs)
        for hook in hooks:
            hook.remove()
        for block, output in outputs.items():
            result[t, block] = output
    return result


@pytest.mark.parametrize("name", UNETS)
def test_every_block_is_what_a_full_pass_computes_and_what_feature_info_says(name):
    unet, scheduler = make_unet(**UNETS[name]), DDPMScheduler()
    height, width = (16, 16) if isinstance(unet.config.sample_size, int) else unet.config.sample_size
    x = torch.rand(2, unet.config.in_channels, height, width) * 2 - 1
    kwargs = {}
    if unet.class_embedding is not None:
        labels = torch.randn(2, 32) if name == "class embedding" else torch.tensor([3, 1])
        kwargs = {"class_labels": labels}
    blocks, timesteps = range(len(decoder_taps(unet))), (250, 50)
    extractor = DecoderFeatureExtractor(unet, scheduler, blocks, timesteps)
    features = extractor(x, **kwargs)
    noise = torch.randn(1, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    expected = plain_activations(unet, x, timesteps, noise, scheduler, **kwargs)

    assert features.info == extractor.feature_info(height, width)
    assert [(i.timestep, i.block) for i in features.info] == [(t, b) for t in timesteps for b in blocks]
    for info, activation in zip(features.info, features.activations):
        assert activation.shape == (2, info.channels, info.height, info.width)
        torch.testing.assert_close(activation, expected[info.timestep, info.block], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", UNETS)
def test_stopping_early_changes_no_bit_of_any_block(name):
    """Against passes that run to the U-Net's output, on the very same batch."""
    unet = make_unet(**UNETS[name])
    height, width = (16, 16) if isinstance(unet.config.sample_size, int) else unet.config.sample_size
    x = torch.rand(2, unet.config.in_channels, height, width) * 2 - 1
    for block in range(len(decoder_taps(unet))):
        extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), [block], (50, 150))
        inputs, outputs = [], []
        hook = unet.register_forward_pre_hook(lambda m, a, k, to=inputs: to.append((a, k)), with_kwargs=True)
        early = extractor(x).activations
        hook.remove()
        ((arguments, keywords),) = inputs
        tapped = unet.get_submodule(extractor.taps[block].module)
        hook = tapped.register_forward_hook(lambda m, a, o, to=outputs: to.append(o))
        with torch.no_grad():
            assert unet(*arguments, **keywords).sample.shape[0] == 4
        hook.remove()
        full = outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]
        assert torch.equal(torch.cat(early), full)


def test_the_pass_ends_at_the_last_tapped_block():
    unet = make_unet()
    ran = []
    for i, up in enumerate(unet.up_blocks):
        up.register_forward_hook(lambda m, a, o, i=i: ran.append(i))
    unet.conv_out.register_forward_hook(lambda m, a, o: ran.append("out"))
    DecoderFeatureExtractor(unet, DDPMScheduler(), (0, 3), (50,))(torch.zeros(1, 1, 16, 16))
    assert ran == [0, 1]
    DecoderFeatureExtractor(unet, DDPMScheduler(), (2,), (50,))(torch.zeros(1, 1, 16, 16))
    assert ran == [0, 1, 0]  # block 2 is in the middle of up-block 1


def test_feature_info_defaults_to_the_size_of_the_unet_side_by_side():
    extractor = DecoderFeatureExtractor(make_unet(sample_size=(16, 24)), DDPMScheduler(), (5,), (50,))
    assert [(i.height, i.width) for i in extractor.feature_info()] == [(16, 24)]
    assert [(i.height, i.width) for i in extractor.feature_info(height=32)] == [(32, 24)]


def test_whole_up_blocks_are_their_last_blocks():
    unet = make_unet(layers_per_block=2)
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), up_blocks=(0, 2))
    assert extractor.blocks == (2, 8)
    outputs = []
    hooks = [unet.up_blocks[k].register_forward_hook(lambda m, a, o: outputs.append(o)) for k in (0, 2)]
    features = extractor(torch.zeros(1, 1, 16, 16))
    for hook in hooks:
        hook.remove()
    assert torch.equal(features.activations[0], outputs[0][:1])


def hooks_left(unet):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def test_hooks_and_training_mode_do_not_outlive_the_call_nor_an_exception():
    unet = make_unet().train()
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), (1, 3), (50,))
    extractor(torch.zeros(1, 1, 16, 16))
    assert hooks_left(unet) == 0 and unet.training
    broken = unet.up_blocks[0].resnets[0].register_forward_pre_hook(lambda m, a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extractor(torch.zeros(1, 1, 16, 16))
    broken.remove()
    assert hooks_left(unet) == 0 and unet.training


def test_dropout_is_off_even_for_a_unet_in_training():
    unet = make_unet(dropout=0.9).train()
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), (5,), (50,))
    x = torch.rand(1, 1, 16, 16)
    assert torch.equal(extractor(x).activations[0], extractor(x).activations[0])


def test_shared_noise_is_one_for_all_and_fresh_noise_does_not_depend_on_the_batch():
    unet = make_unet()
    x = torch.rand(1, 1, 16, 16).expand(3, -1, -1, -1)
    shared_noise = DecoderFeatureExtractor(unet, DDPMScheduler(), (5,), (50,))
    a = shared_noise(x).activations[0]
    torch.testing.assert_close(a[0], a[2])
    other_seed = DecoderFeatureExtractor(unet, DDPMScheduler(), (5,), (50,), noise_seed=1)
    assert not torch.allclose(a, other_seed(x).activations[0])

    fresh = DecoderFeatureExtractor(unet, DDPMScheduler(), (5,), (50, 150), share_noise=False)
    together = fresh(x, generator=torch.Generator().manual_seed(3)).activations
    assert not torch.allclose(together[0][0], together[0][1])
    generator = torch.Generator().manual_seed(3)
    for i in range(3):
        for whole, single in zip(together, fresh(x[i : i + 1], generator=generator).activations):
            torch.testing.assert_close(whole[i : i + 1], single, atol=1e-5, rtol=1e-5)


def test_clean_features_are_those_of_the_mean_of_the_noised_image_at_its_timestep():
    unet, scheduler, x = make_unet(), DDPMScheduler(), torch.rand(2, 1, 16, 16)
    clean = DecoderFeatureExtractor(unet, scheduler, (1, 5), (50, 200), clean=True)
    found, seen = clean(x).activations, {}
    for t in (50, 200):
        hook = unet.up_blocks[-1].register_forward_hook(lambda m, a, out, t=t: seen.update({t: out}))
        unet(scheduler.alphas_cumprod[t].sqrt() * x, t)
        hook.remove()
    torch.testing.assert_close(found[1], seen[50], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[3], seen[200], atol=1e-5, rtol=1e-5)
    other = DecoderFeatureExtractor(unet, scheduler, (1, 5), (50, 200), clean=True, noise_seed=7, share_noise=False)
    assert all(torch.equal(a, b) for a, b in zip(found, other(x).activations)), "there is no noise to draw"
    assert clean.choose((1,)).clean and clean.with_filters((1.0,)).clean
    with pytest.raises(ValueError, match="fitted on clean ones; leave that out, or fit with --noise shared"):
        clean.check_noised()


@pytest.mark.parametrize(
    "scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler(), EulerDiscreteScheduler(), UniPCMultistepScheduler()]
)
def test_any_scheduler_gives_the_same_features_whatever_it_sampled_before(scheduler):
    unet = make_unet()
    scheduler.set_timesteps(7)
    x = torch.rand(1, 1, 16, 16)
    a = DecoderFeatureExtractor(unet, DDPMScheduler(), (5,))(x).activations
    b = DecoderFeatureExtractor(unet, scheduler, (5,))(x).activations
    torch.testing.assert_close(a, b)


def test_class_conditional_unets_default_to_class_zero():
    unet = make_unet(num_class_embeds=5)
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), (5,))
    x = torch.rand(2, 1, 16, 16)
    default = extractor(x).activations[0]
    assert torch.equal(default, extractor(x, torch.tensor([0, 0])).activations[0])
    assert not torch.allclose(default, extractor(x, torch.tensor([1, 1])).activations[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(blocks=(6,)), "Block 6 does not exist: this model has blocks 0 to 5"),
        (dict(blocks=(-1,)), "Block -1 does not exist"),
        (dict(up_blocks=(3,)), "Up-block 3 does not exist: this U-Net has up-blocks 0 to 2"),
        (dict(blocks=(1,), timesteps=(1000,)), "Timestep 1000 does not exist: this model has timesteps 0 to 999"),
        (dict(blocks=()), "At least one block"),
        (dict(blocks=(1, 1)), "given twice"),
    ],
)
def test_blocks_and_timesteps_that_do_not_exist_are_refused_with_the_valid_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecoderFeatureExtractor(make_unet(), DDPMScheduler(), **arguments)


def test_sizes_and_channels_that_do_not_fit_are_refused_with_what_would():
    extractor = DecoderFeatureExtractor(make_unet(), DDPMScheduler(), (1,))
    with pytest.raises(ValueError, match="multiples of 4, got 18 × 16; the nearest is 16 × 16"):
        extractor(torch.zeros(1, 1, 18, 16))
    with pytest.raises(ValueError, match="have 3 channels, but the model takes 1"):
        extractor(torch.zeros(1, 3, 16, 16))


def test_activations_that_are_not_finite_are_refused_with_their_block_and_timestep():
    unet = make_unet()
    handle = (
        unet.up_blocks[1]
        .resnets[0]
        .register_forward_hook(
            lambda m, a, o: torch.where(torch.arange(len(o))[:, None, None, None] >= 2, torch.nan, o)
        )
    )
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), (1, 2), (50, 150))
    with pytest.raises(FloatingPointError, match="not finite in block 2 at timestep 150;"):
        extractor(torch.zeros(2, 1, 16, 16))
    handle.remove()


def test_the_shared_checkpoint_has_the_published_block_resolutions():
    pipe = DiffuseSegPipeline.from_pretrained(shared("checkpoints/faces64-ddpm"))
    extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, (2, 5, 8, 11))
    assert [(i.channels, i.height) for i in extractor.feature_info()[:4]] == [(128, 16), (128, 32), (64, 64), (32, 64)]
    features = extractor(torch.zeros(1, 1, 64, 64))
    assert [a.shape[1:] for a in features.activations] == [(i.channels, i.height, i.width) for i in features.info]


def test_block_numbers_and_shapes_are_those_of_guided_diffusion():
    with safe_open(shared("reference/adm_plain.safetensors"), "pt") as file:
        flags = json.loads(file.metadata()["flags"])
        published = [tuple(file.get_tensor(f"output_blocks.{i}").shape[1:]) for i in range(9)]
    width = flags["num_channels"]
    channels = tuple(width * int(m) for m in flags["channel_mult"].split(","))
    unet = make_unet(
        sample_size=flags["image_size"],
        in_channels=3,
        out_channels=3,
        block_out_channels=channels,
        layers_per_block=flags["num_res_blocks"],
    )
    extractor = DecoderFeatureExtractor(unet, DDPMScheduler(), range(9), (50,))
    assert [(i.channels, i.height, i.width) for i in extractor.feature_info()] == published
