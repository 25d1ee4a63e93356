# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from diffuseseg_diffusers.datasets.augmentation import IGNORED, augment
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.features.weights import weight_bytes
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.pipelines.composed import ComposedDiffuseSegPipeline
from diffuseseg_diffusers.students import targets as module
from diffuseseg_diffusers.students.objective import segmentation_loss
from diffuseseg_diffusers.students.targets import (
    CLASSES_KEPT,
    WholeImages,
    claim_targets,
    compute_targets,
    distillation_loss,
    hard_targets,
    soft_targets,
)
from diffuseseg_diffusers.students.unets import new_unet

from ..conftest import draw, make_pipeline
from ..tiny_pipelines import stable_diffusion


def dense(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """`[N, 2k, H, W]` to shares `[N, num_classes, H, W]`."""
    ids, shares = targets.long().chunk(2, 1)
    whole = torch.zeros(len(ids), 256, *ids.shape[2:]).scatter_add(1, ids, shares.float())
    whole[:, IGNORED] = 0
    return whole[:, :num_classes] / whole.sum(1, keepdim=True).clamp(min=1)


@given(st.integers(2, 30), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_likeliest_classes_are_kept_to_a_255th(num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    p = (3 * torch.randn(2, num_classes, 3, 4, generator=generator)).softmax(1)
    targets = soft_targets(p)
    assert targets.shape == (2, 2 * CLASSES_KEPT, 3, 4) and targets.dtype == torch.uint8
    best, where = p.topk(min(CLASSES_KEPT, num_classes), dim=1)
    expected = torch.zeros_like(p).scatter(1, where, best / best.sum(1, keepdim=True))
    assert (dense(targets, num_classes) - expected).abs().max() < 0.01
    assert torch.equal(targets[:, 0].long(), p.argmax(1))


@given(st.integers(2, 8), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_loss_is_the_cross_entropy_with_the_shares_and_of_hard_ones_that_of_class_ids(num_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 4, 4, generator=generator)
    p = torch.randn(2, num_classes, 8, 8, generator=generator).softmax(1)
    targets = soft_targets(p)
    upsampled = F.interpolate(logits, size=(8, 8), mode="bilinear")
    expected = F.cross_entropy(upsampled, dense(targets, num_classes))
    torch.testing.assert_close(distillation_loss(logits, targets), expected, rtol=1e-3, atol=1e-4)
    masks = torch.randint(0, num_classes, (2, 8, 8), generator=generator)
    masks[0, :4] = IGNORED
    hard = torch.stack([hard_targets(mask) for mask in masks])
    torch.testing.assert_close(distillation_loss(logits, hard), segmentation_loss(logits, masks))
    assert distillation_loss(logits, torch.stack([hard_targets(torch.full((8, 8), IGNORED))] * 2)) == 0


def test_augmented_views_move_targets_as_they_move_masks():
    masks = torch.randint(0, 3, (4, 16, 16))
    images = torch.rand(4, 1, 16, 16)
    hard = torch.stack([hard_targets(mask) for mask in masks]).long()
    one, moved = augment(images, masks, torch.Generator().manual_seed(0))
    other, targets = augment(images, hard, torch.Generator().manual_seed(0))
    assert torch.equal(one, other) and torch.equal(targets[:, 0], moved)
    assert (targets[:, CLASSES_KEPT][moved != IGNORED] == 255).all()
    assert distillation_loss(torch.zeros(4, 3, 16, 16), targets) == pytest.approx(np.log(3))


@pytest.fixture
def pictures(tmp_path):
    """Five pictures of two sizes without labels."""
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        Image.fromarray(draw((24 + i, 30), i)[0]).save(tmp_path / "pictures" / f"{i}.png")
    return tmp_path / "pictures"


def test_targets_are_what_the_teacher_says_and_are_computed_once(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IMAGES_IN_A_FILE", 2)
    teacher = make_pipeline(head=True)
    dataset, column = load_unlabeled(data_dir=str(pictures))
    given = (WholeImages(dataset, column, (16, 16), 1), tmp_path / "targets")
    found = compute_targets(teacher, *given, batch_size=2, show_progress=False)
    assert len(found) == 5 and len(list((tmp_path / "targets").glob("*.safetensors"))) == 3
    for i in range(5):
        image, targets = found[i]
        whole = Image.open(pictures / f"{i}.png")
        expected = teacher.segment(whole, mask_size=(16, 16), output_type="pt", return_probabilities=True)
        kept = soft_targets(expected.probabilities[0][None])[0]
        off = (targets.int() - kept.int()).abs()  # up to the rounding of another batch size
        assert (off[:CLASSES_KEPT] == 0).float().mean() > 0.95 and (off[CLASSES_KEPT:] <= 1).float().mean() > 0.95, i
        resized = np.asarray(whole.convert("L").resize((16, 16), Image.Resampling.LANCZOS))
        assert image.shape == (1, 16, 16) and np.array_equal(image[0].numpy(), resized)

    # A run that was cut off: what is there is kept, what is missing is asked for.
    before = {p: p.read_bytes() for p in (tmp_path / "targets").glob("*.safetensors")}
    gone = sorted(before)[1]
    gone.unlink()
    asked = []
    real = teacher.segment
    monkeypatch.setattr(teacher, "segment", lambda images, *a, **k: asked.append(len(images)) or real(images, *a, **k))
    compute_targets(teacher, *given, batch_size=2, show_progress=False)
    assert asked == [2] and {p: p.read_bytes() for p in before} == before


def test_an_image_that_cannot_be_read_is_named_and_leaves_no_file(pictures, tmp_path):
    (pictures / "3.png").write_bytes((pictures / "3.png").read_bytes()[:60])
    dataset, column = load_unlabeled(data_dir=str(pictures))
    with pytest.raises(UserError, match="3.png"):
        compute_targets(make_pipeline(head=True), WholeImages(dataset, column, (16, 16), 1), tmp_path / "targets")
    assert not list((tmp_path / "targets").glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["cut", "empty", "fewer", "other", "alien"])
def test_damaged_files_of_targets_are_named(pictures, tmp_path, damage):
    dataset, column = load_unlabeled(str(pictures), cache_dir=str(tmp_path / "cache"))
    asked = (make_pipeline(True), WholeImages(dataset, column, (32, 32), 3), tmp_path / "targets")
    (path,) = compute_targets(*asked).paths
    whole = load_file(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "fewer":
        save_file({k: v[:-1].clone() for k, v in whole.items()}, path)
    elif damage == "other":
        save_file({k: v[..., :-1].contiguous() for k, v in whole.items()}, path)
    else:
        save_file({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="targets-00000-of-00001.safetensors|holds images") as said:
        compute_targets(*asked)
    assert "remove it, and it is computed anew" in str(said.value)


def test_teachers_together_are_told_apart_by_the_weights_of_each():
    torch.manual_seed(0)
    first, second, third = (new_unet(["a", "b"], (16, 16), 1) for _ in range(3))

    def found(*models) -> dict:
        return AveragedSegmenter(dict(zip("xy", models))).identity()

    assert found(first, second) == found(first, second) != found(first, third)


def test_composed_teachers_are_told_apart_by_weights_and_precision():
    """Their networks are those of another pipeline."""
    torch.manual_seed(0)
    pipe = ComposedDiffuseSegPipeline(stable_diffusion())
    networks = {name: part for name, part in pipe.base.components.items() if isinstance(part, torch.nn.Module)}
    assert "unet" in networks and pipe.nbytes == sum(weight_bytes(part) for part in networks.values()) > 0
    first = pipe.identity()
    assert first == pipe.identity()
    with torch.no_grad():
        pipe.denoiser.conv_in.weight += 1
    changed = pipe.identity()
    assert changed != first and "float32" in str(changed)
    pipe.to(torch.bfloat16)
    assert "bfloat16" in str(pipe.identity())


def test_of_two_runs_that_write_at_once_one_is_first_and_the_other_is_told(tmp_path, monkeypatch):
    folder, write = tmp_path / "targets", module.write_json

    def overtaken(path, settings):  # the other one writes between the check and the write
        monkeypatch.setattr(module, "write_json", write)
        claim_targets(folder, {"teacher": "b"})
        write(path, settings)

    monkeypatch.setattr(module, "write_json", overtaken)
    with pytest.raises(UserError, match="another teacher or other images: teacher b .now a."):
        claim_targets(folder, {"teacher": "a"})
    assert [p.name for p in folder.iterdir()] == [module.SETTINGS]


def test_runs_that_begin_one_folder_at_the_same_moment_take_each_other_in(tmp_path):
    folder, settings = tmp_path / "targets", {"teacher": "a"}
    folder.mkdir()
    (folder / f".{module.SETTINGS}.1234.partial").write_text("{")  # the other is about to write it
    claim_targets(folder, settings)
    claim_targets(folder, settings)
    with pytest.raises(UserError, match="another teacher or other images: teacher a .now b."):
        claim_targets(folder, {"teacher": "b"})
    (folder / module.SETTINGS).unlink()
    (folder / "mine.txt").write_text("")
    with pytest.raises(UserError, match="holds something else than targets"):
        claim_targets(folder, settings)
