# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Vision backbones of transformers with random weights in the U-Net's seat."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    ConvNextConfig,
    ConvNextModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LevitConfig,
    LevitModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from diffuseseg_diffusers import evaluate_segmentation, fit_segmentation_head
from diffuseseg_diffusers.features.vision import VisionFeatureExtractor
from diffuseseg_diffusers.pipelines.backbone import BackbonePipeline, load_backbone

from ..conftest import QUICK, draw, drawn_dataset, run


SMALL = dict(hidden_size=24, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, patch_size=8)
BACKBONES = {
    "vit": lambda: ViTModel(ViTConfig(**SMALL, image_size=32)),
    "mae": lambda: ViTMAEModel(ViTMAEConfig(**SMALL, image_size=32, mask_ratio=0.75)),
    "dinov2": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SMALL, image_size=32)),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    ),
    "resnet": lambda: ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
    "convnext": lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
}


def make(kind: str, seed: int = 0) -> BackbonePipeline:
    torch.manual_seed(seed)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return BackbonePipeline(BACKBONES[kind]().eval(), processor)


@pytest.mark.parametrize("kind", BACKBONES)
def test_hidden_states_are_maps_that_follow_the_image(kind):
    extractor = make(kind).features()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    features = extractor(images)
    for activation, info in zip(features.activations, extractor.feature_info(), strict=True):
        assert activation.shape == (2, info.channels, info.height, info.width) and info.timestep == 0
    changed = images.clone()
    changed[1, :, 24:, 24:] = 1  # the lower right corner
    first, info = extractor(changed).activations[0], extractor.feature_info()[0]
    difference = (first - features.activations[0]).abs().sum(1)
    assert difference[0].max() < 1e-5
    most = difference[1].flatten().argmax().item()
    assert most // info.width >= info.height / 2 and most % info.width >= info.width / 2


def test_mae_sees_all_patches_in_their_places():
    pipe = make("mae")
    plain = ViTModel(ViTConfig(**SMALL, image_size=32)).eval()
    missing, _ = plain.load_state_dict(pipe.backbone.state_dict(), strict=False)
    assert all("pooler" in name for name in missing)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected = plain(images, output_hidden_states=True).hidden_states
    extractor = VisionFeatureExtractor(pipe.backbone, pipe.image_processor, [0, 2, 4])
    for block, activation in zip(extractor.blocks, extractor(images).activations):
        torch.testing.assert_close(activation, expected[block][:, 1:].mT.unflatten(2, (4, 4)))


def test_a_head_on_a_backbone_is_fitted_evaluated_saved_and_loaded(tmp_path):
    pipe = make("vit")
    dataset = drawn_dataset(6, size=(32, 40), channels=3)
    pipe.segmentation_head = fit_segmentation_head(pipe, dataset, blocks=[1, 4], recipe=QUICK, num_members=3)
    metrics, _ = evaluate_segmentation(pipe, dataset)
    assert metrics["mean_iou"] > 0.6
    pipe.save_pretrained(tmp_path)
    loaded = BackbonePipeline.from_pretrained(tmp_path)
    picture = draw((48, 30), 3)[0]  # grey
    mine, theirs = (p.segment(picture, output_type="np") for p in (pipe, loaded))
    assert mine.masks[0].shape == (48, 30)
    assert np.array_equal(mine.masks[0], theirs.masks[0]) and np.array_equal(mine.uncertainty[0], theirs.uncertainty[0])


def test_models_without_a_place_in_the_image_are_refused(tmp_path):
    processor = make("vit").image_processor
    with pytest.raises(ValueError, match="Block 9 does not exist: this model has blocks 0 to 4"):
        VisionFeatureExtractor(make("vit").backbone, processor, [9])
    bert = BertModel(BertConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32))
    with pytest.raises(ValueError, match="BertModel takes no images"):
        VisionFeatureExtractor(bert, processor)
    mixed = LevitConfig(image_size=32, hidden_sizes=[16, 32, 48], num_attention_heads=[1, 2, 3], depths=[1, 1, 1])
    with pytest.raises(ValueError, match="which has no place in the image"):  # it gives tokens of changing grids
        VisionFeatureExtractor(LevitModel(mixed), processor)
    with pytest.raises(ValueError, match="The backbone .* cannot be loaded"):
        load_backbone(str(tmp_path))


@pytest.mark.slow
def test_the_commands_take_a_backbone(tmp_path):
    folder = make("resnet")
    folder.backbone.save_pretrained(tmp_path / "resnet")
    folder.image_processor.save_pretrained(tmp_path / "resnet")
    (tmp_path / "drawn" / "data").mkdir(parents=True)
    for split, seed in (("train", 0), ("test", 9)):
        rows = drawn_dataset(4, size=(32, 32), seed=seed, channels=3).dataset
        rows.to_parquet(tmp_path / "drawn" / "data" / f"{split}-00000-of-00001.parquet")
    data = ("--dataset_name", tmp_path / "drawn", "--cache_dir", tmp_path / "cache")
    fit = ("diffuseseg", "fit", "--backbone", tmp_path / "resnet", *data, "--num_members", "2", "--recipe", "fast")
    for name, dtype in (("out", "float32"), ("half", "bfloat16")):
        run(*fit, "--output_dir", tmp_path / name, "--dtype", dtype, OMP_NUM_THREADS="1")
        assert json.loads((tmp_path / name / "head_training.json").read_text())["dtype"] == dtype
    weights = "segmentation_head/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() != (tmp_path / "half" / weights).read_bytes()
    said = run(
        *("diffuseseg", "evaluate", "--model", tmp_path / "out", *data, "--output_dir", tmp_path / "eval"),
        OMP_NUM_THREADS="1",
    )
    assert "mean IoU" in said.stdout
    Image.fromarray(draw((40, 50), 1, 3)[0]).save(tmp_path / "image.png")
    run(
        *("diffuseseg", "segment", tmp_path / "image.png", "--model", tmp_path / "out"),
        *("--output_dir", tmp_path / "masks"),
        OMP_NUM_THREADS="1",
    )
    assert Image.open(tmp_path / "masks" / "image_mask.png").size == (50, 40)
    run(*fit, "--blocks", "auto", "--output_dir", tmp_path / "auto")
    assert json.loads((tmp_path / "auto" / "head_training.json").read_text())["selection"][0]["timesteps"] == [0]
