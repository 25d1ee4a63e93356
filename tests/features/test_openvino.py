# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch

from diffuseseg_diffusers import AutoDiffuseSegPipeline, UserError, load_pipeline

from ..conftest import make_pipeline, run
from ..tiny_pipelines import stable_diffusion


pytest.importorskip("openvino", reason="needs the extra openvino")

from diffuseseg_diffusers.features.openvino import OpenVINOEngine  # noqa: E402


@pytest.mark.parametrize("noise", [{"clean": True}, {"share_noise": False}])
def test_a_pass_sees_what_pytorch_sees_for_any_blocks_timesteps_and_batch(noise):
    pipe = make_pipeline()
    plain = pipe.features([1, 3], [50], **noise)
    pipe.engine = OpenVINOEngine(pipe.unet)
    engine = pipe.features([1, 3], [50], **noise)
    for extractor, other in ((plain, engine), (plain.choose([1, 3], [7, 400]), engine.choose([1, 3], [7, 400]))):
        assert other.engine is pipe.engine
        for n in (1, 3):
            images = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1
            pair = [one(images, generator=torch.Generator().manual_seed(5)) for one in (extractor, other)]
            for expected, found in zip(*(one.activations for one in pair)):
                assert found.dtype == expected.dtype
                scale = float(expected.abs().max())
                torch.testing.assert_close(found, expected, atol=5e-3 * scale, rtol=0)


def test_other_weights_are_seen_and_nothing_of_the_model_changes():
    pipe = make_pipeline()
    pipe.engine = OpenVINOEngine(pipe.unet)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    images = torch.zeros(1, 1, 16, 16)
    first = pipe.features([2], [50], clean=True)(images).activations[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())
    assert pipe.unet.training is False
    with torch.no_grad():
        pipe.unet.conv_in.bias.add_(1.0)
    changed = pipe.features([2], [50], clean=True)
    found, expected = changed(images).activations[0], None
    changed.engine = None
    expected = changed(images).activations[0]
    torch.testing.assert_close(found, expected, atol=5e-3 * float(expected.abs().max()), rtol=0)
    assert not torch.allclose(found, first, atol=1e-2)


def test_masks_are_those_of_pytorch_by_the_command_line_too(tmp_path):
    from PIL import Image

    pipe = make_pipeline(head=True)
    pipe.save_pretrained(tmp_path / "model")
    Image.fromarray((torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()).save(
        tmp_path / "image.png"
    )
    masks = []
    for engine in ("pytorch", "openvino"):
        out = tmp_path / engine
        given = ("--model", tmp_path / "model", "--engine", engine, "--dtype", "float32", "--output_dir", out)
        run("diffuseseg", "segment", tmp_path / "image.png", *given)
        masks.append(torch.tensor(list(Image.open(next(out.rglob("*mask*.png"))).getdata())))
    assert (masks[0] == masks[1]).float().mean() >= 0.99


def test_what_it_cannot_compute_is_refused_with_what_to_do(tmp_path):
    make_pipeline(num_class_embeds=3).save_pretrained(tmp_path / "classes")
    with pytest.raises(UserError, match="conditioned on classes, which --engine openvino does not compute"):
        load_pipeline(tmp_path / "classes", engine="openvino")
    stable_diffusion().save_pretrained(tmp_path / "latent")
    with pytest.raises(UserError, match="is computed by PyTorch; --engine openvino is for U-Nets on pixels"):
        load_pipeline(tmp_path / "latent", engine="openvino")
    make_pipeline().save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="no engine tensorrt; what there is is pytorch and openvino"):
        AutoDiffuseSegPipeline.from_pretrained(tmp_path / "plain", engine="tensorrt")
