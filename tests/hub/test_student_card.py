# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a student says how its classes are decided, here and with other libraries."""

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from diffuseseg_diffusers import Decisions, load_pipeline
from diffuseseg_diffusers.hub.student_card import STUDENT_RECORD, student_card
from diffuseseg_diffusers.jobs.files import read_json, write_json

from ..conftest import draw
from .common import saved_student


RULE = "argmax((p * (1 + iou) - iou) / union)"


def test_the_card_of_a_student_with_decisions_says_that_other_libraries_ignore_them_and_gives_the_rule(tmp_path):
    folder = saved_student(tmp_path / "student")
    assert RULE not in student_card(folder, "alice/student").text
    student = load_pipeline(folder, device="cpu", dtype="float32")
    picture = draw((32, 32), 3)[0]
    likeliest = student.segment(picture, output_type="np", return_probabilities=True)
    rarest = int(likeliest.probabilities[0].mean((1, 2)).argmin())
    student.decisions = Decisions(*([x if i == rarest else y for i in range(3)] for x, y in ((0.1, 0.9), (0.01, 0.9))))
    student.save_pretrained(folder)
    write_json(folder / STUDENT_RECORD, {**read_json(folder / STUDENT_RECORD), "decisions": student.decisions.config})
    text = student_card(folder, "alice/student").text
    assert RULE in text and "each pixel gets its likeliest class" in text and 'load_pipeline("alice/student")' in text
    # The rule, and what transformers' own client does.
    ours = student.segment(picture, output_type="np").masks[0]
    p, decisions = likeliest.probabilities[0], read_json(folder / "config.json")["decisions"]
    iou, union = (np.array(decisions[name], np.float32)[:, None, None] for name in ("iou", "union"))
    assert np.array_equal(((p * (1 + iou) - iou) / union).argmax(0), ours)
    client = pipeline("image-segmentation", model=str(folder), device=torch.device("cpu"))
    theirs = np.full_like(ours, 255)
    for found in client(Image.fromarray(picture).convert("RGB")):
        theirs[np.asarray(found["mask"]) > 0] = client.model.config.label2id[found["label"]]
    assert np.array_equal(theirs, likeliest.masks[0]) and not np.array_equal(theirs, ours)
