# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pipelines of diffusers with a head: the base's own images, masks as of real images, heads that travel alone."""

import inspect
import json
import math
import shutil

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from huggingface_hub import HfApi
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from diffuseseg_diffusers import (
    AutoDiffuseSegPipeline,
    ComposedDiffuseSegPipeline,
    DiffuseSegPipeline,
    evaluate_segmentation,
    fit_segmentation_head,
)
from diffuseseg_diffusers.heads.selection import Budget, choose_features
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.composed import HEAD, nearest_steps, sampled_activations
from diffuseseg_diffusers.pipelines.identity import sketch
from diffuseseg_diffusers.pipelines.loading import load_pipelines
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import QUICK, drawn_dataset, make_pipeline, make_unet
from ..tiny_pipelines import FAMILIES, dit, flux, sd3, stable_diffusion


SIZES = {"DiT": (16, 16), "consistency": (16, 16), "Sana": (32, 64)}


def composed(name: str, **fit) -> ComposedDiffuseSegPipeline:
    base = FAMILIES[name][0]()
    base.set_progress_bar_config(disable=True)
    pipe = AutoDiffuseSegPipeline.from_pipe(base)
    size = SIZES.get(name, (16, 16) if "latent" in name else (16, 24))
    given = {"recipe": QUICK, "num_members": 2, "size": size, **fit}
    pipe.segmentation_head = fit_segmentation_head(pipe, drawn_dataset(3, channels=3), **given)
    return pipe


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_are_the_bases_bit_for_bit_and_masks_are_those_of_the_images(name):
    pipe, call = composed(name), {**FAMILIES[name][1], "num_inference_steps": 3}
    plain = pipe.base(**call, output_type="np", generator=seeded()).images
    output = pipe(**call, output_type="np", generator=seeded())
    assert np.array_equal(output.images, plain)
    found = pipe.segment(list(output.images), output_type="np")
    assert np.array_equal(output.masks, np.stack(found.masks))
    assert np.array_equal(output.uncertainty, np.stack(found.uncertainty))
    pictures = pipe(**call, generator=seeded())
    own = pipe.base(**call, generator=seeded()).images
    assert [p.tobytes() for p in pictures.images] == [p.tobytes() for p in own]
    assert pictures.masks[0].mode == "P" and pictures.masks[0].size == own[0].size


@pytest.mark.parametrize("name", ["Stable Diffusion", "DiT", "SD3", "Flux", "Sana", "PixArt-α"])
def test_under_guidance_activations_while_sampling_are_those_of_the_half_with_the_prompt(name):
    pipe, call = composed(name), {**FAMILIES[name][1], "num_inference_steps": 4}
    call |= {"true_cfg_scale": 2.0, "negative_prompt": "a house"} if name == "Flux" else {"guidance_scale": 3.0}
    extractor, passes = pipe.head_extractor(), []

    def record(module, args, kwargs):
        passes.append((args, kwargs))

    hook = extractor.model.register_forward_pre_hook(record, with_kwargs=True)
    with nearest_steps(extractor) as steps:
        images = pipe.base(**call, output_type="np", generator=seeded()).images
    hook.remove()
    found = sampled_activations(extractor, steps, images.shape)
    per_step = len(passes) // len(pipe.scheduler.timesteps)
    levels = [math.log(extractor.schedule.ratio(extractor.timestep_of(*p))) for p in passes[::per_step]]
    grid = extractor.latent_grid(*images.shape[1:3])
    for i, t in enumerate(extractor.timesteps):
        wanted = math.log(extractor.schedule.ratio(t))
        nearest = min(range(len(levels)), key=lambda j: abs(levels[j] - wanted))
        args, kwargs = passes[per_step * nearest]  # of Flux, the first of two passes
        with torch.no_grad(), extractor.reading() as seen:
            extractor.model(*half(args, pipe, name), **half(kwargs, pipe, name))
        for j, block in enumerate(extractor.blocks):
            expected = extractor.as_map(seen[block], grid)
            got = found[i * len(extractor.blocks) + j]
            assert got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-3, atol=1e-3)
    output = pipe(**call, output_type="np", masks_while_sampling=True, generator=seeded())
    assert np.array_equal(output.images, images) and output.masks.shape == images.shape[:3]


def half(given, pipe, name: str):
    """The conditional half of what a denoiser was given; Flux makes two passes in its place."""
    if isinstance(given, dict):
        return {k: half(v, pipe, name) for k, v in given.items()}
    if isinstance(given, tuple):
        return tuple(half(v, pipe, name) for v in given)
    if not isinstance(given, torch.Tensor) or given.ndim == 0 or len(given) != 2 or name == "Flux":
        return given
    return given[:1] if name == "DiT" else given[1:]


def test_everything_of_the_base_is_there_and_nothing_of_it_is_changed():
    base = stable_diffusion()
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}
    pipe = AutoDiffuseSegPipeline.from_pipe(base)
    assert pipe.unet is base.unet and pipe.vae is base.vae and pipe.components["unet"] is base.unet
    pipe.scheduler = DDPMScheduler.from_config(base.scheduler.config)
    assert base.scheduler is pipe.scheduler
    pipe.enable_attention_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()
    head = fit_segmentation_head(pipe, drawn_dataset(3, channels=3), recipe=QUICK, num_members=2, size=(16, 24))
    pipe.segmentation_head = head
    assert pipe.components["segmentation_head"] is head and pipe.to("cpu") is pipe
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())
    assert AutoDiffuseSegPipeline.from_pipe(pipe) is pipe
    with pytest.raises(AttributeError):
        pipe.no_such_thing  # noqa: B018


def test_pipelines_on_pixels_are_our_own_and_unknown_ones_are_refused_by_name(tmp_path):
    ddpm = DDPMPipeline(make_unet(), DDPMScheduler())
    assert type(AutoDiffuseSegPipeline.from_pipe(ddpm)) is DiffuseSegPipeline
    ddpm.save_pretrained(tmp_path / "ddpm")
    assert type(AutoDiffuseSegPipeline.from_pretrained(tmp_path / "ddpm")) is DiffuseSegPipeline

    class Strange(DiffusionPipeline):
        def __init__(self, prior):
            super().__init__()
            self.register_modules(prior=prior)

    with pytest.raises(UserError, match=r"prior \(UNet2DModel\).*unet \(UNet2DConditionModel with a vae\)"):
        AutoDiffuseSegPipeline.from_pipe(Strange(make_unet()))
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoDiffuseSegPipeline()


@pytest.mark.parametrize("make", [stable_diffusion, sd3, dit])
def test_a_head_travels_alone_and_fetches_its_base(make, tmp_path):
    make().save_pretrained(tmp_path / "base")
    pipe = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "base")
    images = drawn_dataset(3, channels=3)
    size, prompt = ((16, 16), None) if make is dit else ((16, 24), "a face")
    pipe.segmentation_head = fit_segmentation_head(pipe, images, recipe=QUICK, num_members=2, size=size, prompt=prompt)
    pipe.save_pretrained(tmp_path / "head")
    files = sorted(p.relative_to(tmp_path / "head").as_posix() for p in (tmp_path / "head").rglob("*") if p.is_file())
    assert files == [
        "model_index.json",
        "segmentation_head/config.json",
        "segmentation_head/diffusion_pytorch_model.safetensors",
    ]
    config = json.loads((tmp_path / "head" / "segmentation_head" / "config.json").read_text())
    assert config["base"]["model"] == str(tmp_path / "base") and config["prompt"] == prompt
    assert len(config["base"]["fingerprint"]) == 16 and config["format_version"] == 3
    again = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "head")
    masks = [p.segment([images[0].image], output_type="np").masks[0] for p in (pipe, again)]
    assert np.array_equal(*masks)
    # Moved away, the base is asked for, and taken from where it is said to be.
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is not in .*base any more; give `base_model`"):
        AutoDiffuseSegPipeline.from_pretrained(tmp_path / "head")
    moved = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "head", base_model=tmp_path / "moved")
    assert np.array_equal(moved.segment([images[0].image], output_type="np").masks[0], masks[0])
    # Beside a student, the base is that of the head; of two heads it could be either's.
    new_unet(pipe.label_names, pipe.image_size, 3).save_pretrained(tmp_path / "student")
    shutil.copytree(tmp_path / "head", tmp_path / "other")
    head, other, student = (str(tmp_path / name) for name in ("head", "other", "student"))
    given = {"device": "cpu", "dtype": "float32", "base_model": str(tmp_path / "moved")}
    found = load_pipelines([head, student, f"{head} + {student}"], **given)
    assert np.array_equal(found[head].segment([images[0].image], output_type="np").masks[0], masks[0])
    assert found[f"{head} + {student}"].nbytes == found[head].nbytes + found[student].nbytes
    for names, message in (
        ([head, other, student], "--base_model can be of any of .*head, .*other"),
        ([student], "not a head"),
    ):
        with pytest.raises(UserError, match=message):
            load_pipelines(names, **given)


def test_the_call_shows_the_bases_signature_and_the_arguments_of_ours():
    pipe = AutoDiffuseSegPipeline.from_pipe(stable_diffusion())
    own = list(inspect.signature(pipe.__call__).parameters)
    base = list(inspect.signature(pipe.base.__call__).parameters)
    assert [name for name in own if name != "masks_while_sampling"] == base and "masks_while_sampling" in own
    assert "Generates images exactly as the base does" in pipe.__call__.__doc__


def test_the_bases_feature_extractor_is_its_component():
    base = stable_diffusion()
    pipe = AutoDiffuseSegPipeline.from_pipe(base)
    processor = base.feature_extractor = CLIPImageProcessorPil()
    assert pipe.feature_extractor is processor and pipe.components["feature_extractor"] is processor
    assert pipe.features().taps and make_pipeline().feature_extractor().taps == make_pipeline().features().taps


def test_moving_to_a_precision_moves_the_head_and_callbacks_and_latents_are_the_bases():
    pipe = composed("Stable Diffusion")
    seen = []

    def callback(base, step, timestep, tensors):
        seen.append(tensors["latents"].shape)
        return {"latents": torch.zeros_like(tensors["latents"])}

    call = {**FAMILIES["Stable Diffusion"][1], "num_inference_steps": 2, "generator": seeded()}
    output = pipe(**call, callback_on_step_end=callback, output_type="latent")
    assert len(seen) == 2 and output.images.shape == seen[0] and not output.images.any() and output.masks is None
    with pytest.raises(UserError, match="comes without masks"):
        pipe(**call, output_type="latent", masks_while_sampling=True)
    for given in ((torch.float16,), ("cpu", torch.float16)):
        pipe.to(torch.float32).to(*given)
        assert pipe.segmentation_head.dtype == pipe.unet.dtype == torch.float16
    assert pipe.to(dtype=torch.float32).segmentation_head.dtype == torch.float32


def test_a_push_is_of_the_head_and_loads_again_with_its_base(hub, tmp_path):
    stable_diffusion().save_pretrained(tmp_path / "base")
    HfApi().create_repo("alice/pushed-base")
    HfApi().upload_folder(repo_id="alice/pushed-base", folder_path=tmp_path / "base")
    images = drawn_dataset(3, channels=3)
    for where in (tmp_path / "base", "alice/pushed-base"):
        pipe = AutoDiffuseSegPipeline.from_pretrained(where)
        fit = {"recipe": QUICK, "num_members": 2, "size": (16, 24)}
        pipe.segmentation_head = fit_segmentation_head(pipe, images, **fit)
        if where != "alice/pushed-base":
            with pytest.raises(UserError, match="which nobody else can load; push the base"):
                pipe.push_to_hub("alice/pushed-head")
    pipe.push_to_hub("alice/pushed-head")
    files = set(HfApi().list_repo_files("alice/pushed-head")) - {".gitattributes", "README.md"}
    assert files == {"model_index.json", f"{HEAD}/config.json", f"{HEAD}/diffusion_pytorch_model.safetensors"}
    expected = pipe.segment([images[0].image], output_type="np").masks[0]
    for load in (AutoDiffuseSegPipeline.from_pretrained, ComposedDiffuseSegPipeline.from_pretrained):
        again = load("alice/pushed-head", cache_dir=tmp_path / "cache")
        assert np.array_equal(again.segment([images[0].image], output_type="np").masks[0], expected)


def test_keywords_of_diffusers_are_taken_in_saving_and_loading(tmp_path, caplog):
    stable_diffusion().save_pretrained(tmp_path / "base")
    pipe = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "base")
    fit = {"recipe": QUICK, "num_members": 2, "size": (16, 24)}
    pipe.segmentation_head = fit_segmentation_head(pipe, drawn_dataset(3, channels=3), **fit)
    pipe.save_pretrained(tmp_path / "head", safe_serialization=False, variant="fp16", max_shard_size="1GB")
    assert "pickled heads are not loaded" in caplog.text
    assert (tmp_path / "head" / HEAD / "diffusion_pytorch_model.fp16.safetensors").is_file()
    dtypes = {"unet": torch.bfloat16, "default": torch.float16}
    again = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "head", variant="fp16", dtype=dtypes)
    assert (again.segmentation_head.dtype, again.unet.dtype) == (torch.float16, torch.bfloat16)
    with pytest.raises(UserError, match="variant=bf16"):
        AutoDiffuseSegPipeline.from_pretrained(tmp_path / "base", variant="bf16")


def test_a_head_on_another_base_is_refused_with_both_fingerprints(tmp_path):
    pipe, other = composed("SD3"), sd3()
    with torch.no_grad():
        for p in other.transformer.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(9))
    with pytest.raises(UserError, match=r"fitted on a St.*\(fingerprint [-+\d. ]+\), but this is a .*\(fingerprint"):
        AutoDiffuseSegPipeline.from_pipe(other, pipe.segmentation_head)


def test_the_fingerprint_is_the_same_in_every_precision_and_another_after_training():
    model = flux().transformer
    exact = sketch(model)
    for dtype in (torch.bfloat16, torch.float16):
        assert math.dist(exact, sketch(flux().transformer.to(dtype))) < 0.005
    with torch.no_grad():
        for p in model.parameters():
            p += 0.03 * p.std(correction=0) * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    assert math.dist(exact, sketch(model)) > 0.01
    with pytest.raises(UserError, match="offloaded"):
        sketch(model.to("meta"))


def test_without_a_head_images_come_without_masks_and_nothing_is_segmented():
    pipe = AutoDiffuseSegPipeline.from_pipe(stable_diffusion())
    pipe.set_progress_bar_config(disable=True)
    images, masks, uncertainty = pipe("a face", height=16, width=24, num_inference_steps=2, return_dict=False)
    assert masks is None and uncertainty is None and images[0].size == (24, 16)
    with pytest.raises(UserError, match="no segmentation head"):
        pipe.segment([images[0]])
    with pytest.raises(UserError, match="Masks while sampling need a segmentation head"):
        pipe("a face", masks_while_sampling=True)
    with pytest.raises(UserError, match="no segmentation head to save"):
        pipe.save_pretrained("nowhere")


def test_features_are_chosen_and_measured_as_of_any_model():
    pipe, dataset = AutoDiffuseSegPipeline.from_pipe(sd3()), drawn_dataset(4, channels=3)
    best = choose_features(
        pipe, dataset, QUICK, timesteps=[100], folds=2, size=(16, 24), budget=Budget(bytes=2000), show_progress=False
    )
    assert all(c["bytes"] <= 2000 for c in best) and set(best[0]["blocks"]) <= {0, 1, 2, 3}
    pipe.segmentation_head = fit_segmentation_head(
        pipe, dataset, best[0]["blocks"], recipe=QUICK, num_members=2, noise_levels=[0.2], size=(16, 24)
    )
    assert pipe.segmentation_head.config.timesteps == [167]  # σ / (1 - σ) = 0.2
    assert 0 <= evaluate_segmentation(pipe, dataset, show_progress=False)[0]["mean_iou"] <= 1


@pytest.mark.parametrize("name", ["Stable Diffusion", "SD3", "Flux"])
def test_weights_that_are_elsewhere_between_passes_give_the_same_masks(name):
    pipe, images = composed(name), [drawn_dataset(1, channels=3)[0].image]
    expected = pipe.segment(images, output_type="np").masks[0]
    for component in pipe.base.components.values():
        if isinstance(component, torch.nn.Module):
            cpu_offload(component, torch.device("cpu"))  # as `enable_sequential_cpu_offload`, without an accelerator
    assert pipe.denoiser.device.type == "meta"
    for _ in range(2):
        assert np.array_equal(pipe.segment(images, output_type="np").masks[0], expected)
