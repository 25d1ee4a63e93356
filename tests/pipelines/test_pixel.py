# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler
from PIL import Image, ImageOps

from diffuseseg_diffusers import DiffuseSegPipeline, fit_segmentation_head

from ..conftest import QUICK, draw, drawn_dataset, make_head, make_pipeline, make_unet, shared


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_it_generates_images_with_masks_in_every_output_type(channels):
    pipe = make_pipeline(head=True, in_channels=channels, out_channels=channels, sample_size=(16, 24))
    pt = pipe(2, seeded(), 3, output_type="pt")
    assert pt.images.shape == (2, channels, 16, 24) and 0 <= pt.images.min() and pt.images.max() <= 1
    assert pt.masks.shape == (2, 16, 24) and pt.masks.dtype == torch.uint8 and pt.masks.max() < 3
    assert pt.uncertainty.shape == (2, 16, 24) and pt.uncertainty.dtype == torch.float32
    array = pipe(2, seeded(), 3, output_type="np")
    assert array.images.shape == (2, 16, 24, channels)
    assert np.array_equal(array.masks, pt.masks) and np.array_equal(array.uncertainty, pt.uncertainty)
    pil = pipe(2, seeded(), 3)
    assert [(i.mode, i.size) for i in pil.images] == [("L" if channels == 1 else "RGB", (24, 16))] * 2
    assert [m.mode for m in pil.masks] == ["P", "P"] and np.array_equal(np.stack(pil.masks), array.masks)
    images, masks, uncertainty = pipe(2, seeded(), 3, return_dict=False)
    assert np.array_equal(np.stack(images), np.stack(pil.images)) and len(masks) == 2


def test_generated_images_are_those_of_ddpm_pipeline():
    pipe = make_pipeline()
    plain = DDPMPipeline(pipe.unet, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    ours = pipe(2, seeded(), 5, output_type="np").images
    np.testing.assert_allclose(ours, plain(2, seeded(), 5, output_type="np").images, atol=1e-6)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_can_be_swapped_in_and_masks_stay_the_same(scheduler):
    pipe = make_pipeline(head=True)
    image = draw((16, 16), 0)[0]
    before = pipe.segment(image, output_type="np")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    output = pipe(1, seeded(), 4, output_type="np")
    after = pipe.segment(image, output_type="np")
    assert np.isfinite(output.images).all()
    assert np.array_equal(before.masks[0], after.masks[0])
    mask = pipe.segment(output.images, output_type="np").masks[0]
    assert np.array_equal(mask, output.masks[0])


@pytest.mark.parametrize("variance_type", ["fixed_small", "learned_range"])
@pytest.mark.parametrize("scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("channels", [1, 3])
def test_unets_that_predict_variance_work_with_every_scheduler(channels, scheduler, variance_type):
    unet = make_unet(in_channels=channels, out_channels=2 * channels)
    config = {} if scheduler is DDIMScheduler else {"variance_type": variance_type}
    pipe = DiffuseSegPipeline(unet, scheduler(**config))
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, seeded(), 3, output_type="pt").images
    assert images.shape == (2, channels, 16, 16) and images.isfinite().all()


def test_class_conditional_unets_take_labels_or_use_class_zero():
    pipe = make_pipeline(head=True, num_class_embeds=4)
    default = pipe(2, seeded(), 3, output_type="np").images
    assert np.array_equal(default, pipe(2, seeded(), 3, class_labels=0, output_type="np").images)
    given = pipe(2, seeded(), 3, class_labels=[0, 3], output_type="np").images
    np.testing.assert_allclose(given[0], default[0], atol=1e-5)
    assert not np.allclose(given[1], default[1], atol=1e-3)
    with pytest.raises(ValueError, match="3 class labels were given for 2 images"):
        pipe(2, 3, class_labels=[0, 1, 2])
    with pytest.raises(ValueError, match="not class-conditional"):
        make_pipeline()(1, None, 2, class_labels=[0])


@pytest.mark.parametrize("name", ["latents", "sample"])  # the second as in 0.1
def test_callbacks_see_every_step_and_may_change_the_latents(name):
    pipe, seen = make_pipeline(), []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep, list(tensors)))
        return {name: torch.zeros_like(tensors[name])} if step == 2 else {}

    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": [name]}
    output = pipe(1, seeded(), 3, **given, output_type="pt")
    assert [s[0] for s in seen] == [0, 1, 2] and {tuple(s[2]) for s in seen} == {(name,)} and pipe.num_timesteps == 3
    assert (output.images == 0.5).all()
    latents, masks, _ = pipe(1, seeded(), 3, **given, output_type="latent", return_dict=False)
    assert (latents == 0).all() and masks is None
    with pytest.raises(ValueError, match="Callbacks get"):
        pipe(1, None, 2, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_without_a_head_it_generates_and_says_how_to_fit_one(caplog):
    pipe = make_pipeline()
    logger = logging.getLogger("diffuseseg_diffusers.pipelines.pixel")
    logger.addHandler(caplog.handler)
    try:
        output = pipe(1, None, 2)
    finally:
        logger.removeHandler(caplog.handler)
    assert output.images[0].size == (16, 16) and output.masks is None and output.uncertainty is None
    assert "fit_segmentation_head(pipe, dataset)" in caplog.text
    with pytest.raises(ValueError, match="no segmentation head; fit one with"):
        pipe.segment(draw((16, 16), 0)[0])


def test_it_segments_pictures_of_any_kind_size_and_mode_at_their_own_size(tmp_path):
    pipe = make_pipeline(head=True)
    pictures = [Image.fromarray(draw((30 + i, 41), i, 3 if i % 2 else 1)[0]) for i in range(3)]
    pictures[0].save(tmp_path / "a.png")
    given = [tmp_path / "a.png", pictures[1], np.asarray(pictures[2]), torch.rand(3, 16, 16)]
    output = pipe.segment(given, batch_size=3)
    assert [m.size for m in output.masks] == [(41, 30), (41, 31), (41, 32), (16, 16)]
    assert [u.shape for u in output.uncertainty] == [(30, 41), (31, 41), (32, 41), (16, 16)]
    assert [i.size for i in output.images] == [m.size for m in output.masks]
    single = pipe.segment(pictures[1]).masks[0]
    assert np.array_equal(np.asarray(single), np.asarray(output.masks[1]))
    resized = pipe.segment(pictures[1], mask_size=(5, 9), output_type="pt")
    assert resized.masks[0].shape == (5, 9) and resized.images[0].shape == (1, 31, 41)


def test_the_mask_is_computed_at_the_size_of_the_picture_not_resized():
    pipe = make_pipeline(head=True)
    picture = draw((64, 64), 3)[0]
    fine = pipe.segment(picture, output_type="np").masks[0]
    coarse = pipe.segment(picture, mask_size=(16, 16), output_type="np").masks[0]
    assert fine.shape == (64, 64) and not np.array_equal(fine, coarse.repeat(4, 0).repeat(4, 1))


def test_a_head_that_sees_mirror_images_gives_them_nearly_the_mirrored_mask():
    pipe, dataset = make_pipeline(), drawn_dataset()
    recipe = replace(QUICK, flip=True, mirror=True, voting="soft")
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=recipe, num_members=6)
    image = dataset[0].image
    straight, other = pipe.segment([image, ImageOps.mirror(image)], output_type="np").masks
    assert (straight == other[:, ::-1]).mean() > 0.9 and (straight != straight[:, ::-1]).any()
    assert (straight == dataset[0].mask).mean() > 0.9
    passes = []
    pipe.unet.conv_in.register_forward_hook(lambda m, a, o: passes.append(len(o)))
    pipe(num_inference_steps=4, masks_while_sampling=True)
    assert passes == [1] * 4, "masks while sampling cost no pass, and see no mirror image"


def test_the_batch_size_changes_no_mask():
    pipe = make_pipeline(head=True)
    pictures = [draw((16, 16), i)[0] for i in range(5)]
    one, four = (pipe.segment(pictures, batch_size=b, output_type="np").masks for b in (1, 4))
    assert np.mean([(a == b).mean() for a, b in zip(one, four)]) > 0.999


def test_heads_with_fresh_noise_are_deterministic_with_a_generator():
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, share_noise=False)
    picture = draw((16, 16), 0)[0]
    a, b = (pipe.segment(picture, generator=seeded(), output_type="np").uncertainty[0] for _ in range(2))
    c = pipe.segment(picture, generator=seeded(1), output_type="np").uncertainty[0]
    assert np.array_equal(a, b) and not np.array_equal(a, c)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_agrees_but_for_edges(dtype):
    pipe = make_pipeline(head=True)
    pictures = [draw((16, 16), i)[0] for i in range(4)]
    exact = pipe.segment(pictures, output_type="np").masks
    pipe.to(dtype)
    rough = pipe.segment(pictures, output_type="np")
    assert rough.uncertainty[0].dtype == np.float32
    assert np.mean([(a == b).mean() for a, b in zip(exact, rough.masks)]) > 0.9
    assert pipe(1, seeded(), 3, output_type="pt").images.dtype == torch.float32


@pytest.mark.parametrize("fitted_later", [False, True])
def test_saving_and_loading_round_trips_bit_for_bit(fitted_later, tmp_path):
    pipe = make_pipeline(head=not fitted_later)
    if fitted_later:  # diffusers alone would forget a component that was None at first
        pipe.segmentation_head = make_head(pipe)
    pipe.save_pretrained(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]
    again = DiffuseSegPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    for a, b in ((pipe.unet, again.unet), (pipe.segmentation_head, again.segmentation_head)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    one, two = pipe(2, seeded(), 3, output_type="pt"), again(2, seeded(), 3, output_type="pt")
    assert torch.equal(one.images, two.images) and torch.equal(one.masks, two.masks)
    assert torch.equal(one.uncertainty, two.uncertainty)
    again.segmentation_head = None
    again.save_pretrained(tmp_path / "headless")
    assert DiffuseSegPipeline.from_pretrained(tmp_path / "headless").segmentation_head is None


def test_a_plain_ddpm_folder_loads_as_it_stands(tmp_path):
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    pipe = DiffuseSegPipeline.from_pretrained(tmp_path)
    assert pipe.segmentation_head is None and pipe.unet.config.sample_size == 16


def test_a_head_that_does_not_fit_is_refused_with_both_numbers():
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="fitted on images of 3 channels, but the model takes 1"):
        DiffuseSegPipeline(pipe.unet, pipe.scheduler, make_head(pipe, in_channels=3))
    with pytest.raises(ValueError, match=r"with \[7, 16, 8\] channels, but this model's blocks have \[24, 16, 8\]"):
        DiffuseSegPipeline(pipe.unet, pipe.scheduler, make_head(pipe, block_channels=[7, 16, 8]))
    with pytest.raises(ValueError, match="Block 9 does not exist: this model has blocks 0 to 5"):
        DiffuseSegPipeline(
            pipe.unet,
            pipe.scheduler,
            make_head(pipe, blocks=(1, 3, 5)).from_config({**make_head(pipe).config, "blocks": [1, 3, 9]}),
        )
    pipe.segmentation_head = make_head(pipe, image_size=[18, 18])
    with pytest.raises(ValueError, match="multiples of 4, got 18 × 18"):
        pipe.segment(draw((16, 16), 0)[0])


def test_wrong_output_types_are_refused_before_the_work():
    pipe = make_pipeline(head=True)
    for call in (lambda: pipe(1, None, 2, output_type="jpg"), lambda: pipe.segment("none.png", output_type="jpg")):
        with pytest.raises(ValueError, match='"pil", "np" or "pt"'):
            call()


def test_the_shared_checkpoint_generates_faces_not_noise():
    pipe = DiffuseSegPipeline.from_pretrained(shared("checkpoints/faces64-ddpm"))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    images = pipe(4, seeded(), 10, output_type="np").images
    neighbours = np.abs(np.diff(images, axis=2)).mean()
    assert neighbours < 0.08 and images.std() > 0.1  # smooth, with contrast; noise would be 0.3 or more
