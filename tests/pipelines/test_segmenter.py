# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One contract for every kind of model: a diffusion pipeline, a pipeline on a vision model, a student."""

import inspect

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMPipeline, DiffusionPipeline
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, ViTConfig, ViTModel
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from diffuseseg_diffusers import (
    BackbonePipeline,
    DiffuseSegPipeline,
    StudentSegmenter,
    fit_segmentation_head,
)
from diffuseseg_diffusers.heads.ensemble import GUIDED_FORMAT
from diffuseseg_diffusers.heads.guided import joint_bilateral
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines import segmenter
from diffuseseg_diffusers.pipelines.segmenter import Segmenter
from diffuseseg_diffusers.students.unets import UNetStudent, new_unet

from ..conftest import QUICK, draw, drawn_dataset, make_head, make_pipeline


def vision_pipeline() -> BackbonePipeline:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, patch_size=8, image_size=32
    )
    return BackbonePipeline(ViTModel(config).eval(), ViTImageProcessorPil(size={"height": 32, "width": 32}))


def fitted_vision_pipeline() -> BackbonePipeline:
    pipe = vision_pipeline()
    dataset = drawn_dataset(3, size=(32, 32), channels=3)
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, recipe=QUICK, num_members=2)
    return pipe


def student() -> StudentSegmenter:
    torch.manual_seed(0)
    names = {0: "sky", 1: "disc", 2: "bar"}
    small = dict(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1])
    model = SegformerForSemanticSegmentation(SegformerConfig(**small, decoder_hidden_size=16, id2label=names))
    return StudentSegmenter(model.eval(), SegformerImageProcessorPil(size={"height": 32, "width": 32}))


def unet_student() -> UNetStudent:
    torch.manual_seed(0)
    return new_unet(["sky", "disc", "bar"], (16, 16), 1)


MODELS = {"diffusion": lambda: make_pipeline(head=True), "vision": fitted_vision_pipeline, "student": student}
MODELS["U-Net student"] = unet_student


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> Segmenter:
    return MODELS[request.param]()


def test_there_is_one_segment_with_one_signature(model):
    assert type(model).segment is Segmenter.segment
    assert list(inspect.signature(model.segment).parameters)[:4] == [
        "images",
        "batch_size",
        "mask_size",
        "class_labels",
    ]
    assert model.label_names == ["sky", "disc", "bar"] and np.shape(model.palette) == (3, 3)


def test_every_model_gives_the_same_kinds_of_output(model):
    images = [Image.fromarray(draw((20 + i, 31), i)[0]) for i in range(3)]
    pil = model.segment(images, batch_size=2)
    assert [m.mode for m in pil.masks] == ["P"] * 3 and [m.size for m in pil.masks] == [i.size for i in images]
    arrays = model.segment(images, batch_size=2, output_type="np", return_probabilities=True)
    tensors = model.segment(images, batch_size=2, output_type="pt", return_probabilities=True)
    for i in range(3):
        assert np.array_equal(np.asarray(pil.masks[i]), arrays.masks[i])
        assert arrays.masks[i].dtype == np.uint8 and arrays.images[i].shape[:2] == arrays.masks[i].shape
        assert torch.equal(tensors.masks[i], torch.from_numpy(arrays.masks[i]))
        assert tensors.probabilities[i].shape == (3, *tensors.masks[i].shape)
        torch.testing.assert_close(tensors.probabilities[i].sum(0), torch.ones(tensors.masks[i].shape))
        assert np.array_equal(tensors.probabilities[i].numpy(), arrays.probabilities[i])
    assert pil.probabilities is None
    assert [u.shape for u in arrays.uncertainty] == [m.shape for m in arrays.masks]
    assert all(u.dtype == np.float32 and u.min() >= 0 for u in arrays.uncertainty)
    assert len(model.segment(images[0], return_dict=False)) == 3
    assert len(model.segment(images[0], return_dict=False, return_probabilities=True)) == 4
    assert model.segment(images[0], mask_size=(5, 9), output_type="np").masks[0].shape == (5, 9)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(output_type="jpg"), '`output_type` is "pil", "np" or "pt", got \'jpg\''),
        (dict(batch_size=0), "`batch_size` must be at least 1, got 0"),
        (dict(class_labels=[0]), "`class_labels` were given, but the model is not class-conditional"),
        (dict(generator=[torch.Generator()] * 2), "2 generators were given for 1 images"),
    ],
)
def test_every_model_refuses_the_same_in_the_same_words(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model.segment(draw((16, 16), 0)[0], **arguments)


def test_probabilities_are_the_mean_of_the_members_and_decide_the_soft_vote():
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, voting="soft")
    output = pipe.segment(draw((16, 16), 0)[0], output_type="pt", return_probabilities=True)
    assert torch.equal(output.probabilities[0].argmax(0).to(torch.uint8), output.masks[0])


def test_a_model_without_a_head_says_how_to_fit_one():
    for pipe in (make_pipeline(), vision_pipeline()):
        with pytest.raises(UserError, match="no segmentation head; fit one with"):
            pipe.segment(draw((16, 16), 0)[0])


def test_the_arguments_of_a_call_stand_where_those_of_ddpm_pipeline_stand():
    ours, theirs = (list(inspect.signature(c.__call__).parameters) for c in (DiffuseSegPipeline, DDPMPipeline))
    assert ours[: len(theirs)] == theirs
    pipe = make_pipeline()
    plain = DDPMPipeline(pipe.unet, pipe.scheduler)
    plain.set_progress_bar_config(disable=True)
    mine, other = (p(2, torch.Generator().manual_seed(0), 3, "np", False)[0] for p in (pipe, plain))
    np.testing.assert_allclose(mine, other, atol=1e-6)


def generated(pipe, seeds):
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    return pipe(len(seeds), generators, 3, "pt")


def test_a_generator_makes_masks_of_heads_with_fresh_noise_deterministic():
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, share_noise=False)
    first, again = generated(pipe, [1, 2, 3]), generated(pipe, [1, 2, 3])
    assert torch.equal(first.images, again.images) and torch.equal(first.uncertainty, again.uncertainty)
    other = generated(pipe, [7, 2])  # image 2 has another place, and another neighbour
    torch.testing.assert_close(other.images[1], first.images[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.uncertainty[1], first.uncertainty[1], atol=1e-4, rtol=1e-3)
    assert not torch.allclose(other.uncertainty[0], first.uncertainty[0], atol=1e-4)
    one = torch.Generator().manual_seed(5)
    whole = pipe(2, one, 3, "pt").uncertainty
    assert torch.equal(whole, pipe(2, torch.Generator().manual_seed(5), 3, "pt").uncertainty)


def test_a_list_of_generators_gives_each_image_its_own_noise_in_every_batch():
    pipe = make_pipeline()
    pipe.segmentation_head = make_head(pipe, share_noise=False)
    images = [draw((16, 16), i)[0] for i in range(3)]

    def uncertainty(batch_size, seeds, images=images):
        own = [torch.Generator().manual_seed(s) for s in seeds]
        return pipe.segment(images, batch_size, generator=own, output_type="pt").uncertainty

    together, apart = uncertainty(3, [1, 2, 3]), uncertainty(1, [1, 2, 3])
    for a, b in zip(together, apart):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("of_classes", [False, True])
@pytest.mark.parametrize("generators", ["shared noise", "one", "a list"])
def test_an_image_alone_goes_with_its_mirror_image_and_gets_the_same_mask(of_classes, generators, monkeypatch):
    pipe = make_pipeline(**({"num_class_embeds": 4} if of_classes else {}))
    pipe.segmentation_head = make_head(pipe, flip=True, share_noise=generators == "shared noise")
    found, passes = [], []
    pipe.unet.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    for small in (0, 2**16):
        monkeypatch.setattr(segmenter, "SMALL", small)
        own = torch.Generator().manual_seed(3)
        given = {"shared noise": None, "one": own, "a list": [own]}[generators]
        labels = [2] if of_classes else None
        found.append(pipe.segment(draw((16, 16), 0)[0], 1, None, labels, given, "pt", True))
    assert passes == [2, 2, 4]  # two timesteps each
    for a, b in zip(*(output.probabilities for output in found)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_features_are_computed_on_the_execution_device_of_offloaded_weights():
    pipe = make_pipeline(head=True)
    image = draw((16, 16), 0)[0]
    before = pipe.segment(image, output_type="np")
    cpu_offload(pipe.unet, torch.device("cpu"))  # as enable_sequential_cpu_offload does
    assert pipe.unet.device.type == "meta"
    after = pipe.segment(image, output_type="np")
    assert np.array_equal(before.uncertainty[0], after.uncertainty[0])
    assert pipe.unet.device.type == "meta", "the weights are back where they were"
    assert pipe(1, torch.Generator().manual_seed(0), 2, "np").masks.shape == (1, 16, 16)


def test_guided_masks_are_the_filtered_probabilities_at_the_size_of_the_picture(tmp_path):
    pipe, image = make_pipeline(head=True), draw((40, 48), 0)[0]
    asked = dict(output_type="pt", return_probabilities=True)
    plain = pipe.segment(image, **asked)
    pipe.guided = (1.0, 0.1)
    assert pipe.segmentation_head.config.format_version == GUIDED_FORMAT
    found = pipe.segment(image, **asked)
    filtered = joint_bilateral(plain.probabilities[0], torch.from_numpy(image)[None] / 255, 1.0, 0.1)
    torch.testing.assert_close(found.probabilities[0], filtered)
    assert torch.equal(found.masks[0].long(), filtered.argmax(0))
    assert torch.equal(found.uncertainty[0], plain.uncertainty[0])
    assert not torch.equal(found.masks[0], plain.masks[0])
    pipe.save_pretrained(tmp_path)
    loaded = DiffuseSegPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.segment(image, output_type="pt").masks[0], found.masks[0])
    carried = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(carried.segment(image, output_type="pt").masks[0], found.masks[0])
    made = loaded(2, num_inference_steps=2, generator=torch.manual_seed(0), output_type="pt")
    again = loaded.segment(list(made.images), output_type="pt").masks
    assert torch.equal(made.masks, torch.stack(again))
    pipe.guided = None
    assert torch.equal(pipe.segment(image, **asked).masks[0], plain.masks[0])
