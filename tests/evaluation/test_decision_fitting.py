# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers import DiffuseSegPipeline, load_pipeline
from diffuseseg_diffusers.evaluation.decision_fitting import fit_decisions
from diffuseseg_diffusers.heads.decisions import LEAST, Decisions, expected_decisions, winners
from diffuseseg_diffusers.heads.ensemble import DECIDING_FORMAT, PixelClassifierEnsemble
from diffuseseg_diffusers.images.formats.base import ArrayRaster
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.averaged import AveragedSegmenter
from diffuseseg_diffusers.students.unets import new_unet
from diffuseseg_diffusers.tiling.tiles import Tiling, segment_tiled

from ..conftest import draw, make_head, make_pipeline


NAMES = ["sky", "disc", "bar"]
DECISIONS = Decisions((0.9, 0.2, 0.05), (0.7, 0.2, 0.01))


def expected_ious(p: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Expected IoU of each class `[C]`, the plain formula, of probabilities `[C, P]` and class ids `[P]`."""
    found = []
    for c in range(len(p)):
        inside = p[c][chosen == c].sum()
        union = p[c].sum() + (chosen == c).sum() - inside
        if p[c].sum() >= LEAST * p.shape[1]:  # classes that are not expected do not count
            found.append(inside / union)
    return torch.stack(found)


@settings(deadline=None, max_examples=30)
@given(classes=st.integers(2, 9), seed=st.integers(0, 999), sharp=st.floats(0.3, 5))
def test_the_expected_mean_iou_is_never_lower_than_that_of_the_likeliest_classes(classes, seed, sharp):
    torch.manual_seed(seed)
    p = (sharp * torch.randn(classes, 400, dtype=torch.float64) + torch.randn(classes, 1)).softmax(0)
    decisions = expected_decisions(p)
    before, after = (expected_ious(p, winners(p, d, 0)).mean() for d in (None, decisions))
    assert after >= before - 1e-12


def test_a_rare_class_that_is_never_the_likeliest_is_found_where_it_is_probable():
    torch.manual_seed(0)
    p = torch.tensor([[0.6, 0.4], [0.98, 0.02]]).repeat_interleave(torch.tensor([100, 4000]), 0).T  # [2,P]
    truth = (torch.rand(4100) < p[1]).long()
    decided = winners(p, expected_decisions(p), 0)
    ious = [
        (((m == c) & (truth == c)).sum() / ((m == c) | (truth == c)).sum())
        for m in (p.argmax(0), decided)
        for c in (0, 1)
    ]
    assert ious[1] == 0 and ious[3] > 0.2 and sum(ious[2:]) > sum(ious[:2]) + 0.15
    assert decided[:100].all() and not decided[100:].any()


def test_gains_are_the_formula_and_equal_classes_keep_the_likeliest():
    p = torch.rand(2, 3, 4, 5).softmax(1)
    iou, union = (torch.tensor(x).view(3, 1, 1) for x in (DECISIONS.iou, DECISIONS.union))
    torch.testing.assert_close(DECISIONS.gains(p), (p - iou * (1 - p)) / union)
    assert torch.equal(winners(p, Decisions((0.5,) * 3, (0.3,) * 3)), p.argmax(1)) and torch.equal(
        winners(p, None), p.argmax(1)
    )
    assert Decisions.of(json.loads(json.dumps(DECISIONS.config)), 3) == DECISIONS and Decisions.of(None, 3) is None
    for wrong in (
        ((0.5,), (0.3, 0.3)),
        ((1.5,), (0.3,)),
        ((0.5,), (0.0,)),
        ((0.5,), (1.5,)),
        ((0.5,), (1e-60,)),
        ((), ()),
    ):
        with pytest.raises(UserError, match="an IoU from 0 to 1 and a union above 0 and up to 1 for each class"):
            Decisions(*wrong)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return new_unet(NAMES, (16, 16), 1)


def decided(model, image) -> bool:
    """Whether the mask of an image is what the decisions make of its probabilities, and no other without them."""
    found = model.segment(image, output_type="pt", return_probabilities=True)
    p = found.probabilities[0].float()
    assert not torch.equal(winners(p, DECISIONS, 0), p.argmax(0)), "the decisions change something"
    return torch.equal(found.masks[0].long(), winners(p, DECISIONS, 0))


@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_heads_decide_and_keep_their_decisions(voting, tmp_path):
    pipe, image = make_pipeline(), draw((20, 24), 0)[0]
    pipe.segmentation_head = make_head(pipe, voting=voting)
    assert pipe.decisions is None
    pipe.decisions = DECISIONS
    assert decided(pipe, image)
    pipe.save_pretrained(tmp_path / "pipe")
    again = DiffuseSegPipeline.from_pretrained(tmp_path / "pipe")
    assert again.decisions == DECISIONS and decided(again, image)
    tiled = segment_tiled(again, ArrayRaster(draw((40, 24), 1)[0]), Tiling((16, 16)), return_probabilities=True)
    p = torch.as_tensor(np.asarray(tiled.probabilities))
    assert np.array_equal(tiled.labels, winners(p, DECISIONS, 0).numpy())
    again.decisions = None
    assert again.decisions is None
    config = json.loads((tmp_path / "pipe" / "segmentation_head" / "config.json").read_text())
    assert config["format_version"] == DECIDING_FORMAT, "code that knows no decisions refuses the head"
    for wrong in ({"iou": [0.5], "union": [0.5]}, {"iou": [0.5] * 3}):
        path = tmp_path / "pipe" / "segmentation_head" / "config.json"
        path.write_text(json.dumps(config | {"decisions": wrong}))
        with pytest.raises(UserError, match="segmentation head in .*pipe.* cannot be read: The decisions"):
            PixelClassifierEnsemble.from_pretrained(tmp_path / "pipe" / "segmentation_head")


def test_students_decide_and_keep_their_decisions(student, tmp_path):
    image = draw((20, 24), 0)[0]
    student.decisions = DECISIONS
    student.save_pretrained(tmp_path / "student")
    again = load_pipeline(tmp_path / "student", device="cpu", dtype="float32")
    assert again.decisions == DECISIONS and decided(again, image)
    record = json.loads((tmp_path / "student" / "student.json").read_text())
    for wrong in ({"iou": [0.5], "union": [0.5]}, {"iou": [0.5] * 3}, {"iou": [0.5] * 3, "union": [0] * 3}, "none"):
        (tmp_path / "student" / "student.json").write_text(json.dumps(record | {"decisions": wrong}))
        with pytest.raises(UserError, match="student cannot be loaded: .*ecisions"):
            load_pipeline(tmp_path / "student", device="cpu", dtype="float32")


def test_models_together_decide_by_the_means_of_what_they_expect(student):
    pipe = make_pipeline(head=True)
    student.decisions, other = DECISIONS, Decisions((0.5, 0.4, 0.15), (0.5, 0.4, 0.03))
    assert AveragedSegmenter({"head": pipe, "student": student}).decisions is None
    pipe.decisions = other
    both = AveragedSegmenter({"head": pipe, "student": student})
    mean = both.decisions
    assert mean.iou == pytest.approx((0.7, 0.3, 0.1)) and mean.union == pytest.approx((0.6, 0.3, 0.02))
    found = both.segment(draw((20, 24), 0)[0], output_type="pt", return_probabilities=True)
    assert torch.equal(found.masks[0].long(), winners(found.probabilities[0], mean, 0))
    both.decisions = other
    assert both.decisions == other


def test_decisions_are_those_of_the_probabilities_of_images(monkeypatch):
    pipe, images = make_pipeline(), [draw((16, 16), i)[0] for i in range(5)]
    pipe.segmentation_head = make_head(pipe)
    found = pipe.segment(images, output_type="pt", return_probabilities=True).probabilities
    whole = expected_decisions(torch.cat([p.flatten(1) for p in found], 1))
    again = fit_decisions(pipe, iter(images), 5, batch_size=2, show_progress=False)
    assert again.iou == pytest.approx(whole.iou, abs=0.02) and again.union == pytest.approx(whole.union, abs=0.02)
    monkeypatch.setattr("diffuseseg_diffusers.evaluation.decision_fitting.PROBABILITIES", 300)  # every 13th pixel
    some = fit_decisions(pipe, iter(images), 5, show_progress=False)
    assert some != again and some.iou == pytest.approx(whole.iou, abs=0.15)
    with pytest.raises(UserError, match="no images to expect anything of"):
        fit_decisions(pipe, [], 0)


def test_a_class_that_is_not_expected_gets_no_doubtful_pixels():
    torch.manual_seed(0)
    logits = torch.randn(6, 100_000)
    logits[5] -= 20
    p = logits.softmax(0)
    found = winners(p, expected_decisions(p), 0)
    assert (found == 5).sum() == 0 and (found != p.argmax(0)).any()
    p[:, :10] = torch.eye(6)[5][:, None]  # ten pixels that are of it beyond doubt
    assert (winners(p, expected_decisions(p), 0) == 5).sum() == 10


def test_expectations_are_right_over_more_pixels_than_float32_counts():
    rare = torch.tensor([[0.95, 0.05], [0.6, 0.4]]).T.repeat_interleave(torch.tensor([17, 3]), 1)  # [2,20]
    assert expected_decisions(rare.repeat(1, 850_000)).iou == pytest.approx(expected_decisions(rare).iou, rel=1e-6)


def test_where_the_likeliest_classes_are_the_best_nothing_is_decided():
    assert expected_decisions(torch.eye(3).repeat(1, 5)) is None
