# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What holds for the configuration of every task."""

import inspect
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from diffuseseg_diffusers.jobs.command_line import command_line, parse
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tasks import TASKS, named
from diffuseseg_diffusers.tasks.options import RunsModel


CONFIGS = {command: named(where) for command, (where, _) in TASKS.items()}

# What configurations need beside their required fields, so that few of those that are drawn are refused.
NEEDED = {
    "train-ddpm": {"train_data_dir": "x", "max_train_steps": 1},
    "train-autoencoder": {"train_data_dir": "x", "max_train_steps": 1, "resolution": (64,)},
    "distil-features": {"train_data_dir": "x"},
    "train-student": {"train_dataset_name": "x"},
}
# Words that people type: names, paths, options of executors, lengths.
WORDS = st.text(st.characters(categories=("L", "N"), include_characters="_./= -,:"), min_size=1, max_size=8)
LENGTHS = st.sampled_from([0.25, 0.5, 1.0, 2.5])


def values(hint, own):
    """Values of a field's type within its limits."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    kinds = [kind for kind in kinds if kind is not type(None)]
    choices = own.choices
    if typing.get_origin(kinds[0]) is tuple:
        of, *more = typing.get_args(kinds[0])
        number = dict(min_size=1, max_size=3) if more == [...] else dict(min_size=1 + len(more), max_size=1 + len(more))
        return st.lists(values(of, own), **number).map(tuple)
    if choices:
        return st.sampled_from(choices)
    minimum = 0 if own.minimum is None else own.minimum
    maximum = 1000 if own.maximum is None else own.maximum
    one = {
        bool: st.booleans(),
        int: st.integers(int(max(minimum, -1000)), int(maximum)),
        float: LENGTHS if own.parse else st.floats(max(minimum, own.above or -1000), maximum, exclude_min=True),
        # Where numbers are read too, words that cannot be taken for one.
        str: WORDS.map("block{}".format) if int in kinds else WORDS,
        Path: WORDS.map(Path),
    }
    return st.one_of([one[kind] for kind in kinds])


@st.composite
def configurations(draw, command):
    config = CONFIGS[command]
    hints, given_values = typing.get_type_hints(config), dict(NEEDED.get(command, {}))
    for one in fields(config):
        if one.name in given_values:
            continue
        if one.default is MISSING or draw(st.integers(0, 5)) == 0:
            given_values[one.name] = draw(values(hints[one.name], one.metadata["option"]))
    try:
        return config(**given_values)
    except UserError:
        assume(False)


@pytest.mark.parametrize("command", CONFIGS)
def test_the_command_line_of_a_configuration_gives_an_equal_one(command):
    """Further processes of a run get their work so."""
    app = command_line("diffuseseg", "", "0", CONFIGS)

    @settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
    @given(configurations(command))
    def check(config):
        assert parse(app, [command, *config.arguments()]) == config

    check()


def test_every_option_of_how_a_model_runs_reaches_the_loader():
    config = CONFIGS["evaluate"](model="x", dataset_name="x", output_dir="x")
    taken = set(inspect.signature(load_pipeline).parameters) - {"name"}
    assert set(config.loading()) == taken >= set(RunsModel.__annotations__) - {"verbose"}


def test_loras_are_inputs_with_and_without_a_scale():
    config = CONFIGS["evaluate"](model="x", dataset_name="x", output_dir="x", lora=("my/a=0.5", "my/b"))
    assert {"my/a", "my/b"} <= set(config.inputs())
