# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diffuseseg_diffusers import (
    Decisions,
    DiffuseSegPipeline,
    choose_tiling,
    load_pipeline,
    segment_tiled,
)
from diffuseseg_diffusers.cli import main as diffuseseg
from diffuseseg_diffusers.images.formats.pictures import PictureRaster
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.loading import load_pipelines
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import draw, make_pipeline


NAMES = ["sky", "disc", "bar"]


def test_models_together_are_the_mean_of_their_probabilities(tmp_path):
    torch.manual_seed(0)
    head = make_pipeline(head=True)
    head.save_pretrained(tmp_path / "head")
    student = new_unet(NAMES, head.image_size, head.in_channels)
    student.save_pretrained(tmp_path / "student")
    both = load_pipeline(f"{tmp_path / 'head'} + {tmp_path / 'student'}", device="cpu", dtype="float32")
    images = [draw((20, 24), 0)[0], draw((32, 32), 1)[0]]
    asked = dict(output_type="pt", return_probabilities=True)
    alone = [load_pipeline(tmp_path / n, device="cpu", dtype="float32") for n in ("head", "student")]
    found, parts = both.segment(images, **asked), [model.segment(images, **asked) for model in alone]
    for i in range(2):
        mean = (parts[0].probabilities[i] + parts[1].probabilities[i]) / 2
        torch.testing.assert_close(found.probabilities[i], mean)
        assert torch.equal(found.masks[i].long(), mean.argmax(0))
        entropy = -(mean * mean.clamp(min=1e-30).log()).sum(0)
        torch.testing.assert_close(found.uncertainty[i], entropy, rtol=1e-4, atol=1e-5)
    assert both.nbytes == sum(model.nbytes for model in alone) and both.label_names == NAMES
    assert np.array_equal(np.asarray(both.segment(images[0]).masks[0]), found.masks[0].numpy())


def test_models_that_differ_are_refused():
    first = new_unet(NAMES, (16, 16), 1)
    for other, message in (
        (new_unet(["a", "b", "c"], (16, 16), 1), "the classes"),
        (new_unet(NAMES, (16, 16), 3), "the number of channels"),
    ):
        with pytest.raises(UserError, match=f"other has {message}"):
            AveragedSegmenter({"first": first, "other": other})


def test_a_folder_may_have_the_sign_in_its_name(tmp_path):
    new_unet(NAMES, (16, 16), 1).save_pretrained(tmp_path / "a + b")
    assert load_pipeline(tmp_path / "a + b", device="cpu", dtype="float32").label_names == NAMES


def test_a_head_that_ignores_another_id_and_its_student_go_together():
    head = make_pipeline(head=True)
    head.segmentation_head.register_to_config(ignore_index=7)
    student = new_unet(NAMES, head.image_size, head.in_channels)
    both = AveragedSegmenter({"head": head, "student": student})
    assert both.ignore_index == 7 and both.segment(draw((16, 16), 0)[0], output_type="np").masks[0].max() < len(NAMES)


def test_a_revision_is_of_one_model_on_the_hub():
    with pytest.raises(UserError, match="--revision can be of any of alice/a, alice/b"):
        load_pipelines(["alice/a", "alice/b"], revision="main")


def test_a_pipeline_without_a_head_is_a_sentence():
    student = new_unet(NAMES, (16, 16), 1)
    for models in ({"a": make_pipeline(), "b": student}, {"b": student, "a": make_pipeline()}):
        with pytest.raises(UserError, match="no segmentation head"):
            AveragedSegmenter(models)


def test_a_model_is_not_averaged_with_itself(tmp_path):
    new_unet(NAMES, (16, 16), 1).save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match="names a model twice"):
        load_pipeline(f"{tmp_path}/a + {tmp_path}/./a")


def on_tiles(pipe, size, scale, seed):
    """A pipeline on the same U-Net, with a head of its own that reads tiles."""
    torch.manual_seed(seed)
    head = copy.deepcopy(pipe.segmentation_head)
    for p in head.parameters():
        p.data += 0.3 * torch.randn_like(p)
    head.register_to_config(image_size=size, tiling={"tiles": True, "scale": scale, "pixel_size": None})
    return DiffuseSegPipeline(pipe.unet, pipe.scheduler, head)


@pytest.fixture
def committee():
    """Heads at two scales on one U-Net, and a student, with the member that reads most in the middle."""
    pipe = make_pipeline(head=True)
    student = new_unet(NAMES, (16, 16), pipe.in_channels)
    models = {"coarse": on_tiles(pipe, (16, 16), 0.5, 1), "fine": on_tiles(pipe, (32, 32), 1.0, 2), "student": student}
    return AveragedSegmenter(models, [1, 2, 1], (1.0, 0.2))


def test_members_read_a_picture_at_sizes_of_their_own(committee):
    assert committee.image_size == (32, 32) and committee.weights == [0.25, 0.5, 0.25]
    assert committee.fitted_tiles == {"tiles": True, "scale": 1.0, "pixel_size": None}
    pixels = torch.rand(2, 1, 32, 32) * 2 - 1
    sizes, small = [(32, 32), (20, 24)], F.interpolate(pixels, (16, 16), mode="bilinear", antialias=True)
    seen = (small, pixels, small)
    parts = [m.segment_batch(x, sizes, None, None, True).probabilities for m, x in zip(committee.models, seen)]
    found = committee.segment_batch(pixels, sizes, return_probabilities=True)
    for i in range(2):
        mean = parts[0][i] / 4 + parts[1][i] / 2 + parts[2][i] / 4
        torch.testing.assert_close(found.probabilities[i], mean)
        assert torch.equal(found.masks[i].long(), mean.argmax(0))


def test_the_scale_of_tiles_is_that_of_the_member_that_sees_most(committee):
    student = new_unet(NAMES, (64, 64), 1)
    both = AveragedSegmenter({"coarse": committee.models[0], "student": student})
    assert both.image_size == (64, 64) and both.fitted_tiles["scale"] == 2.0
    with pytest.raises(UserError, match="fine was fitted on tiles of 64 × 64 pixels, but coarse on tiles of 32 × 32"):
        committee.models[1].segmentation_head.register_to_config(image_size=(64, 64))
        AveragedSegmenter(dict(zip(committee.names, committee.models)))


def test_weights_that_are_none_are_a_sentence():
    models = {name: new_unet(NAMES, (16, 16), 1) for name in "ab"}
    for wrong in (
        [1],
        [0, 0],
        [-1, 2],
        [float("nan"), 1],
        [1, float("nan")],
        [1e308, 1e308],
        "ab",
        2,
        ["x", 1],
        [[], 1],
    ):
        with pytest.raises(UserError, match="a weight from 0 on each"):
            AveragedSegmenter(models, wrong)


def test_several_models_are_one_folder(committee, tmp_path):
    committee.decisions = Decisions((0.5, 0.4, 0.3), (0.5, 0.3, 0.2))
    committee.save_pretrained(tmp_path / "saved")
    weights = sorted(p.relative_to(tmp_path / "saved").as_posix() for p in tmp_path.rglob("*.safetensors"))
    name = "diffusion_pytorch_model.safetensors"
    assert weights == [f"base/unet/{name}", f"heads/0/{name}", f"heads/1/{name}", f"students/0/{name}"]
    loaded = load_pipeline(tmp_path / "saved", device="cpu", dtype="float32")
    assert isinstance(loaded, AveragedSegmenter) and loaded.models[0].unet is loaded.models[1].unet
    assert loaded.identity() == committee.identity() and loaded.nbytes == committee.nbytes
    with pytest.raises(UserError, match="several models in that folder; load it with load_pipeline"):
        DiffuseSegPipeline.from_pretrained(tmp_path / "saved")
    image = draw((40, 48), 3)[0]
    asked = dict(output_type="pt", return_probabilities=True)
    for one, other in zip(loaded.segment(image, **asked).to_tuple(), committee.segment(image, **asked).to_tuple()):
        torch.testing.assert_close(torch.as_tensor(one[0]), torch.as_tensor(other[0]))
    committee.weights = [0.5, 0.25, 0.25]
    assert loaded.identity() != committee.identity()


def test_commands_take_the_folder_or_say_why_not(committee, tmp_path, capsys):
    committee.save_pretrained(tmp_path / "saved")
    image = Image.fromarray(draw((80, 96), 3)[0])
    image.save(tmp_path / "photo.png")
    model = ["--model", tmp_path / "saved", "--device", "cpu", "--output_dir"]
    with pytest.raises(SystemExit) as ended:
        diffuseseg(["segment", tmp_path / "photo.png", "--dtype", "float32", *model, tmp_path / "masks"])
    assert not ended.value.code
    line = json.loads((tmp_path / "masks/segments.jsonl").read_text())
    assert line["tiles"]["scale"] == 1.0 and line["tiles"]["height"] == 32
    raster = PictureRaster(image, "photo")
    expected = segment_tiled(committee, raster, choose_tiling(committee, raster)).labels
    assert np.array_equal(np.asarray(Image.open(tmp_path / "masks/photo_mask.png")), expected)
    with pytest.raises(SystemExit):
        diffuseseg(["generate", "--num_samples", "1", *model, tmp_path / "made"])
    assert "segments images, but generates none" in capsys.readouterr().err


def test_an_index_that_names_places_elsewhere_is_a_sentence(committee, tmp_path):
    committee.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    twice = [{"folder": "heads/0", "kind": "head"}] * 2
    for wrong in (
        [],
        twice,
        [{"folder": "heads/../../x", "kind": "head"}],
        [{"folder": "heads/0"}],
        {"a": 1},
        ["heads/0"],
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index | {"members": wrong}))
        with pytest.raises(UserError, match="lists no members"):
            load_pipeline(tmp_path, device="cpu", dtype="float32")


def test_a_member_that_is_a_link_or_missing_is_a_sentence(committee, tmp_path):
    committee.save_pretrained(tmp_path / "saved")
    for target in ("../..", ".."):  # elsewhere, and into itself
        (tmp_path / "saved/heads/0").rename(tmp_path / "head")
        (tmp_path / "saved/heads/0").symlink_to(target if target == ".." else tmp_path / "head")
        with pytest.raises(UserError, match="lists no members"):
            load_pipeline(tmp_path / "saved", device="cpu", dtype="float32")
        (tmp_path / "saved/heads/0").unlink()
        (tmp_path / "head").rename(tmp_path / "saved/heads/0")
    (tmp_path / "saved/students/0").rename(tmp_path / "student")
    with pytest.raises(UserError, match="lacks its member students/0"):
        load_pipeline(tmp_path / "saved", device="cpu", dtype="float32")
