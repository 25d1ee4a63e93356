# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest

from diffuseseg_diffusers.diffusion.setup import make_model
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.tasks.train_ddpm import TrainDDPMConfig


def test_a_model_without_a_unet_on_pixels_cannot_be_trained_further():
    config = TrainDDPMConfig(train_data_dir="x", pretrained="some/student", max_train_steps=1, output_dir=Path("out"))
    with pytest.raises(UserError, match="some/student has no U-Net on pixels"):
        make_model(config, object(), None, lambda: 1)
