# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from diffuseseg_diffusers import evaluate_segmentation
from diffuseseg_diffusers.augmentation import IGNORED
from diffuseseg_diffusers.student import (
    StudentSegmenter,
    epoch_order,
    make_processor,
    make_student,
    segmentation_loss,
)

from .conftest import draw, drawn_dataset


NAMES = ["sky", "disc", "bar"]
TINY = dict(
    model_type="segformer",
    depths=[1, 1, 1, 1],
    hidden_sizes=[8, 8, 16, 16],
    num_attention_heads=[1, 1, 2, 2],
    decoder_hidden_size=16,
)


def write_config(folder, **changes):
    path = folder / "tiny.json"
    path.write_text(json.dumps(TINY | changes))
    return str(path)


def test_students_come_from_configs_and_folders_and_wrong_ones_are_told(tmp_path):
    student = make_student(write_config(tmp_path), NAMES)
    assert student.config.id2label == dict(enumerate(NAMES)) and student.config.num_labels == 3
    student.save_pretrained(tmp_path / "student")
    again = make_student(str(tmp_path / "student"), NAMES)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters()))
    fresh = make_student(str(tmp_path / "student"), NAMES, from_scratch=True)
    assert not all(torch.equal(a, b) for a, b in zip(student.parameters(), fresh.parameters()))
    other = make_student(str(tmp_path / "student"), ["a", "b"])  # another head on the same features
    assert other.config.num_labels == 2
    with pytest.raises(ValueError, match="for 5 classes, but the dataset has 3"):
        make_student(write_config(tmp_path, num_labels=5), NAMES)
    with pytest.raises(ValueError, match="model_type"):
        (tmp_path / "none.json").write_text("{}")
        make_student(str(tmp_path / "none.json"), NAMES)
    with pytest.raises(ValueError, match="does not take the config"):
        make_student(write_config(tmp_path, hidden_sizes="wide"), NAMES)
    (tmp_path / "bert.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="AutoModelForSemanticSegmentation"):
        make_student(str(tmp_path / "bert.json"), NAMES)


def test_the_default_is_trained_from_scratch_where_the_hub_does_not_give_it_and_others_are_refused(hub, caplog):
    student = make_student("nvidia/mit-b0", NAMES)
    assert isinstance(student, SegformerForSemanticSegmentation)
    assert student.config.hidden_sizes == SegformerConfig().hidden_sizes
    with pytest.raises(ValueError, match="alice/no-student cannot be loaded: the Hub has none"):
        make_student("alice/no-student", NAMES)


def test_a_student_sits_in_the_seat_of_the_pipeline(tmp_path):
    torch.manual_seed(0)
    segmenter = StudentSegmenter(make_student(write_config(tmp_path), NAMES), make_processor("none/none", (32, 32)))
    pictures = [Image.fromarray(draw((20, 30), 1)[0]), Image.fromarray(draw((16, 16), 2, channels=3)[0])]
    masks = segmenter.segment(pictures).masks
    assert [m.shape for m in masks] == [(20, 30), (16, 16)]
    # Plainly: what transformers' own processor and post-processing give.
    for picture, mask in zip(pictures, masks):
        inputs = segmenter.processor(picture.convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            outputs = segmenter.model(**inputs)
        expected = segmenter.processor.post_process_semantic_segmentation(outputs, [picture.size[::-1]])[0].numpy()
        assert (mask == expected).mean() > 0.97  # resized by another library
    metrics, examples = evaluate_segmentation(segmenter, drawn_dataset(), show_progress=False)
    assert set(metrics["per_class_iou"]) == set(NAMES) and examples == []


def test_the_loss_is_cross_entropy_and_ignored_pixels_do_not_count():
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    upsampled = F.interpolate(logits, size=(8, 8), mode="bilinear")
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(upsampled, masks))
    masks[0] = IGNORED
    torch.testing.assert_close(segmentation_loss(logits, masks), F.cross_entropy(upsampled[1:], masks[1:]))
    assert segmentation_loss(logits, torch.full_like(masks, IGNORED)) == 0


@given(st.integers(1, 50), st.integers(0, 10), st.floats(0, 1), st.integers(1, 200), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_an_epoch_mixes_at_the_given_share_and_shows_all_before_any_again(main, real, share, count, seed):
    order = epoch_order(main, real, share, count, seed)
    assert len(order) == count and 0 <= order.min() and order.max() < main + real
    of_real = (order >= main).sum()
    assert of_real == (round(share * count) if real else 0)
    for part, size in ((order[order < main], main), (order[order >= main] - main, real)):
        times = np.bincount(part, minlength=size)  # also of those that were not shown at all
        assert size == 0 or times.max() - times.min() <= 1
    assert (epoch_order(main, real, share, count, seed) == order).all()
