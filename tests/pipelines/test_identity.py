# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What masks depend on: runs and heads tell it from anything else, and from nothing else."""

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.configuration_utils import FrozenDict
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from diffuseseg_diffusers import AutoDiffuseSegPipeline, DiffuseSegPipeline, PixelClassifierEnsemble
from diffuseseg_diffusers.heads.decisions import Decisions
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.identity import describe_network, sketch, weights_digest
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import make_head, make_pipeline, make_unet
from ..tiny_pipelines import FAMILIES, clip, flux, sdxl, stable_diffusion


SIZE = (16, 24)


def random_head(pipe, seed: int = 1, **config) -> PixelClassifierEnsemble:
    """A head that was fitted on nothing: quick, and its masks show every change of the activations."""
    extractor = pipe.features(size=SIZE if pipe.components.get("vae") else None)
    torch.manual_seed(seed)
    head = PixelClassifierEnsemble(
        num_classes=4,
        block_channels=[i.channels for i in extractor.feature_info()[: len(extractor.blocks)]],
        blocks=list(extractor.blocks),
        timesteps=list(extractor.timesteps),
        num_members=2,
        image_size=list(extractor.size),
        in_channels=extractor.in_channels,
        voting="soft",
        **config,
    )
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return head.eval()


def composed(head: PixelClassifierEnsemble | None = None):
    pipe = AutoDiffuseSegPipeline.from_pipe(stable_diffusion())
    pipe.segmentation_head = copy.deepcopy(head) if head is not None else random_head(pipe)
    return pipe


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def nudge(module: torch.nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 0.01


def masks_of(pipe) -> np.ndarray:
    image = np.random.default_rng(0).random((*SIZE, 3)).astype(np.float32)
    return pipe.segment([image], output_type="np").masks[0]


UNET = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> dict[str, str]:
    """Folders with two LoRAs of the U-Net, and one of the text encoder."""
    found = {}
    for seed, (name, component, targets) in enumerate(
        [("style", "unet", UNET), ("other", "unet", UNET), ("text", "text_encoder", TEXT)]
    ):
        model = getattr(stable_diffusion(), component)
        model.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets))
        generator = torch.Generator().manual_seed(seed)
        for key, p in model.named_parameters():
            if "lora" in key:
                torch.nn.init.normal_(p, std=0.3, generator=generator)
        found[name] = str(tmp_path_factory.mktemp(name))
        weights = {f"{component}_lora_layers": get_peft_model_state_dict(model)}
        StableDiffusionPipeline.save_lora_weights(found[name], **weights)
    return found


def adapted(folder: str, head: PixelClassifierEnsemble | None = None, name: str = "style"):
    base = stable_diffusion()
    base.load_lora_weights(folder, adapter_name=name)
    pipe = AutoDiffuseSegPipeline.from_pipe(base)
    pipe.segmentation_head = copy.deepcopy(head) if head is not None else random_head(pipe)
    return pipe


CHANGES = {
    "unet": (lambda p: nudge(p.unet), {"unet"}),
    "vae": (lambda p: nudge(p.vae), {"vae"}),
    "text encoder": (lambda p: nudge(p.text_encoder), {"text_encoder"}),
    "head": (lambda p: nudge(p.segmentation_head), {"segmentation_head"}),
    "labels": (lambda p: p.segmentation_head.register_to_config(label_names=list("abcd")), {"segmentation_head"}),
    "scale of latents": (lambda p: p.vae.register_to_config(scaling_factor=0.5), {"vae"}),
    "FreeU": (lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4), {"freeu"}),
    "decisions": (lambda p: setattr(p, "decisions", Decisions((0.1,) * 4, (0.2,) * 4)), {"decisions"}),
    "precision": (lambda p: p.unet.to(torch.bfloat16), {"unet"}),
    "betas": (
        lambda p: setattr(p, "scheduler", DDPMScheduler.from_config(p.scheduler.config, beta_end=0.02)),
        {"noise"},
    ),
    "sampler": (
        lambda p: setattr(p, "scheduler", EulerDiscreteScheduler.from_config(p.scheduler.config)),
        set(),
    ),
    "slices": (lambda p: p.enable_attention_slicing(), set()),
    "agreement": (lambda p: p.segmentation_head.register_to_config(agreement={"bfloat16": 0.9}), set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_identity_names_what_changed_and_nothing_else(change):
    pipe = composed()
    before = pipe.identity()
    assert before == pipe.identity() and all(isinstance(value, str) for value in before.values())
    make, expected = CHANGES[change]
    make(pipe)
    assert differing(before, pipe.identity()) == expected


def test_pixels_students_and_averages_have_identities_too():
    pipe = DiffuseSegPipeline(make_unet(), DDPMScheduler())
    assert set(pipe.identity()) == {"unet", "channels"}
    pipe.segmentation_head = random_head(pipe)
    student = new_unet(pipe.label_names, pipe.image_size, pipe.in_channels)
    before = student.identity()
    nudge(student.model)
    assert differing(before, student.identity()) == {"model"}
    student.timestep = 3
    assert differing(before, student.identity()) == {"model", "timestep"}
    both = AveragedSegmenter({"a": pipe, "b": student})
    before = both.identity()
    nudge(pipe.unet)
    assert differing(before, both.identity()) == {"0.unet"}


def test_a_digest_is_of_the_weights_and_not_of_their_precision():
    torch.manual_seed(0)
    layer, other = torch.nn.Linear(4, 3).bfloat16(), torch.nn.Linear(4, 3)
    assert weights_digest(layer) == weights_digest(layer.float()) and len(weights_digest(layer)) == 16
    assert len({weights_digest(layer), weights_digest(other), weights_digest(layer, other)}) == 3


# Adapters.


def test_a_head_names_the_adapters_that_it_was_fitted_with(loras, tmp_path):
    pipe = adapted(loras["style"])
    pipe.set_adapters(["style"], [0.5])
    fitted = random_head(pipe)
    pipe.segmentation_head = fitted
    (adapter,) = fitted.config.base["adapters"]
    assert (adapter["component"], adapter["name"], adapter["scale"]) == ("unet", "style", 0.5)
    assert fitted.config.format_version == 5, "what knows no adapters refuses the head"
    assert composed().segmentation_head.config.format_version == 3
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert set(index["base"]) == {"model", "revision", "pipeline"}
    again = PixelClassifierEnsemble.from_pretrained(tmp_path, subfolder="segmentation_head")
    other = adapted(loras["style"], name="of_another_name")
    other.set_adapters(["of_another_name"], [0.5])
    other.segmentation_head = again
    assert np.array_equal(masks_of(pipe), masks_of(other))


LATER = {
    "unload_lora_weights": (lambda p, _: p.unload_lora_weights(), "adapter 'style' of the unet .* is not active"),
    "scale 0": (lambda p, _: p.set_adapters(["style"], [0.0]), "adapter 'style' of the unet .* is not active"),
    "scale 0.9": (lambda p, _: p.set_adapters(["style"], [0.9]), "'style' has scale 0.9 and had 1"),
    "disable_lora": (lambda p, _: p.disable_lora(), "adapter 'style' of the unet .* is not active"),
    "another in its place": (
        lambda p, loras: (p.load_lora_weights(loras["other"], adapter_name="o"), p.set_adapters(["o"])),
        "'style' of the unet .* is not active; the adapter 'o' of the unet .* is active",
    ),
    "another beside it": (
        lambda p, loras: (p.load_lora_weights(loras["other"], adapter_name="o"), p.set_adapters(["style", "o"])),
        "the adapter 'o' of the unet .* is active",
    ),
}


@pytest.mark.parametrize("change", LATER)
def test_adapters_that_change_after_the_head_was_set_are_refused_with_what_differs(change, loras):
    pipe = adapted(loras["style"])
    before = masks_of(pipe)
    make, message = LATER[change]
    make(pipe, loras)
    with pytest.raises(UserError, match=message):
        masks_of(pipe)
    if change != "unload_lora_weights":
        pipe.enable_lora()
        pipe.set_adapters(["style"], [1.0])
        assert np.array_equal(masks_of(pipe), before)


def test_an_adapter_that_comes_after_the_head_is_refused(loras):
    pipe = composed()
    masks_of(pipe)
    pipe.load_lora_weights(loras["style"], adapter_name="style")
    with pytest.raises(UserError, match="adapter 'style' of the unet .scale 1.0. is active. Change it back, or fit"):
        masks_of(pipe)


def test_a_head_of_an_adapted_base_is_refused_on_the_base_alone_with_what_to_do(loras):
    head = adapted(loras["style"]).segmentation_head
    with pytest.raises(UserError, match=r"'style' of the unet .* is not active. Load it with .*--lora"):
        composed(head)
    with pytest.raises(UserError, match="'style' of the unet .* is not active"):
        adapted(loras["other"], head)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("unloaded", [False, True])
def test_a_fused_adapter_with_equal_weights_is_accepted_and_one_of_another_scale_is_not(loras, unloaded, dtype):
    pipe = adapted(loras["style"])
    expected = masks_of(pipe)
    head = copy.deepcopy(pipe.segmentation_head)
    pipe.to(dtype)
    pipe.fuse_lora()
    if unloaded:
        pipe.unload_lora_weights()
    assert (masks_of(pipe) == expected).mean() > (0.999 if dtype == torch.float32 else 0.8)
    base = stable_diffusion().to(dtype)
    base.load_lora_weights(loras["style"])
    base.fuse_lora(lora_scale=0.5)
    base.unload_lora_weights()
    with pytest.raises(UserError, match="'style' of the unet .* is not active|weights differ"):
        AutoDiffuseSegPipeline.from_pipe(base, head)


def test_fused_projections_that_leave_an_adapter_out_are_refused(loras):
    pipe = adapted(loras["style"])
    pipe.fuse_qkv_projections()
    with pytest.raises(UserError, match="bypass its adapters; call `fuse_lora"):
        masks_of(pipe)


# Text encoders.


def test_another_text_encoder_is_refused_and_the_same_prompt_is_encoded_anew(tmp_path):
    pipe = composed()
    before = masks_of(pipe)
    own, pipe.text_encoder = pipe.text_encoder, clip(seed=9)[0]
    with pytest.raises(UserError, match=r"other text encoders: the embedding of its prompt differs by \d+%"):
        masks_of(pipe)
    pipe.text_encoder = own
    assert np.array_equal(masks_of(pipe), before)
    for p in own.parameters():  # counts no version
        p.data.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    with pytest.raises(UserError, match="other text encoders"):
        masks_of(pipe)


def test_embeddings_do_not_outlive_the_text_encoder_that_made_them():
    base = stable_diffusion()
    extractor = AutoDiffuseSegPipeline.from_pipe(base).features()
    first = extractor.condition()
    assert extractor.condition() is first
    with torch.no_grad():
        base.text_encoder.get_input_embeddings().weight += 1
    second = extractor.condition()["encoder_hidden_states"]
    assert not torch.allclose(first["encoder_hidden_states"], second)
    base.text_encoder = None  # freed after the first use
    assert extractor.condition()["encoder_hidden_states"] is second


def test_embeddings_are_the_same_with_and_without_gradients():
    extractors = [AutoDiffuseSegPipeline.from_pipe(stable_diffusion()).features() for _ in range(2)]
    with torch.no_grad():
        without = extractors[0].condition()
    with torch.enable_grad():
        found = extractors[1].condition()
    assert found and not any(tensor.requires_grad for tensor in found.values())
    assert all(torch.equal(tensor, without[name]) for name, tensor in found.items())


def test_an_adapter_of_the_text_encoder_counts(loras):
    plain = composed().segmentation_head
    pipe = adapted(loras["text"], name="words")
    assert pipe.segmentation_head.config.base["adapters"][0]["component"] == "text_encoder"
    before = masks_of(pipe)
    pipe.set_adapters(["words"], [0.0])
    with pytest.raises(UserError, match="other text encoders: .*'words' of the text_encoder .* is not active"):
        masks_of(pipe)
    pipe.set_adapters(["words"], [1.0])
    assert np.array_equal(masks_of(pipe), before)
    with pytest.raises(UserError, match="other text encoders: .*'words' of the text_encoder .* is active"):
        masks_of(adapted(loras["text"], plain, "words"))


def test_where_no_prompt_is_read_the_text_encoder_does_not_matter():
    pipe = AutoDiffuseSegPipeline.from_pipe(sdxl())  # zeros in place of the empty prompt
    pipe.segmentation_head = random_head(pipe)
    before = masks_of(pipe)
    pipe.text_encoder = clip(seed=9)[0]
    assert np.array_equal(masks_of(pipe), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_every_family_are_accepted_again_and_in_bfloat16(name):
    pipe, other = (AutoDiffuseSegPipeline.from_pipe(FAMILIES[name][0]()) for _ in range(2))
    extractor = pipe.features()
    pipe.segmentation_head = head = PixelClassifierEnsemble(
        num_classes=2,
        block_channels=[i.channels for i in extractor.feature_info()[: len(extractor.blocks)]],
        blocks=list(extractor.blocks),
        timesteps=list(extractor.timesteps),
        num_members=1,
        image_size=list(extractor.size),
        in_channels=extractor.in_channels,
    )
    assert {"adapters", "freeu", "noise", "condition"} <= set(head.config.base)
    other.to(torch.bfloat16)
    other.segmentation_head = copy.deepcopy(head)
    pipe.check_can_segment()
    other.check_can_segment()


# FreeU and noise.

SETTINGS = {
    "FreeU": (
        lambda p: p.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4),
        r"FreeU is on \(0.9, 0.2, 1.2, 1.4\) and was off",
    ),
    "zero SNR": (
        lambda p: setattr(
            p, "scheduler", type(p.scheduler).from_config(p.scheduler.config, rescale_betas_zero_snr=True)
        ),
        "betas give another noise level",
    ),
    "betas": (
        lambda p: setattr(p, "scheduler", type(p.scheduler).from_config(p.scheduler.config, beta_end=0.02)),
        "betas give another noise level",
    ),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_freeu_and_other_betas_are_refused_and_a_head_fitted_with_them_is_not(change):
    pipe, (make, message) = composed(), SETTINGS[change]
    masks_of(pipe)
    make(pipe)
    with pytest.raises(UserError, match=message):
        masks_of(pipe)
    with pytest.raises(UserError, match=message):
        pipe.segmentation_head = copy.deepcopy(composed().segmentation_head)
    pipe.segmentation_head = random_head(pipe)
    masks_of(pipe)
    with pytest.raises(UserError):
        composed(pipe.segmentation_head)


def test_samplers_and_how_they_space_timesteps_do_not_matter():
    pipe = composed()
    before = masks_of(pipe)
    for kind, options in ((EulerDiscreteScheduler, {"timestep_spacing": "trailing"}), (DDPMScheduler, {})):
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
        pipe.scheduler.set_timesteps(7)
        assert np.array_equal(masks_of(pipe), before)


# Forms in which the same weights come.


def test_fused_projections_are_accepted():
    pipe = composed()
    before, prints = masks_of(pipe), sketch(pipe.unet)
    pipe.fuse_qkv_projections()
    assert sketch(pipe.unet) == prints
    assert (masks_of(pipe) == before).mean() > 0.99
    pipe.segmentation_head = copy.deepcopy(pipe.segmentation_head)


def test_weights_stored_in_float8_are_accepted_with_a_word(caplog):
    pipe = composed()
    masks_of(pipe)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with caplog.at_level(logging.WARNING):
        masks_of(pipe)
    assert "stored as float8_e4m3fn" in caplog.text
    caplog.clear()
    masks_of(pipe)
    assert not caplog.text, "said once"


class Packed(torch.Tensor):
    """Stands for quantised weights of torchao: no view, but `dequantize`."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.dequantize:
            return args[0].as_subclass(torch.Tensor)
        if getattr(func, "__name__", "") in ("flatten", "view", "reshape"):
            raise NotImplementedError("aten.view")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_quantised_weights_are_read_as_what_they_stand_for():
    layer, other = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    other.load_state_dict(layer.state_dict())
    other.weight = torch.nn.Parameter(other.weight.data.as_subclass(Packed), requires_grad=False)
    assert math.dist(sketch(layer), sketch(other)) == 0
    assert weights_digest(layer) == weights_digest(other)


def test_an_ip_adapter_is_refused_by_its_name():
    pipe = AutoDiffuseSegPipeline.from_pipe(sdxl())
    pipe.unet.config.encoder_hid_dim_type = "ip_image_proj"  # what `load_ip_adapter` leaves
    with pytest.raises(UserError, match="IP-Adapter.*unload_ip_adapter"):
        pipe.features()


# Heads of older versions.


def test_what_an_older_head_does_not_state_is_not_checked_and_one_line_says_so(loras, caplog):
    head = composed().segmentation_head
    old = {k: head.config.base[k] for k in ("model", "revision", "pipeline", "fingerprint")}
    head.register_to_config(base=old)
    with caplog.at_level(logging.WARNING):
        pipe = adapted(loras["style"], head)
    assert caplog.text.count("is not checked") == 1
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    masks_of(pipe)
    raw = sketch(pipe.unet, pipe.vae, raw=True)  # as older versions took fingerprints under an adapter
    head.register_to_config(base=old | {"fingerprint": raw})
    masks_of(adapted(loras["style"], head))
    with pytest.raises(UserError, match="weights differ"):
        AutoDiffuseSegPipeline.from_pipe(flux(), head)


# The command line.


def test_loras_are_loaded_by_path_and_scale(loras, tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "base")
    given = {
        "dtype": "float32",
        "lora": [f"{loras['style']}=0.5", f"{loras['other']}/pytorch_lora_weights.safetensors"],
    }
    pipe = load_pipeline(str(tmp_path / "base"), **given)
    pipe.segmentation_head = random_head(pipe)
    assert [a["scale"] for a in pipe.segmentation_head.config.base["adapters"]] == [0.5, 1]
    pipe.save_pretrained(tmp_path / "head")
    again = load_pipeline(str(tmp_path / "head"), **given)
    assert np.array_equal(masks_of(again), masks_of(pipe))
    with pytest.raises(UserError, match="is not active.*--lora"):
        load_pipeline(str(tmp_path / "head"), dtype="float32")
    with pytest.raises(UserError, match="The LoRA .*nowhere cannot be loaded"):
        load_pipeline(str(tmp_path / "base"), dtype="float32", lora=[str(tmp_path / "nowhere")])
    DiffuseSegPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "pixel")
    with pytest.raises(UserError, match="takes no LoRA; leave --lora out"):
        load_pipeline(str(tmp_path / "pixel"), lora=[loras["style"]])


def test_heads_on_clean_images_are_others_and_older_heads_stay_the_same():
    head = make_head(make_pipeline())
    known = describe_network(head)
    head._internal_dict = FrozenDict({k: v for k, v in head.config.items() if k != "clean"})  # of an older version
    assert describe_network(head) == known
    head.register_to_config(clean=True)
    assert describe_network(head) != known
