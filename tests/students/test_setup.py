# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a student's training reads, and its identity."""

import numpy as np
import pytest

from diffuseseg_diffusers.students.setup import load_student_data, student_contents
from diffuseseg_diffusers.tasks.train_student import TrainStudentConfig

from ..conftest import dataset_of, draw


def contents(changed: int | None, folder) -> dict:
    """Contents of a run over ten drawings, of which the mask of one may be another."""
    images, masks = map(list, zip(*[draw((16, 16), i) for i in range(10)]))
    if changed is not None:
        masks[changed] = np.flip(masks[changed], 0).copy()
    dataset_of(images, masks).to_parquet(folder / "train.parquet")
    config = TrainStudentConfig(train_dataset_name=str(folder), cache_dir=str(folder / "cache"), output_dir="out")
    return student_contents(config, load_student_data(config, None), None)


@pytest.mark.parametrize("changed", range(10))
def test_another_mask_is_another_run_whether_trained_on_or_held_out(changed, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    before, after = (
        contents(*given)["train_dataset_name"] for given in ((None, tmp_path / "a"), (changed, tmp_path / "b"))
    )
    assert len(before) == 10 and [before[row] == after[row] for row in before].count(False) == 1
