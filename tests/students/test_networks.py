# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import pytest
import torch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.networks import make_processor, make_student
from diffuseseg_diffusers.students.student import StudentSegmenter


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


def save_student(folder):
    student = make_student(write_config(folder), NAMES)
    student.save_pretrained(folder / "student")
    return student, folder / "student"


def test_pickled_weights_are_refused_in_a_sentence(tmp_path):
    student, folder = save_student(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(student.state_dict(), folder / "pytorch_model.bin")
    for load in (lambda: make_student(str(folder), NAMES), lambda: StudentSegmenter.from_pretrained(folder)):
        with pytest.raises(UserError, match="cannot be loaded: it has no weights in the safetensors format"):
            load()
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be loaded: its weights are damaged .Error while deserializing header"):
        StudentSegmenter.from_pretrained(folder)


def test_code_of_a_repository_is_not_run(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "code.py").write_text("raise SystemExit('the code was run')\n")
    auto_map = {"AutoConfig": "code.C", "AutoModelForSemanticSegmentation": "code.M", "AutoImageProcessor": "code.P"}
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": auto_map}))
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({"auto_map": auto_map}))
    for load in (
        lambda: make_student(str(tmp_path / "model"), NAMES),
        lambda: make_student(str(tmp_path / "model"), NAMES, from_scratch=True),
        lambda: StudentSegmenter.from_pretrained(tmp_path / "model"),
        lambda: make_processor(str(tmp_path / "model")),
    ):
        with pytest.raises(UserError, match="needs code of its own repository, which is not run") as raised:
            load()
        assert "\n" not in str(raised.value)


def test_the_processor_of_another_kind_of_student_is_its_own(tmp_path, caplog):
    _, folder = save_student(tmp_path)
    assert make_processor(str(folder), (32, 48)).size["width"] == 48
    assert "has no image processor that can be loaded; SegFormer's is used" in caplog.text
