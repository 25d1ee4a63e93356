# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Choices that configurations state without torch are those of the libraries, and of the modules that use them."""

import pytest
from diffusers.optimization import SchedulerType

from diffuseseg_diffusers.datasets.unlabeled import RESIZE_MODES
from diffuseseg_diffusers.diffusion.setup import VALIDATION_IMAGES
from diffuseseg_diffusers.diffusion.transformers import DENOISERS
from diffuseseg_diffusers.diffusion.unets import BETA_SCHEDULES, PREDICTION_TYPES
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.students.choosing import RATES, SMALL
from diffuseseg_diffusers.students.networks import DEFAULT_STUDENT
from diffuseseg_diffusers.tasks.train_autoencoder import TrainAutoencoderConfig
from diffuseseg_diffusers.tasks.train_ddpm import TrainDDPMConfig
from diffuseseg_diffusers.tasks.train_student import TrainStudentConfig
from diffuseseg_diffusers.trainer.checkpoints import LATEST


def test_choices_are_those_of_what_uses_them():
    options = TrainDDPMConfig.options()
    schedules = [kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT]
    for name, expected in {
        "lr_scheduler": schedules,
        "resize_mode": RESIZE_MODES,
        "denoiser": DENOISERS,
        "beta_schedule": BETA_SCHEDULES,
        "prediction_type": PREDICTION_TYPES,
    }.items():
        assert sorted(options[name].choices) == sorted(expected), name


def test_what_help_says_of_defaults_is_so():
    options, student = TrainDDPMConfig.options(), TrainStudentConfig.options()
    assert f"at most {VALIDATION_IMAGES}" in options["num_validation_images"].help
    assert all(f"{rate:g} for {kind}" in student["learning_rate"].help for kind, rate in RATES.items())
    assert f"up to {SMALL} pixels, else {DEFAULT_STUDENT}" in student["model"].help
    assert TrainDDPMConfig(train_data_dir="x", max_train_steps=1, output_dir="y").resume_from_checkpoint == LATEST


@pytest.mark.parametrize(
    "config, given, message",
    [
        (TrainDDPMConfig, {"train_data_dir": "x"}, "How long"),
        (TrainDDPMConfig, {"max_train_steps": 1}, "no images to train on"),
        (TrainDDPMConfig, {"train_data_dir": "x", "dataset_name": "y", "max_train_steps": 1}, "exclude each other"),
        (TrainDDPMConfig, {"train_data_dir": "x", "max_train_minutes": 0}, "max_train_minutes must be above 0"),
        (TrainAutoencoderConfig, {"dataset_name": "x", "streaming": True, "max_train_steps": 1}, "leave --streaming"),
        (TrainStudentConfig, {"train_dataset_name": "x", "layer_decay": 1.5}, "layer_decay must be at most 1"),
        (TrainStudentConfig, {"train_dataset_name": "x", "real_fraction": 2}, "real_fraction must lie in 0 to 1"),
        (TrainStudentConfig, {"teacher": "x"}, "go together"),
    ],
)
def test_what_cannot_be_is_refused_when_the_configuration_is_made(config, given, message):
    with pytest.raises(UserError, match=message):
        config(output_dir="out", **given)
