# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every family of denoisers against its own pipeline: how it is called, what its taps see, what is left behind."""

import inspect

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor

from diffuseseg_diffusers import AutoDiffuseSegPipeline, recipe_extractor
from diffuseseg_diffusers.features.base import LastTapReached
from diffuseseg_diffusers.features.denoiser import DenoiserFeatureExtractor
from diffuseseg_diffusers.features.families import find_family
from diffuseseg_diffusers.features.latents import encode_latents
from diffuseseg_diffusers.jobs.errors import UserError

from ..tiny_pipelines import FAMILIES, dit, flux, latent_unet, sana, sd3, sdxl, stable_diffusion


SQUARE = ("DiT", "consistency")
LATENT = [name for name in FAMILIES if name != "consistency"]
TRANSFORMERS = [name for name in LATENT if "UNet" not in name and name not in ("Stable Diffusion", "SDXL")]


def made(name: str):
    pipe = FAMILIES[name][0]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def size_of(name: str) -> tuple[int, int]:
    if name == "Sana":
        return 32, 64
    return (16, 16) if name in SQUARE else (16, 24)


def extractor_of(name: str, pipe=None, **choice) -> DenoiserFeatureExtractor:
    pipe = pipe or made(name)
    return find_family(pipe.components).of(pipe, **{"size": size_of(name), **choice})


def pixels(name: str, n: int = 2) -> torch.Tensor:
    return torch.rand(n, 3, *size_of(name), generator=torch.Generator().manual_seed(7)) * 2 - 1


def noised(extractor: DenoiserFeatureExtractor, n: int = 1, seed: int = 1) -> torch.Tensor:
    grid = extractor.latent_grid(*extractor.size)
    return torch.randn(n, extractor.latent_channels, *grid, generator=torch.Generator().manual_seed(seed))


def full_pass(extractor: DenoiserFeatureExtractor, latents: torch.Tensor, timestep: int) -> tuple[dict, torch.Tensor]:
    """What the taps see in a pass that does not end early, and the denoiser's output."""
    timesteps = torch.full((len(latents),), timestep)
    condition = {k: v.expand(len(latents), *v.shape[1:]) for k, v in extractor.condition().items()}
    with torch.no_grad(), extractor.reading() as seen:
        output = extractor.model(**extractor.arguments(latents, timesteps, condition), return_dict=False)[0]
    return seen, output


def calls_of(pipe, component: str, **call) -> list[dict]:
    """The arguments of each pass of the denoiser in a run of the plain pipeline, by name."""
    denoiser, calls = getattr(pipe, component), []

    def record(module, args, kwargs):
        bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
        calls.append({k: v for k, v in bound.items() if k != "self"})

    hook = denoiser.register_forward_pre_hook(record, with_kwargs=True)
    pipe(**call, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0))
    hook.remove()
    return calls


@pytest.mark.parametrize("name", LATENT)
def test_the_denoiser_is_called_as_its_own_pipeline_calls_it(name):
    pipe, call = made(name), dict(FAMILIES[name][1])
    square = name.startswith("latent")
    takes = inspect.signature(pipe.__call__).parameters
    if "guidance_scale" in takes and name != "Flux":
        call["guidance_scale"] = 1.0  # no second half of the batch
    if name == "DiT":
        call["class_labels"] = [1000]
    prompt = call.get("prompt")
    extractor = extractor_of(name, pipe, prompt=prompt, **({"size": (16, 16)} if square else {}))
    recorded = calls_of(pipe, extractor.component, **call)
    for passed, timestep in zip(recorded, pipe.scheduler.timesteps):
        latents = next(iter(passed.values()))
        if name == "Flux":
            latents = pipe._unpack_latents(latents, *extractor.size, pipe.vae_scale_factor)
        ours = extractor.arguments(latents, timestep[None], extractor.condition())
        assert_same(passed, ours)
        assert abs(extractor.timestep_of((), passed) - float(timestep)) < 1e-3
    if prompt:  # and the null prompt is another
        null = extractor_of(name, pipe).condition()["encoder_hidden_states"]
        assert not torch.equal(null, extractor.condition()["encoder_hidden_states"])


def assert_same(passed: dict, ours: dict) -> None:
    for name, value in ours.items():
        if isinstance(value, dict):
            assert_same(passed[name], value)
        elif value is None:
            assert passed[name] is None
        else:
            given = passed[name].reshape(-1, *passed[name].shape[1:]) if passed[name].ndim else passed[name][None]
            assert given.shape == value.shape and torch.allclose(given.to(value.dtype), value, rtol=1e-4, atol=1e-4), (
                name
            )
    silent = {"return_dict", "cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"}
    for name in passed.keys() - ours.keys() - silent:
        assert passed[name] is None, f"the pipeline passes {name}, and the extractor does not"


def by_hand(name: str, block: torch.nn.Module, given: dict) -> torch.Tensor:
    """What the self-attention of a block reads, by its own layers."""
    h = given["hidden_states"]
    if name == "DiT":
        return block.norm1(h, given["timestep"], given["class_labels"], hidden_dtype=h.dtype)[0]
    if name in ("SD3", "Flux"):
        if hasattr(block, "norm1"):
            return block.norm1(h, emb=given["temb"])[0]
        text = given["encoder_hidden_states"]
        return block.norm(torch.cat([text, h], dim=1), emb=given["temb"])[0][:, text.shape[1] :]
    table = (block.scale_shift_table[None] + given["timestep"].reshape(len(h), 6, -1)).chunk(6, dim=1)
    return block.norm1(h) * (1 + table[1]) + table[0]


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_taps_of_transformers_are_those_of_a_loop_over_the_blocks_by_hand(name):
    extractor = extractor_of(name)
    extractor = extractor.choose(extractor.numbers)
    denoiser, first = extractor.model, {}
    blocks = [*denoiser.transformer_blocks, *getattr(denoiser, "single_transformer_blocks", [])]

    def record(module, args, kwargs):
        first.setdefault(module, inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)

    outputs = {}
    hooks = [b.register_forward_pre_hook(record, with_kwargs=True) for b in blocks]
    hooks += [b.register_forward_hook(lambda m, args, out: outputs.__setitem__(m, out)) for b in blocks]
    seen, _ = full_pass(extractor, noised(extractor), extractor.timesteps[0])
    for hook in hooks:
        hook.remove()
    given = {k: v for k, v in first[blocks[0]].items() if k != "self"}
    height, width = (side // extractor.patch_size for side in extractor.latent_grid(*extractor.size))
    for i, block in enumerate(blocks):
        expected = by_hand(name, block, given)  # [N,h*w,C]
        found = extractor.as_map(seen[i], extractor.latent_grid(*extractor.size))
        for y, x in ((0, 0), (0, width - 1), (height - 1, 1)):
            assert torch.allclose(found[..., y, x], expected[:, y * width + x], atol=1e-5)
        assert found.shape[2:] == (height, width)
        after = block(**given)
        if isinstance(after, tuple):
            given["encoder_hidden_states"], given["hidden_states"] = after
        else:
            given["hidden_states"] = after
    last = outputs[blocks[-1]]
    assert torch.allclose(given["hidden_states"], last[-1] if isinstance(last, tuple) else last, atol=1e-5)


@pytest.mark.parametrize("name", ["latent UNet2DModel (KL)", "Stable Diffusion", "SDXL"])
@torch.no_grad()
def test_taps_of_unets_are_those_of_a_loop_over_the_layers_by_hand(name):
    extractor = extractor_of(name)
    extractor = extractor.choose(extractor.numbers)
    unet, given = extractor.model, {}

    def record(module, args, kwargs):
        given[module] = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments

    hooks = [b.register_forward_pre_hook(record, with_kwargs=True) for b in unet.up_blocks]
    seen, output = full_pass(extractor, noised(extractor), extractor.timesteps[0])
    for hook in hooks:
        hook.remove()
    block = 0
    for level, up_block in enumerate(unet.up_blocks):
        passed = given[up_block]
        h, skips = passed["hidden_states"], list(passed["res_hidden_states_tuple"])
        attentions = getattr(up_block, "attentions", None)
        for layer, resnet in enumerate(up_block.resnets):
            h = resnet(torch.cat([h, skips.pop()], dim=1), passed["temb"])
            if attentions is not None:
                text = passed.get("encoder_hidden_states")
                attend = attentions[layer]
                h = attend(h) if text is None else attend(h, encoder_hidden_states=text, return_dict=False)[0]
            if layer == len(up_block.resnets) - 1 and up_block.upsamplers is not None:
                for upsampler in up_block.upsamplers:
                    h = upsampler(h, passed.get("upsample_size"))
            assert torch.allclose(extractor.as_map(seen[block], ()), h, atol=1e-5), (level, layer)
            block += 1
    final = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
    assert torch.allclose(final, output, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_without_attention_one_patch_of_the_latents_changes_its_own_cell_alone(name):
    extractor = extractor_of(name)
    block = 0 if name == "Sana" else extractor.numbers[-1]  # Sana's feed-forward layers are convolutions
    extractor = extractor.choose([block])
    for path, module in extractor.model.named_modules():
        if path.rpartition(".")[2] in ("attn", "attn1", "attn2"):
            for out in ("to_out", "to_add_out"):
                for p in getattr(module, out, None) and getattr(module, out).parameters() or ():
                    p.zero_()
        if path.endswith("proj_out") and "single" in path:
            module.weight[:, : module.weight.shape[0]] = 0  # the attention's part
    latents = noised(extractor)
    patch, (h, w) = extractor.patch_size, extractor.latent_grid(*extractor.size)
    cell = (h // patch - 1, 1)
    changed = latents.clone()
    changed[..., cell[0] * patch : (cell[0] + 1) * patch, cell[1] * patch : (cell[1] + 1) * patch] += 1
    before, after = (
        extractor.as_map(full_pass(extractor, x, extractor.timesteps[0])[0][block], (h, w)) for x in (latents, changed)
    )
    differs = (before - after).abs().amax((0, 1)) > 1e-6
    assert differs[cell] and differs.sum() == 1


@pytest.mark.parametrize("name", LATENT)
def test_an_early_end_sees_what_a_full_pass_sees_and_leaves_nothing_behind(name):
    extractor = extractor_of(name)
    pipe, denoiser = extractor.pipe, extractor.model
    denoiser.train()
    weights = {k: v.clone() for k, v in denoiser.state_dict().items()}
    config, timesteps = dict(pipe.scheduler.config), pipe.scheduler.timesteps
    images = pixels(name)
    output = extractor(images)
    assert denoiser.training and not extractor.vae.training
    denoiser.eval()
    assert all(torch.equal(v, weights[k]) for k, v in denoiser.state_dict().items())
    assert dict(pipe.scheduler.config) == config and pipe.scheduler.timesteps is timesteps
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(m, kind) for model in (denoiser, extractor.vae) for m in model.modules() for kind in hooks)
    latents = encode_latents(extractor.vae, images)
    for j, t in enumerate(extractor.timesteps):
        steps = torch.full((len(images),), t)
        noise = extractor.draw_noise(latents, None)[: len(images)]
        seen, _ = full_pass(extractor, extractor.schedule.add_noise(latents, noise, steps), t)
        for i, block in enumerate(extractor.blocks):
            expected = extractor.as_map(seen[block], latents.shape[-2:])
            found = output.activations[j * len(extractor.blocks) + i]
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
            info = output.info[j * len(extractor.blocks) + i]
            assert (info.block, info.timestep, *found.shape[1:]) == (block, t, info.channels, info.height, info.width)
    # The pass did end early, and where the listing says.
    reached = []
    last = next(m for n, m in denoiser.named_children() if n in ("conv_out", "proj_out", "proj_out_2"))
    hook = last.register_forward_hook(lambda *args: reached.append(1))
    extractor(images)
    assert not reached
    hook.remove()
    # A sampling run in between changes nothing.
    pipe(**FAMILIES[name][1], num_inference_steps=2, output_type="np")
    again = extractor(images)
    assert all(torch.equal(a, b) for a, b in zip(output.activations, again.activations))


@pytest.mark.parametrize("name", LATENT)
def test_latents_are_those_that_the_pipeline_decodes(name):
    pipe = made(name)
    vae, images = getattr(pipe, "vae", None) or pipe.vqvae, pixels(name)
    with torch.no_grad():
        encoded = vae.encode(images)
        raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else list(encoded.values())[0]
    shift = vae.config.get("shift_factor") or 0
    assert torch.allclose(encode_latents(vae, images), (raw - shift) * vae.config.scaling_factor, atol=1e-6)


def test_means_and_deviations_of_latents_are_taken_off():
    vae = latent_unet().vqvae
    vae.register_to_config(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[2.0, 2.0, 4.0, 4.0])
    images = pixels("SDXL")
    raw = vae.encode(images).latent_dist.mode()
    mean, std = (torch.tensor(x).view(1, 4, 1, 1) for x in ([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 4.0, 4.0]))
    assert torch.allclose(encode_latents(vae, images), (raw - mean) * 0.7 / std, atol=1e-6)


def test_an_autoencoder_that_overflows_in_half_precision_encodes_in_float32_and_stays_as_it_was():
    vae, images = sdxl().vae, pixels("SDXL")
    exact = encode_latents(vae.half().float(), images)
    vae.half()
    halves = {k: v.clone() for k, v in vae.state_dict().items()}
    assert torch.equal(encode_latents(vae, images), exact)
    assert all(v.dtype == torch.float16 and torch.equal(v, halves[k]) for k, v in vae.state_dict().items())


def test_modules_are_read_by_name_at_every_depth_and_what_has_no_place_is_refused():
    query = "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    extractor = extractor_of("Stable Diffusion", blocks=[2, query], timesteps=[10])
    shapes = [a.shape[1:] for a in extractor(pixels("Stable Diffusion")).activations]
    assert shapes == [(16, 8, 12), (8, 8, 12)] == [(i.channels, i.height, i.width) for i in extractor.feature_info()]
    deep = extractor_of("SD3", blocks=["transformer_blocks.1", "transformer_blocks.2.attn.to_k"], timesteps=[10])
    assert [a.shape[1:] for a in deep(pixels("SD3")).activations] == [(16, 4, 6)] * 2
    with pytest.raises(UserError, match="no module 'up_blocks.9'"):
        extractor_of("Stable Diffusion", blocks=["up_blocks.9"])
    text = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    with pytest.raises(UserError, match="77 tokens have no place"):
        extractor_of("Stable Diffusion", blocks=[text])
    with pytest.raises(UserError, match="Block 6 does not exist: this model has blocks 0 to 5"):
        extractor_of("Stable Diffusion", blocks=[6])
    assert extractor.choose(up_blocks=[0]).blocks == (2,)
    with pytest.raises(UserError, match="has no up-blocks"):
        extractor_of("SD3").choose(up_blocks=[0])


# A cross-attention of each, and whether its map is the last thing that is read.
CROSS_ATTENTION = {
    "Stable Diffusion": "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "SDXL": "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "PixArt-Σ": "transformer_blocks.1.attn2",
    "Sana": "transformer_blocks.1.attn2",
}


@pytest.mark.parametrize("name", CROSS_ATTENTION)
def test_attention_maps_are_those_of_the_reference_processor_beside_taps_of_its_layers(name):
    pipe, where, seen = made(name), CROSS_ATTENTION[name], []
    names = [f"{where}.attention_map", f"{where}.to_q"]
    with pytest.raises(UserError, match="give --prompt"):
        extractor_of(name, pipe, blocks=names[:1])
    extractor = extractor_of(name, pipe, blocks=names, timesteps=[30], clean=True, prompt="a red cell")
    found, queries = extractor(pixels(name)).activations
    info = extractor.feature_info()
    assert [tuple(x.shape[1:]) for x in (found, queries)] == [(i.channels, i.height, i.width) for i in info]
    assert torch.allclose(found.sum(1), torch.ones(found.shape[0], *found.shape[2:]), atol=1e-4)

    class Recorded(AttnProcessor):
        def __call__(self, attn, *args, **kwargs):
            scores = attn.get_attention_scores
            attn.get_attention_scores = lambda *given: seen.append(scores(*given)) or seen[-1]
            try:
                return super().__call__(attn, *args, **kwargs)
            finally:
                del attn.get_attention_scores

    attention = extractor.model.get_submodule(where)
    attention.set_processor(Recorded())
    extractor.choose([f"{where}.to_out.0"], [30])(pixels(name))
    expected = seen[0].unflatten(0, (2, attention.heads)).mean(1)  # [N,pixels,tokens]
    torch.testing.assert_close(found.flatten(2).mT, expected, atol=1e-5, rtol=1e-4)
    assert expected.std(1).max() > 1e-4, "places attend to different words"


def test_maps_of_what_is_no_cross_attention_are_refused():
    block = "up_blocks.1.attentions.0.transformer_blocks.0"
    for name, where in (
        ("Stable Diffusion", f"{block}.attn1"),
        ("Stable Diffusion", "up_blocks.0.resnets.0"),
        ("Stable Diffusion", ""),
        ("SD3", "transformer_blocks.1.attn"),
    ):
        with pytest.raises(UserError, match="cross-attentions, which attend to the text alone"):
            extractor_of(name, blocks=[f"{where}.attention_map"], prompt="a red cell")


@pytest.mark.parametrize("name", LATENT)
def test_the_listing_says_what_comes_before_anything_runs(name):
    extractor = extractor_of(name)
    every = extractor.choose(extractor.numbers, [10])
    shares = [tap.share for tap in every.taps]
    assert 0 <= shares[0] < shares[-1] <= 1 and shares == sorted(shares)
    found = every(pixels(name)).activations
    assert [(t.channels, size_of(name)[0] // t.stride) for t in every.taps] == [a.shape[1:3] for a in found]
    assert [tuple(a.shape[1:]) for a in found] == [(i.channels, i.height, i.width) for i in every.feature_info()]


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (stable_diffusion, (15, 24), "multiples of 2, got 15 × 24; the nearest is 16 × 24"),
        (latent_unet, (18, 24), "multiples of 4, got 18 × 24; the nearest is 16 × 24"),
        (dit, (16, 24), "takes squares, got 16 × 24; give 16 × 16"),
        (sd3, (18, 24), "multiples of 4, got 18 × 24; the nearest is 16 × 24"),
        (sd3, (16, 64), "up to 48 pixels a side, got 16 × 64; give 16 × 48"),
        (sana, (15, 24), "multiples of 2, got 15 × 24"),
        (flux, (18, 24), "multiples of 4, got 18 × 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_with_the_nearest_that_does(make, size, message):
    pipe = make()
    with pytest.raises(UserError, match=message):
        find_family(pipe.components).of(pipe, size=size)


def test_odd_latents_are_read_where_the_unet_passes_their_sizes_on():
    extractor = extractor_of("Stable Diffusion", size=(18, 22), timesteps=[10])  # latents of 9 × 11
    assert [a.shape[2:] for a in extractor(torch.zeros(1, 3, 18, 22)).activations] == [(9, 11), (9, 11)]


def test_text_encoders_are_asked_once_and_can_be_freed_then():
    pipe = made("SD3")
    extractor = extractor_of("SD3", pipe, prompt="a face")
    calls = []
    hook = pipe.text_encoder.register_forward_hook(lambda *args: calls.append(1))
    first = extractor(pixels("SD3"))
    count = len(calls)
    pipe.text_encoder = pipe.text_encoder_2 = pipe.text_encoder_3 = None
    again = extractor_of("SD3", pipe, prompt="a face")(pixels("SD3"))
    assert len(calls) == count and all(torch.equal(a, b) for a, b in zip(first.activations, again.activations))
    hook.remove()
    with pytest.raises(UserError, match="no text_encoder and no text_encoder_2 .*to encode the prompt 'a house'"):
        extractor_of("SD3", pipe, prompt="a house")(pixels("SD3"))


def test_prompts_matter_where_there_are_any_and_are_refused_elsewhere():
    plain, said = (extractor_of("Flux", prompt=p)(pixels("Flux")).activations for p in (None, "a red face"))
    assert not torch.allclose(plain[0], said[0])
    for name in ("DiT", "latent UNet2DModel (KL)", "consistency"):
        with pytest.raises(UserError, match="takes no prompt"):
            extractor_of(name, prompt="a face")(pixels(name))


def test_models_told_a_size_are_told_the_one_at_which_images_are_read():
    sizes = extractor_of("SDXL").condition()["time_ids"]
    assert sizes.tolist() == [[16, 24, 0, 0, 16, 24]]
    known = extractor_of("PixArt-α 1024").condition()
    assert known["resolution"].tolist() == [[16, 24]] and known["aspect_ratio"].item() == pytest.approx(16 / 24)


def test_the_null_prompt_of_sdxl_is_zeros_and_another_than_the_empty_one():
    null, empty = (extractor_of("SDXL", prompt=p).condition() for p in (None, ""))
    assert not null["encoder_hidden_states"].any() and not null["text_embeds"].any()
    assert empty["encoder_hidden_states"].any() and empty["text_embeds"].any()


def test_guidance_is_embedded_where_the_model_was_distilled_from_it():
    assert "guidance" not in arguments_of(flux(guidance=False), (16, 24))
    assert arguments_of(flux(), (16, 24))["guidance"].tolist() == [3.5]
    distilled = arguments_of(stable_diffusion(time_cond_proj_dim=8), (16, 24))["timestep_cond"]
    assert distilled.shape == (1, 8)


def arguments_of(pipe, size: tuple[int, int]) -> dict:
    extractor = find_family(pipe.components).of(pipe, size=size)
    return extractor.arguments(noised(extractor), torch.tensor([10]), extractor.condition())


def test_models_of_inpainting_and_of_unknown_conditioning_are_refused():
    with pytest.raises(UserError, match="takes 9 channels of latents, but the autoencoder gives 4"):
        arguments_of(stable_diffusion(in_channels=9), (16, 24))
    pipe = stable_diffusion()
    pipe.unet.register_to_config(addition_embed_type="text_image")
    with pytest.raises(UserError, match="conditioned on text_image, which is not known"):
        find_family(pipe.components).of(pipe)


def test_a_pass_that_ends_early_raises_nothing_to_the_outside_and_images_of_other_channels_are_refused():
    extractor = extractor_of("SD3")
    try:
        extractor(pixels("SD3"))
    except LastTapReached:
        pytest.fail("the end of a pass is an inner matter")
    with pytest.raises(UserError, match="have 1 channels, but the model takes 3"):
        extractor(torch.zeros(1, 1, 16, 24))
    with pytest.raises(UserError, match="reads images of 16 × 24, got 16 × 16"):
        extractor(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("name", LATENT)
def test_in_bfloat16_the_features_are_nearly_those_in_float32(name):
    # Flux gets timesteps and guidance in the model's precision, as from its pipeline, which holds these steps exactly.
    pipe, images, steps = flux(guidance=False) if name == "Flux" else made(name), pixels(name), (128, 256)
    exact = extractor_of(name, pipe, timesteps=steps)(images).activations  # the conditioning is kept, in float32
    pipe.to(torch.bfloat16)
    for expected, found in zip(exact, extractor_of(name, pipe, timesteps=steps)(images).activations):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.1 * expected.norm()


PUBLISHED = {  # the shapes of the published models, much narrower
    "Stable Diffusion": (
        stable_diffusion,
        dict(
            sample_size=(8, 16),
            block_out_channels=(8, 8, 16, 16),
            down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
            up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        ),
        [(16, 2), (16, 2), (8, 4), (8, 8)],
    ),
    "SDXL": (
        sdxl,
        dict(
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 8),
            attention_head_dim=(4, 4, 4),
        ),
        [(16, 2), (16, 2), (16, 4), (16, 4)],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_read_queries_and_keys_of_u_nets_of_the_published_shapes(name):
    make, config, expected = PUBLISHED[name]
    pipe = make(**config)
    pipe.set_progress_bar_config(disable=True)
    extractor = recipe_extractor(AutoDiffuseSegPipeline.from_pipe(pipe), size=(16, 32))
    assert [(info.channels, info.height) for info in extractor.feature_info()] == expected
    modules, images = dict(extractor.model.named_modules()), torch.rand(2, 3, 16, 32) * 2 - 1
    seen = {}
    hooks = [
        modules[block].register_forward_hook(lambda m, a, out, block=block: seen.update({block: out}))
        for block in extractor.blocks
    ]
    found = extractor(images).activations
    for hook in hooks:
        hook.remove()
    for block, activation in zip(extractor.blocks, found):
        assert torch.equal(extractor.as_map(seen[block], (8, 16)), activation)
    pipe.fuse_qkv_projections()
    for one, other in zip(found, extractor(images).activations):
        torch.testing.assert_close(one, other)
    pipe.unfuse_qkv_projections()
    other = recipe_extractor(AutoDiffuseSegPipeline.from_pipe(FAMILIES[name][0]()), size=(16, 24))
    assert all(isinstance(block, int) for block in other.blocks)  # of another shape
    published = recipe_extractor(AutoDiffuseSegPipeline.from_pipe(pipe), "paper", size=(16, 32))
    assert all(isinstance(block, int) for block in published.blocks)
