# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
import torch
from PIL import Image

from diffuseseg_diffusers import AutoDiffuseSegPipeline, AveragedSegmenter, FitConfig, UserError, load_pipeline

from ..conftest import make_pipeline, make_unet, run
from ..tiny_pipelines import stable_diffusion


pytest.importorskip("openvino", reason="needs the extra openvino")

from diffuseseg_diffusers.features.openvino import OpenVINOEngine  # noqa: E402


@pytest.mark.parametrize("noise", [{"clean": True}, {"share_noise": False}])
def test_a_pass_sees_what_pytorch_sees_for_any_blocks_timesteps_and_batch(noise):
    pipe = make_pipeline()
    plain = pipe.features([1, 3], [50], **noise)
    pipe.engine = OpenVINOEngine()
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


def test_other_weights_and_another_model_are_seen_and_nothing_of_the_model_changes():
    pipe = make_pipeline()
    pipe.engine = OpenVINOEngine()
    pipe.unet.train()
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    images, seen = torch.zeros(1, 1, 16, 16), []
    for change in ("none", "written to", "replaced"):
        if change == "written to":
            with torch.no_grad():
                pipe.unet.conv_in.bias.add_(1.0)
        elif change == "replaced":
            pipe.unet = make_unet(seed=1)
        extractor = pipe.features([2], [50], clean=True)
        found = extractor(images).activations[0]
        if change == "none":
            assert pipe.unet.training, "as it was"
            assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())
        extractor.engine = None
        expected = extractor(images).activations[0]
        torch.testing.assert_close(found, expected, atol=5e-3 * float(expected.abs().max()), rtol=0)
        assert not any(torch.allclose(found, other, atol=1e-2) for other in seen)
        seen.append(found)


def test_a_model_in_bfloat16_is_computed_in_it_on_as_many_threads_as_pytorch_uses():
    pipe = make_pipeline()
    pipe.unet.to(torch.bfloat16)
    pipe.engine, made = OpenVINOEngine(), []
    compile_model = pipe.engine.openvino.compile_model

    class Recorded:
        convert_model = staticmethod(pipe.engine.openvino.convert_model)

        @staticmethod
        def compile_model(model, device, options):
            made.append((device, options["INFERENCE_PRECISION_HINT"], options["INFERENCE_NUM_THREADS"]))
            return compile_model(model, device, options)

    pipe.engine.openvino = Recorded
    found = pipe.features([1], [50], clean=True)(torch.zeros(2, 1, 16, 16)).activations[0]
    assert found.dtype == torch.bfloat16
    assert made == [("CPU", "bf16", torch.get_num_threads())]


def test_masks_are_those_of_pytorch_by_the_command_line_too(tmp_path, monkeypatch):
    """Of a head on a U-Net, and of several models in a folder, as `fit` leaves them."""
    pipe, passes = make_pipeline(head=True), []
    pipe.save_pretrained(tmp_path / "one")
    AveragedSegmenter({"a": pipe, "b": pipe}).save_pretrained(tmp_path / "several")
    pixels = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) * 255
    Image.fromarray(pixels.byte().numpy()).save(tmp_path / "image.png")
    called = OpenVINOEngine.__call__
    monkeypatch.setattr(OpenVINOEngine, "__call__", lambda *given: passes.append(given[0]) or called(*given))
    for name, number in (("one", 1), ("several", 2)):
        masks = []
        for engine in ("pytorch", "openvino"):
            out = tmp_path / f"{name} {engine}"
            given = ("--model", tmp_path / name, "--engine", engine, "--dtype", "float32", "--output_dir", out)
            run("diffuseseg", "segment", tmp_path / "image.png", *given)
            masks.append(torch.tensor(list(Image.open(next(out.rglob("*mask*.png"))).getdata())))
        assert (masks[0] == masks[1]).float().mean() >= 0.99
        assert len(passes) == number and len(set(map(id, passes))) == 1
        passes.clear()


def test_what_it_cannot_compute_is_refused_with_what_to_do(tmp_path):
    make_pipeline(num_class_embeds=3).save_pretrained(tmp_path / "classes")
    with pytest.raises(UserError, match="conditioned on classes, which --engine openvino does not compute"):
        load_pipeline(tmp_path / "classes", engine="openvino")
    make_pipeline(resnet_time_scale_shift="scale_shift").save_pretrained(tmp_path / "scaled")
    with pytest.raises(UserError, match="scales and shifts by the timestep, which --engine openvino does not compute"):
        load_pipeline(tmp_path / "scaled", engine="openvino")
    stable_diffusion().save_pretrained(tmp_path / "latent")
    with pytest.raises(UserError, match="is computed by PyTorch; --engine openvino is for U-Nets on pixels"):
        load_pipeline(tmp_path / "latent", engine="openvino")
    with pytest.raises(UserError, match="no engine tensorrt; what there is is pytorch and openvino"):
        AutoDiffuseSegPipeline.from_pretrained("not/read", engine="tensorrt")
    with pytest.raises(UserError, match="computes on the CPU, not on meta; give --device cpu"):
        AutoDiffuseSegPipeline.from_pretrained("not/read", device="meta", engine="openvino")
    with pytest.raises(UserError, match="A --backbone is computed by PyTorch; leave --engine openvino out"):
        FitConfig(backbone="MODEL", dataset_name="DATA", output_dir=tmp_path, engine="openvino")
